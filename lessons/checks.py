"""The checks of the exercises. Each calls a function that a student wrote, on numbers that it draws itself, and prints
"Right." or "Not yet: " with one sentence on what is wrong.

A check holds the right answer and those that people often give instead, each with its sentence. Read the exercise
before you read its check: the solution stands here.
"""

import math
import traceback
from contextlib import contextmanager

import torch

from model import GPT, GPTConfig


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


@contextmanager
def verdict():
    """Print what a check finds."""
    try:
        yield
    except NotImplementedError:
        print("Not yet: write the function, run its cell, then run this one again.")
    except Wrong as wrong:
        print(f"Not yet: {wrong}")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(f"Not yet: it stopped in line {last.lineno}, `{last.line}`, with {type(error).__name__}: {error}")
    else:
        print("Right.")


def expect(condition, sentence):
    if not condition:
        raise Wrong(sentence)


def compare(got, right, mistakes=(), what="The result"):
    """Expect the tensor `right`. mistakes: (what a common mistake gives, the sentence that says so)."""
    expect(got is not None, "The function returns nothing: end it with `return`.")
    expect(isinstance(got, torch.Tensor), f"{what} should be a tensor, but it is of type {type(got).__name__}.")
    for mistake, sentence in mistakes:
        expect(not (got.shape == mistake.shape and close(got, mistake)), sentence)
    shapes = f"{what} has shape {tuple(got.shape)}, and {tuple(right.shape)} was asked for."
    expect(got.shape == right.shape, shapes)
    expect(not got.isnan().any(), f"{what} contains NaN: is there a row whose weights are all 0?")
    expect(close(got, right), f"{what} has the right shape, but its numbers differ: see the hint in the exercise.")


def close(a, b):
    return torch.allclose(a.double(), b.double(), atol=1e-5, equal_nan=True)


