"""generate.py against GPT.generate, which has no cache and takes one question at a time."""

import pytest
import torch

import prefix
from generate import generate, stack_caches
from model import GPT, GPTConfig


def one_at_a_time(model, questions, n, pasts, stop=None, **how):
    """What the specification writes, cut behind the stop token."""
    rows = []
    for question, past in zip(questions, pasts):
        row = model.generate(torch.tensor([question]), n, past, **how)[0].tolist()
        rows.append(row[: row.index(stop) + 1] if stop in row else row)
    return rows


def some_questions(n, seed=1):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (n,), generator=rng).tolist()
    return [torch.randint(1024, (length,), generator=rng).tolist() for length in lengths]


@pytest.mark.parametrize("P", [0, 1, 7])
def test_questions_of_any_length_equal_one_at_a_time(tiny, P):
    questions = some_questions(6)
    past = tiny.prefill(torch.arange(P)[None]) if P else None
    assert generate(tiny, questions, 15, past) == one_at_a_time(tiny, questions, 15, [past] * 6)


def test_every_kind_of_prompt_in_one_batch_equals_one_at_a_time(tiny):
    """Rows at the input, keys and values in all layers and in the top one, and words."""
    prompts = [
        prefix.HybridPrefix(tiny, 7, [1, 2]),
        prefix.DeepPrefix(tiny, 3, [5]),
        prefix.DeepPrefix(tiny, 9, layers=1),
        prefix.TextPrompt(tiny, [40, 41, 42, 43]),
    ]
    questions = some_questions(12)
    with torch.no_grad():
        pasts = [prompts[i % 4].past(tiny) for i in range(12)]
    cache, past_pad = stack_caches(pasts)
    assert generate(tiny, questions, 20, cache, past_pad) == one_at_a_time(tiny, questions, 20, pasts)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_end_at_their_stop_token_and_change_nothing_for_the_rest(tiny, shared):
    """Half of the rows end after a few tokens and leave the batch; each has to equal its own decoding alone."""
    questions = some_questions(8, seed=3)
    before = torch.randint(1024, (8, 6), generator=torch.Generator().manual_seed(4))
    past = tiny.prefill(before[:1] if shared else before)
    pasts = [[tuple(p if shared else p[i : i + 1] for p in pair) for pair in past] for i in range(8)]
    free = one_at_a_time(tiny, questions, 12, pasts)
    stops = [row[end] for row, end in zip(free, [1, 9, 2, 11, 1, 3, 10, 2])]
    together = generate(tiny, questions, 12, past, stop=torch.tensor(stops))
    for row, want, stop in zip(together, free, stops):
        assert row == want[: want.index(stop) + 1]


def test_decoding_ends_when_every_row_has(tiny, monkeypatch):
    questions, calls = some_questions(1), []
    (first,) = generate(tiny, questions, 1)
    run = GPT.run
    monkeypatch.setattr(GPT, "run", lambda *args, **more: calls.append(1) or run(*args, **more))
    assert generate(tiny, questions, 40, stop=first[0]) == [first]
    assert len(calls) == 1


def test_too_long_a_text_is_refused(tiny):
    with pytest.raises(ValueError, match="exceed block_size 96"):
        generate(tiny, [[1] * 90], 20)


def test_bfloat16_takes_questions_of_any_length(tiny):
    """Empty positions must not become NaN, with a prompt or without."""
    model = tiny.to(torch.bfloat16)
    for past in (None, model.prefill(torch.arange(3)[None])):
        for row in generate(model, some_questions(5), 10, past):
            assert len(row) == 10 and all(0 <= token < 1024 for token in row)
        hidden, _ = model.run(torch.zeros(2, 4, dtype=torch.long), past, left_pad=torch.tensor([0, 3]))
        assert hidden.isfinite().all()


def test_sampling_follows_the_softmax(tiny):
    """Frequencies of 20,000 draws of one token against the distribution itself."""
    question = torch.randint(1024, (5,), generator=torch.Generator().manual_seed(11)).tolist()
    top = tiny.logits(tiny(torch.tensor([question])))[0, -1].topk(4)
    want = (top.values / 3.0).softmax(-1)
    drawn = torch.tensor(generate(tiny, [question] * 20_000, 1, temperature=3.0, top_k=4, seed=1))[:, 0]
    got = torch.stack([(drawn == t).float().mean() for t in top.indices])
    assert got.sum() == 1
    torch.testing.assert_close(got, want, atol=0.015, rtol=0)


def test_sampling_repeats_with_its_seed_and_is_that_of_the_specification(tiny):
    questions, how = some_questions(1), {"temperature": 1.0, "top_k": 50}
    one, again, other = (generate(tiny, questions, 20, seed=s, **how) for s in (1, 1, 2))
    assert one == again != other
    assert one == one_at_a_time(tiny, questions, 20, [None], seed=1, **how)


def test_a_batch_of_one_layer_and_many_heads(tiny):
    torch.manual_seed(2)
    model = GPT(GPTConfig(vocab_size=1024, block_size=64, n_layer=1, n_head=4, n_embd=32)).freeze()
    questions = some_questions(5, seed=9)
    assert generate(model, questions, 9) == one_at_a_time(model, questions, 9, [None] * 5)
