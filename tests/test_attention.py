"""eval/attention.py against transformers' attentions, with the prompt as their past_key_values, and by brute force."""

import pytest
import torch
import transformers
from conftest import assert_close, in_transformers, some_tokens

import tasks
from data.batches import encode
from eval.attention import attention_to_rows, attention_weights
from methods import METHODS
from prefix import HybridPrefix


def their_weights(theirs, tokens, past):
    """transformers' attentions, [(B, n_head, T, P + T)], behind a cache of ours."""
    cache = transformers.DynamicCache()
    for layer, pair in enumerate(past or []):
        cache.update(*(x.expand(len(tokens), -1, -1, -1).clone() for x in pair), layer)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        return theirs(tokens, past_key_values=cache, output_attentions=True).attentions


@pytest.mark.parametrize("rows", [0, 5])
def test_weights_equal_those_of_transformers(either, tmp_path, rows):
    theirs, tokens = in_transformers(either, tmp_path), some_tokens(3, 7)
    past = HybridPrefix(either, n_random=rows).past(either) if rows else None
    got = list(attention_weights(either, tokens, past))
    assert len(got) == 2 and got[0].shape == (3, either.config.n_head, 7, rows + 7)
    for weights, want in zip(got, their_weights(theirs, tokens, past)):
        assert_close(weights, want)
    assert not any(module._forward_pre_hooks for module in either.modules())


def test_the_mean_over_answers_equals_one_question_at_a_time(either, tmp_path, tokenizer):
    """With transformers' weights: for each token of each answer, what the position before it attends to."""
    theirs = in_transformers(either, tmp_path)
    method = HybridPrefix(either, n_random=4, trigger=tokenizer.encode("Add them:"))
    method.shots = torch.tensor([tokenizer.encode_task("1+1=2$")])
    examples = tasks.load("addition:plain").examples(6)
    got = attention_to_rows(method, either, tokenizer, examples)
    P, past = method.n_rows(), method.past(either)
    rows, n = torch.zeros(2, either.config.n_head, P), 0
    for question, answer in encode(tokenizer, examples):
        for j in range(len(answer)):
            attentions = their_weights(theirs, torch.tensor([question + answer[:j]]), past)
            for layer, weights in enumerate(attentions):
                rows[layer] += weights[0, :, -1, :P]
            n += 1
    assert_close(torch.tensor(got["rows"]), rows / n)
    assert_close(torch.tensor(got["shares"]), rows.sum(2).mean(1) / n)


@pytest.mark.parametrize("name", ["lora", "adapter-prefix"])
def test_what_has_no_rows_before_the_question_has_nothing_to_show(tiny, tokenizer, name):
    method = METHODS[name](tiny, n_random=3)
    method.shots = torch.tensor([tokenizer.encode_task("ab")])
    assert attention_to_rows(method, tiny, tokenizer, tasks.load("word_reversal").examples(3)) is None