def tiny_gpt(seed=0):
    """A GPT-2 of two layers with random weights, large enough ones that attention is not uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=40, block_size=64, n_layer=2, n_head=2, n_embd=16))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


# ---------------------------------------------------------------- lesson 1: a cache is a prompt


def check_next_token_logits(next_token_logits):
    with verdict():
        model, tokens = tiny_gpt(), torch.tensor([[3, 14, 15, 9, 2]])
        with torch.no_grad():
            hidden = model(tokens)  # (1, T, C)
            every = model.logits(hidden)  # (1, T, vocab_size)
            got = next_token_logits(model, tokens)
        mistakes = [
            (every, "You return logits of every position, (1, T, vocab_size): only the last position has seen all."),
            (every[0], "You return logits of every position, (T, vocab_size): only the last position has seen all."),
            (every[:, -1], "The batch is still there, (1, vocab_size): take its only row with [0]."),
            (every[0, 0], "These are the logits of the first position, which has seen nothing but itself."),
            (every[0, -2], "These are the logits of the last position but one: it has not seen the last token."),
            (hidden[0, -1], "These are hidden states, C numbers: model.logits makes vocab_size numbers of them."),
            (every[0, -1].softmax(-1), "These are probabilities: leave the softmax out, logits were asked for."),
            (every[:, :, -1][0], "You take the last token of the vocabulary, not the last position of the text."),
        ]
        compare(got, every[0, -1], mistakes)


def check_positions_behind(positions_behind):
    with verdict():
        for P, T in (5, 3), (0, 4), (41, 14):
            got = positions_behind(P, T)
            asked = f"For a cache of {P} and a question of {T}"
            mistakes = [(torch.arange(P + T), f"{asked} you number the cache as well: its positions are in its keys.")]
            if P:
                mistakes += [
                    (torch.arange(T), f"{asked} you begin at 0 again, as if nothing stood before the question."),
                    (torch.arange(P + 1, P + T + 1), f"{asked} you begin at P + 1: the cache takes 0 to P - 1."),
                    (torch.arange(P - 1, P + T - 1), f"{asked} you begin at P - 1, where the cache's last row stands."),
                    (torch.arange(P, P + T + 1), f"{asked} you return one position too many: the end is P + T - 1."),
                ]
            compare(got, torch.arange(P, P + T), mistakes if P else [], f"{asked} the result")


def check_head(head):
    with verdict():
        rng = torch.Generator().manual_seed(0)
        P, T, D = 3, 4, 8
        past_k, past_v, q, k, v = (2 * torch.randn(n, D, generator=rng) for n in (P, P, T, T, T))
        got = head(q, k, v, past_k, past_v)
        own, behind = (q @ k.T) / math.sqrt(D), (q @ past_k.T) / math.sqrt(D)  # (T, T), (T, P)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores, values = torch.cat([behind, own.masked_fill(future, -torch.inf)], 1), torch.cat([past_v, v])
        mask = torch.cat([torch.zeros(T, P), torch.zeros(T, T).masked_fill(future, -torch.inf)], 1)
        apart = behind.softmax(-1) @ past_v + own.masked_fill(future, -torch.inf).softmax(-1) @ v
        zeroed = torch.cat([behind, own.masked_fill(future, 0)], 1).softmax(-1) @ values
        late = torch.zeros(T, P + T).masked_fill(torch.ones(T, P + T, dtype=torch.bool).triu(1), -torch.inf)
        mistakes = [
            (scores.softmax(-1), "These are the weights, (T, P + T): they still have to mix the values."),
            ((scores * math.sqrt(D)).softmax(-1) @ values, "The scores are not divided by sqrt(D)."),
            ((scores / math.sqrt(D)).softmax(-1) @ values, "The scores are divided by D: it is its square root."),
            (torch.cat([behind, own], 1).softmax(-1) @ values, "No mask: a position reads those that come after it."),
            (zeroed, "Masked scores are 0, so that their weights are not: fill in -inf before the softmax."),
            ((torch.cat([behind, own], 1) + late).softmax(-1) @ values, "The mask begins at the first row of the "
             "cache: every position may read all P of them, so the triangle begins P columns later."),
            (own.masked_fill(future, -torch.inf).softmax(-1) @ v, "The cache is left out: nothing reads its rows."),
            (apart, "The cache and the question have a softmax each: one softmax runs over both, so that they "
             "compete for the same weight."),
            ((mask + scores).softmax(0).nan_to_num() @ values, "The softmax runs over the wrong dimension: the weights "
             "of one query, a row, have to add up to 1."),
        ]  # fmt: skip
        compare(got, scores.softmax(-1) @ values, mistakes, "The output")


def check_gradient_of_rows(gradient_of_rows):
    with verdict():
        model, rng = tiny_gpt(), torch.Generator().manual_seed(1)
        rows = torch.randn(5, model.config.n_embd, generator=rng)  # (P, C)
        tokens = torch.randint(40, (3, 7), generator=rng)  # (B, T)
        targets = torch.randint(40, (3, 7), generator=rng)  # (B, T)
        mine = rows.clone().requires_grad_(True)
        hidden = model(tokens, model.prefill(mine[None]))  # (B, T, C)
        loss = model.loss(hidden.flatten(0, 1), targets.flatten())
        (right,) = torch.autograd.grad(loss, mine)  # (P, C)
        try:
            got = gradient_of_rows(model, rows.clone(), tokens, targets)
        except RuntimeError as error:
            expect("does not require grad" not in str(error), "Nothing requires a gradient: call "
                   "rows.requires_grad_(True) before rows are used.")  # fmt: skip
            expect("must match" not in str(error), f"Shapes do not fit ({error}): model.prefill takes (1, P, C), a "
                   "batch of one prompt, and model.loss takes (N, C) and (N).")  # fmt: skip
            raise
        expect(all(p.grad is None for p in model.parameters()), "The model's weights have gradients now: they are "
               "frozen, only the rows may require one.")  # fmt: skip
        expect(got is not None, "The function returns nothing, or rows.grad before loss.backward() has filled it in.")
        with_sum = right * targets.numel()
        mistakes = [
            (right[None], "The batch dimension is still there, (1, P, C): return (P, C)."),
            (with_sum, "The gradient is that of the sum over all positions: model.loss is their mean."),
            (rows - right, "These are rows after a step: return the gradient alone."),
            (loss.detach(), "This is the loss: return its gradient by the rows."),
        ]
        compare(got, right, mistakes, "The gradient")
