"""prefix.py against peft's prompt tuning, and its files against being loaded elsewhere."""

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import prefix
from model import GPT

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def in_peft(tiny, folder, rows):
    """The same frozen GPT-2 in transformers, behind the same rows as peft's prompt tuning."""
    tiny.save(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(theirs, config)
    theirs.prompt_encoder.default.embedding.weight.data.copy_(rows)
    return theirs.eval()


@pytest.mark.parametrize("mlp", [False, True])
def test_logits_and_gradients_equal_peft(tiny, tmp_path, mlp):
    prompt = prefix.HybridPrefix(tiny, 5, [40, 41, 42], mlp, seed=3)
    if mlp:  # as if it had been tuned a while
        torch.nn.init.normal_(prompt.mlp[2].weight, std=0.3)
    theirs = in_peft(tiny, tmp_path, prompt.embeddings().detach())
    tokens = torch.randint(1024, (4, 20), generator=torch.Generator().manual_seed(1))
    got = tiny.logits(tiny(tokens, prompt(tiny)))
    want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 8:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if not mlp:
        F.cross_entropy(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        F.cross_entropy(want[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.testing.assert_close(
            prompt.rows.grad, theirs.prompt_encoder.default.embedding.weight.grad, atol=1e-5, rtol=1e-4
        )


def test_a_prefix_begins_as_random_rows_and_words(tiny):
    prompt = prefix.HybridPrefix(tiny, 500, [7, 9], mlp=True)
    rows = prompt.embeddings().detach()
    assert torch.equal(rows[500:], tiny.wte.weight[[7, 9]])  # the MLP starts at zero
    assert abs(rows[:500].std() / tiny.wte.weight.std() - 1) < 0.05


def test_both_ends_of_the_dial(tiny):
    assert len(prefix.HybridPrefix(tiny, 6).rows) == 6
    words = prefix.HybridPrefix(tiny, 0, [1, 2, 3])
    text = prefix.TextPrompt([1, 2, 3])
    for pair, want in zip(words(tiny), text(tiny)):  # words that have not moved are the words
        for got, w in zip(pair, want):
            torch.testing.assert_close(got, w)
    with pytest.raises(ValueError, match="no rows"):
        prefix.HybridPrefix(tiny, 0)


def test_seeds_repeat(tiny):
    one, again, other = (prefix.HybridPrefix(tiny, 4, [1], True, seed=s) for s in (1, 1, 2))
    for a, b in zip(one.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(one.rows, other.rows)


def test_only_the_prefix_gets_gradients(tiny):
    prompt = prefix.HybridPrefix(tiny, 4, [1], True)
    tiny(torch.zeros(2, 3, dtype=torch.long), prompt(tiny)).sum().backward()
    assert all(p.grad is None for p in tiny.parameters())
    assert prompt.rows.grad is not None


@pytest.mark.parametrize("mlp", [False, True])
def test_saved_and_loaded_it_is_the_same(tiny, tokenizer, tmp_path, mlp):
    prompt = prefix.HybridPrefix(tiny, 5, [40, 41], mlp, seed=3)
    for p in prompt.parameters():
        torch.nn.init.normal_(p)
    prefix.save(prompt, tmp_path / "p.safetensors", tiny, tokenizer, "addition", "two words")
    again, header = prefix.load(tmp_path / "p.safetensors", tiny, tokenizer)
    for pair, want in zip(again(tiny), prompt(tiny)):
        assert all(torch.equal(a, b) for a, b in zip(pair, want))
    assert torch.equal(again.start, prompt.start)
    assert (header["base"], header["task"], header["trigger"]) == ("untrained", "addition", "two words")
    assert header["base_fingerprint"] == tiny.fingerprint()
    assert header["tokenizer"] == tokenizer.name
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:  # readable by anyone
        assert file.metadata()["n_random"] == "5"
    assert os.listdir(tmp_path) == ["p.safetensors"]


def test_another_base_tokenizer_or_file_is_refused(tiny, tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    prefix.save(prefix.HybridPrefix(tiny, 2), path, tiny, tokenizer, "addition", "")
    other = GPT(tiny.config)
    with pytest.raises(ValueError, match="was tuned on the base 'untrained'"):
        prefix.load(path, other, tokenizer)
    tokenizer_bpe = type(tokenizer)(tokenizer.encoding, letters=False)
    with pytest.raises(ValueError, match="--tokenise letters, not with nano-1024 --tokenise bpe"):
        prefix.load(path, tiny, tokenizer_bpe)
    with pytest.raises(ValueError, match="no prefix file"):
        prefix.load(tmp_path / "none.safetensors", tiny, tokenizer)
    tiny.save(tmp_path)
    with pytest.raises(ValueError, match="is no prefix: name"):
        prefix.load(tmp_path / "model.safetensors", tiny, tokenizer)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="cannot be read"):
        prefix.load(path, tiny, tokenizer)
