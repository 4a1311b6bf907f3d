"""generate.py against GPT.generate, which has no cache and takes one question at a time."""

import pytest
import torch
from conftest import some_tokens

import prefix
from generate import generate, stack_caches
from model import GPT


def one_at_a_time(model, questions, n, pasts, **how):
    """What the specification writes."""
    return [model.generate(torch.tensor([q]), n, past, **how)[0].tolist() for q, past in zip(questions, pasts)]


def some_questions(n, seed=1):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (n,), generator=rng).tolist()
    return [torch.randint(1024, (length,), generator=rng).tolist() for length in lengths]


def test_padding_is_finite_where_autocast_makes_bfloat16_of_it(either):
    """Without a past, all that a padded position may attend to is padding."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = either.run(torch.tensor([[0, 0, 4]]), left_pad=torch.tensor([2]))
    assert hidden.isfinite().all()


def test_every_kind_of_prompt_in_one_batch_equals_one_at_a_time(either):
    """Rows at the input, keys and values in all layers, and words; each row with its stop token."""
    prompts = [
        prefix.HybridPrefix(either, n_random=7, trigger=[1, 2]),
        prefix.DeepPrefix(either, n_random=3, trigger=[5]),
        prefix.TextPrompt(either, trigger=[40, 41, 42, 43]),
    ]
    questions = some_questions(12)
    with torch.no_grad():
        pasts = [prompts[i % 3].past(either) for i in range(12)]
    cache, past_pad = stack_caches(pasts)
    free = one_at_a_time(either, questions, 20, pasts)
    assert generate(either, questions, 20, cache, past_pad) == free
    stops = [row[1 + i % 5] for i, row in enumerate(free)]
    want = [row[: row.index(stop) + 1] for row, stop in zip(free, stops)]
    assert generate(either, questions, 20, cache, past_pad, [[stop] for stop in stops]) == want


@pytest.mark.parametrize("shared", [True, False])
def test_rows_end_at_their_stop_token_and_change_nothing_for_the_rest(either, shared):
    """Half of the rows end after a few tokens and leave the batch; each has to equal its own decoding alone."""
    questions, before = some_questions(8, seed=3), some_tokens(8, 6)
    past = either.prefill(before[:1] if shared else before)
    pasts = [[tuple(p if shared else p[i : i + 1] for p in pair) for pair in past] for i in range(8)]
    free = one_at_a_time(either, questions, 12, pasts)
    stops = [row[end] for row, end in zip(free, [1, 9, 2, 11, 1, 3, 10, 2])]
    together = generate(either, questions, 12, past, stop=[[stop] for stop in stops])
    assert together == [row[: row.index(stop) + 1] for row, stop in zip(free, stops)]


def test_a_row_ends_at_the_first_of_several_stop_tokens(either):
    questions = some_questions(4, seed=3)
    free = one_at_a_time(either, questions, 12, [None] * 4)
    shared = [row[5] for row in free]  # each may end any row
    want = [row[: 1 + min(i for i, t in enumerate(row) if t in shared)] for row in free]
    assert generate(either, questions, 12, stop=[shared]) == want
    own = [[row[7], -1, row[2]] for row in free]
    want = [row[: 1 + min(row.index(t) for t in some if t >= 0)] for row, some in zip(free, own)]
    assert generate(either, questions, 12, stop=own) == want


def test_the_batch_shrinks_and_decoding_ends_with_its_last_row(tiny, monkeypatch):
    questions, sizes, run = some_questions(4), [], GPT.run
    free = generate(tiny, questions, 9)
    monkeypatch.setattr(GPT, "run", lambda self, x, *args: sizes.append(len(x)) or run(self, x, *args))
    generate(tiny, questions, 9, stop=[[row[n]] for row, n in zip(free, [0, 0, 1, 2])])
    assert sizes == [4, 2, 1]


def test_what_cannot_be_is_refused(tiny):
    with pytest.raises(AssertionError, match="exceed block_size 96"):
        generate(tiny, [[1] * 90], 20)
    with pytest.raises(AssertionError, match="top_k 0"):
        generate(tiny, [[1]], 2, top_k=0)
    with pytest.raises(AssertionError, match="top_k 0"):
        tiny.generate(torch.tensor([[1]]), 2, top_k=0)


def test_sampling_follows_the_softmax(tiny):
    """Frequencies of 10,000 draws of one token against the distribution itself."""
    question = some_tokens(5).tolist()
    top = tiny.logits(tiny(torch.tensor([question])))[0, -1].topk(4)
    want = (top.values / 3.0).softmax(-1)
    drawn = torch.tensor(generate(tiny, [question] * 10_000, 1, temperature=3.0, top_k=4, seed=1))[:, 0]
    got = torch.stack([(drawn == t).float().mean() for t in top.indices])
    assert abs(got.sum() - 1) < 1e-6
    torch.testing.assert_close(got, want, atol=0.02, rtol=0)


@pytest.mark.parametrize("top_k", [None, 50, 5000])
def test_sampling_repeats_with_its_seed_and_is_that_of_the_specification(either, top_k):
    questions, how = some_questions(1), {"temperature": 1.0, "top_k": top_k}
    one, again, other = (generate(either, questions, 20, seed=s, **how) for s in (1, 1, 2))
    assert one == again != other
    assert one == one_at_a_time(either, questions, 20, [None], seed=1, **how)
