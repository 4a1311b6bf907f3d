"""The checks of the exercises. Each calls a function that a student wrote, on numbers that it draws itself, prints
"Right." or "Not yet: " with one sentence on what is wrong, and returns the function with which the lesson goes on: the
student's own if it is right, else the solution that is folded up under the exercise.

A check holds the right answer and those that people often give instead, each with its sentence. Read the exercise
before you read its check: the solution stands here.
"""

import math
import random
import re
import traceback
from collections import Counter
from functools import cache, wraps

import torch

from lessons.run import LESSONS, cells, solution
from model import GPT, GPTConfig


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


def exercise(shapes):
    """Makes a check of a function that raises Wrong. `shapes` is what to compare with where a line does not run."""

    def decorate(check):
        @wraps(check)
        def verdict(answer):
            ours = solutions().get(check.__name__.removeprefix("check_"))
            if answer is ours:
                said = "run the cell of your function first, then this one."
            else:
                said = what_is_wrong(check, answer, shapes)
            if said is None:
                print("Right.")
                return answer
            print(f"Not yet: {said}")
            print("The next cells use the solution below until then.")
            return ours

        return verdict

    return decorate


def what_is_wrong(check, answer, shapes):
    """One sentence, or None where nothing is."""
    try:
        check(answer)
    except NotImplementedError:
        return "write the function, run its cell, then run this one again."
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        yours = next((f for f in frames if f.filename != __file__), frames[-1])  # the first one outside of this file
        return f"your line `{yours.line}` does not run: {meaning(error)} {shapes}"


@cache
def solutions():
    """{name: function}: the solutions of all lessons."""
    space = {"math": math, "torch": torch}
    listings = [source for path in LESSONS for header, source in cells(path) if header == "[markdown]"]
    for source in listings:
        if "<details>" in source and "```python" in source:
            exec(solution(source), space)
    return space


ERRORS = [  # what Python and PyTorch say, and what that means
    (r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)|size mismatch, got.*",
     "in a product A @ B, A has as many columns as B has rows, and here they differ{}."),
    (r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", "sizes {} and {} meet in the same dimension."),
    (r"Expected size for first two dimensions|batch1 and batch2", "in a product A @ B sizes differ that should agree."),
    (r"Sizes of tensors must match except in dimension (\d+)", "torch.cat along dimension {} needs all others equal."),
    (r"Tensors must have same number of dimensions", "torch.cat joins tensors with the same number of dimensions."),
    (r"does not require grad", "nothing that the loss depends on asks for a gradient."),
    (r"takes (?:from )?(\d+).* positional arguments? but (\d+)", "it is called with {1} arguments, and takes {0}."),
    (r"missing (\d+) required positional argument", "an argument is missing."),
    (r"Boolean value of Tensor", "`and`, `or`, `not` and `if` take no tensor of several numbers: write &, | and ~."),
    (r"[Nn]ame '(\w+)' is not defined|variable '(\w+)'", "there is nothing called `{}` at this point."),
    (r"out of (?:range|bounds)", "an index is beyond the end."),
    (r"shape of the mask|shapes? .*(?:cannot be broadcast|invalid)|Expected input batch_size|[Ee]xpanded size",
     "two shapes do not fit."),
    (r"too many values to unpack|not enough values to unpack", "what you take apart has another number of parts."),
    (r"'NoneType' object", "something there is None: a function without `return`, or a .grad before backward()."),
    (r"'(\w+)' object has no attribute '(\w+)'", "a {} has no `{}`."),
    (r"unsupported operand type\(s\) for (\S+): '(\w+)' and '(\w+)'", "{} does not take a {} and a {}."),
    (r"division by zero", "it divides by zero."),
    (r"'(\S+)' not supported between instances of '(\w+)' and '(\w+)'", "{} does not take a {} and a {}."),
    (r"'(\w+)' object cannot be interpreted as an integer", "a {} stands where a whole number is needed."),
    (r"at least 1D|same dtype|expected scalar type", "a product needs tensors of the same kind of numbers."),
    (r"at least (\d) dimensions", "it needs a tensor of {} dimensions."),
    (r"must be Tensor, not (\w+)", "a {} stands where a tensor is needed."),
    (r"must be tuple of ints", "something else stands in the place of a size: pass generator=rng by its name."),
    (r"iterable of Tensors", "an optimizer takes a list of tensors, [rows]."),
    (r"each tensor to be equal size", "torch.stack needs tensors of the same shape."),
    (r"upper bound and (?:lower|larger) bound", "torch.arange(a, b) needs b of at least a."),
    (r"only supports boolean masks", "a mask holds True and False, and this one numbers."),
    (r"Expected target size", "a batch is still there in what the loss gets."),
    (r"too many indices", "it has more indices than the tensor has dimensions."),
    (r"'(\w+)' object is not (?:iterable|subscriptable|callable)|type '(\w+)' has no len", "a {} is no list."),
]  # fmt: skip


def meaning(error):
    """An error in plain words."""
    for pattern, sentence in ERRORS:
        if found := re.search(pattern, str(error)):
            groups = [g for g in found.groups() if g is not None]
            if "{}." in sentence and "product" in sentence:
                groups = [f", ({groups[0]} x {groups[1]}) @ ({groups[2]} x {groups[3]})" if len(groups) == 4 else ""]
            return sentence.format(*groups)
    return f"{type(error).__name__}: {error}."


def expect(condition, sentence):
    if not condition:
        raise Wrong(sentence)


def compare(got, right, mistakes=(), what="The result"):
    """Expect the tensor `right`. mistakes: (what a common mistake gives, the sentence that says so)."""
    expect(got is not None, "The function returns nothing: end it with `return`.")
    expect(isinstance(got, torch.Tensor), f"{what} should be a tensor, and it is of type {type(got).__name__}.")
    same = got.shape == right.shape and close(got, right)
    if not same:  # right comes first, since in a small case a mistake may give what is right
        for mistake, sentence in mistakes:
            expect(not (got.shape == mistake.shape and close(got, mistake)), sentence)
        shapes = f"{what} has shape {tuple(got.shape)}, and {tuple(right.shape)} was asked for."
        expect(got.shape == right.shape, shapes)
        expect(not got.isnan().any(), f"{what} contains NaN: a softmax over nothing but minus infinity gives that, and "
               "so does the logarithm of a negative number.")  # fmt: skip
        raise Wrong(f"{what} {how_it_differs(got.double(), right.double())}.")
    kinds = [(torch.bool, "True and False"), (torch.long, "whole numbers")]
    for kind, name in kinds:
        fits = right.dtype != kind or got.dtype == kind or kind == torch.long and got.dtype in WHOLE
        expect(fits, f"{what} should hold {name}, and its dtype is {got.dtype}.")


def how_it_differs(got, right):
    """What can be said of numbers that no known mistake explains."""
    if not got.any():
        return "is 0 everywhere"
    if got.dim() and got.isfinite().all() and right.isfinite().all():
        factor = ((got * right).sum() / right.square().sum()).item()
        if close(got, factor * right):
            return f"is {factor:.3g} times what it should be"
    if close(got.flatten().sort().values, right.flatten().sort().values):
        return "holds the right numbers, in another order"
    wrong = (~torch.isclose(got, right, atol=1e-5)).nonzero()
    at = tuple(wrong[0].tolist())
    where = f" in {len(wrong)} of {got.numel()} places, the first at {list(at)}:" if at else ":"
    return f"has the right shape, but other numbers{where} {got[at]:.4g} instead of {right[at]:.4g}"


WHOLE = torch.int8, torch.int16, torch.int32, torch.int64


def is_whole(x):
    """Whether x is a whole number, of Python, NumPy or PyTorch."""
    return hasattr(x, "__index__") and not (isinstance(x, torch.Tensor) and x.is_floating_point())


def close(a, b):
    return torch.allclose(a.double(), b.double(), atol=1e-5)


def tiny_gpt(seed=0):
    """A GPT-2 of two layers with random weights, large enough ones that attention is not uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=40, block_size=64, n_layer=2, n_head=2, n_embd=16))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


# ---------------------------------------------------------------- lesson 0: attention from scratch


@exercise("q is (T, D) and k is (S, D): k.T turns the keys' rows into columns, (D, S).")
def check_scores(scores):
    rng = torch.Generator().manual_seed(11)
    T, S, D = 6, 4, 3
    q, k = torch.randn(T, D, generator=rng), torch.randn(S, D, generator=rng)
    right = q @ k.T / math.sqrt(D)
    mistakes = [
        (right * math.sqrt(D), "The scores are not divided by sqrt(D)."),
        (right / math.sqrt(D), "The scores are divided by D: it is its square root."),
        (right * D, "The scores are multiplied by sqrt(D): divide by it."),
        (right * math.sqrt(D / S), "The scores are divided by the square root of the number of keys: D is the length "
         "of a key, q.size(1)."),
        (right * math.sqrt(D / T), "The scores are divided by the square root of the number of queries: D is the "
         "length of a query, q.size(1)."),
        (right.T, "Rows and columns are exchanged: row i is for query i, so q stands first."),
        (right.T * math.sqrt(D), "Rows and columns are exchanged: row i is for query i, so q stands first."),
        (right.softmax(-1), "These are the weights: leave the softmax out, it comes later."),
        ((right * math.sqrt(D)).softmax(-1), "These are the weights: leave the softmax out, it comes later."),
    ]  # fmt: skip
    compare(scores(q.clone(), k.clone()), right, mistakes, "The table of scores")


@exercise("scores are (T, T), and masked_fill(where, value) takes True and False of the same shape.")
def check_causal(causal):
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(12))
    got, ones = causal(scores.clone()), torch.ones(5, 5, dtype=torch.bool)
    expect(not (isinstance(got, torch.Tensor) and got.dtype == torch.bool), "This says where the future is: return the "
           "scores, with -inf in these places.")  # fmt: skip
    if isinstance(got, torch.Tensor) and got.shape == scores.shape:
        got = got.masked_fill(got < -1e4, -torch.inf)  # which has a weight of 0 as well
        later, kept = got[ones.triu(1)], close(got[ones.tril()], scores[ones.tril()])
        filled = kept and len(later.unique()) == 1 and later[0].isfinite()
        expect(not filled, f"Masked scores are {later[0]:g}, and the softmax gives those weight: fill in -inf.")

    def masked(where, value=-torch.inf):
        return scores.masked_fill(where, value)

    mistakes = [
        (scores, "Nothing is masked: masked_fill returns a new tensor, return that."),
        (masked(ones.triu(1), torch.inf), "Later keys get +inf, and with that all of the weight: fill in -inf."),
        (masked(ones.tril(-1)), "The past is hidden, not the future: query i is row i, and later keys stand to the "
         "right of the diagonal."),
        (masked(~ones.triu(1)), "Only the future is left: fill in -inf where the mask is True."),
        (masked(ones.triu(0)), "A position may look at itself, and the diagonal is hidden as well: triu(1) begins one "
         "above it."),
        (masked(ones.triu(2)), "Each position still sees the next one: triu(1) begins right behind the diagonal."),
        (masked(ones.triu(1)).softmax(-1), "These are weights: leave the softmax out."),
        (scores + ones.triu(1), "The mask is added as 0 and 1: later keys should get -inf."),
    ]  # fmt: skip
    compare(got, masked(ones.triu(1)), mistakes, "The masked table")


@exercise("causal(scores(q, k)) is (T, T), and weights @ v is (T, D).")
def check_attention(attention):
    rng = torch.Generator().manual_seed(13)
    q, k, v = (2 * torch.randn(5, 3, generator=rng) for _ in range(3))
    s, hidden = q @ k.T / math.sqrt(3), torch.ones(5, 5, dtype=torch.bool).triu(1)
    masked = s.masked_fill(hidden, -torch.inf)
    mistakes = [
        (s.softmax(-1) @ v, "No mask: a position reads what comes after it."),
        (s.softmax(-1).tril() @ v, "The mask comes after the softmax, so that weights do not add up to 1 any more: "
         "mask first."),
        (masked, "These are the scores: a softmax makes weights of them, which mix the values."),
        (masked.softmax(-1), "These are the weights, (T, T): they still have to mix the values."),
        (s.tril() @ v, "The softmax is missing: scores are no weights yet."),
        (s @ v, "The softmax and the mask are missing."),
        (masked.softmax(0).nan_to_num() @ v, "The softmax runs over the wrong dimension: the weights of one query, a "
         "row, have to add up to 1."),
        (masked.softmax(-1) @ k, "The weights mix the keys: they should mix the values."),
        ((masked * math.sqrt(3)).softmax(-1) @ v, "The scores are not divided by sqrt(D)."),
        (s.T.masked_fill(hidden, -torch.inf).softmax(-1) @ v, "q and k are exchanged: a row of the scores belongs to a "
         "query, scores(q, k)."),
        (masked.exp() @ v, "The weights of a row do not add up to 1: a softmax divides by their sum."),
        (v[masked.argmax(-1)], "Each position reads only its best key: take the mean of all values by the weights."),
    ]  # fmt: skip
    got = attention(q.clone(), k.clone(), v.clone())
    if isinstance(got, torch.Tensor) and got.shape == v.shape:
        expect(got.isfinite().all(), "The result is not finite: -inf belongs into the scores, and a softmax makes "
               "weights of 0 of it.")  # fmt: skip
    compare(got, masked.softmax(-1) @ v, mistakes, "What is read")


@exercise("torch.cat([keys, k]) puts the new row below the old ones; scores(q, keys) is (1, P + 1).")
def check_step(step):
    rng = torch.Generator().manual_seed(14)
    q, k, v = (2 * torch.randn(1, 4, generator=rng) for _ in range(3))
    keys, values = (2 * torch.randn(3, 4, generator=rng) for _ in range(2))
    got = step(q.clone(), k.clone(), v.clone(), (keys.clone(), values.clone()))
    expect(got is not None, "The function returns nothing: end it with `return`.")
    expect(isinstance(got, tuple | list) and len(got) == 2, "Return two things: what is read, and the cache.")
    expect(isinstance(got[1], tuple | list) and len(got[1]) == 2, "The cache is a pair: keys and values.")
    new_keys, new_values = torch.cat([keys, k]), torch.cat([values, v])
    s = q @ new_keys.T / 2  # (1, P + 1), D = 4
    weights = s.softmax(-1)
    mistakes = [
        ((q @ keys.T / 2).softmax(-1) @ values, "The token does not see itself: put its key and its value into "
         "the cache first."),
        (new_values[:1], "The mask hides all but the first row: everything in the cache stands before the new token, "
         "so that no mask is needed."),
        ((s * 2).softmax(-1) @ new_values, "The scores are not divided by sqrt(D)."),
        (s @ new_values, "The softmax is missing: scores are no weights yet."),
        (s.softmax(0) @ new_values, "The softmax runs over the wrong dimension: the weights of one query, a row, "
         "have to add up to 1."),
        (weights @ new_keys, "The weights mix the keys: they should mix the values."),
        (weights @ torch.cat([v, values]), "Keys and values are in different orders."),
        (weights, "These are the weights, (1, P + 1): they still have to mix the values."),
        (v, "Only the new token is read: the weights run over the cache as well."),
    ]  # fmt: skip
    compare(got[0], weights @ new_values, mistakes, "What is read")
    for name, old, new, other in ("keys", keys, k, new_values), ("values", values, v, new_keys):
        cases = [
            (old, f"The cache's {name} are still the old ones: return those with the new row."),
            (torch.cat([new, old]), f"The new row stands in front of the cache's {name}: it belongs behind them."),
            (new, f"The cache's {name} are the new row alone: keep the old ones."),
            (other, "Keys and values are exchanged in the cache."),
        ]
        compare(got[1][name == "values"], torch.cat([old, new]), cases, f"The cache's {name}")


# ---------------------------------------------------------------- lesson 1: a cache is a prompt


@exercise("tokens are (1, T), model(tokens) is (1, T, C), and model.logits makes (..., vocab_size) of (..., C).")
def check_next_token_logits(next_token_logits):
    model, tokens = tiny_gpt(), torch.tensor([[3, 14, 15, 9, 2]])
    with torch.no_grad():
        hidden = model(tokens)  # (1, T, C)
        every = model.logits(hidden)  # (1, T, vocab_size)
        got = next_token_logits(model, tokens)
    whole = isinstance(got, int) or isinstance(got, torch.Tensor) and got.dtype == torch.long
    expect(not whole, "This is the number of a token: return the logits of all tokens, without argmax.")
    last = every[0, -1]
    mistakes = [
        (every, "You return logits of every position, (1, T, vocab_size): only the last position has seen all."),
        (every[0], "You return logits of every position, (T, vocab_size): only the last position has seen all."),
        (every[:, -1], "The batch is still there, (1, vocab_size): take its only row with [0]."),
        (every[0, 0], "These are the logits of the first position, which has seen nothing but itself."),
        (every[0, -2], "These are the logits of the last position but one: it has not seen the last token."),
        (every[0, 1], "These are the logits of position 1: len(tokens) is the batch, the last position is -1."),
        (
            model.logits(model(tokens[:, -1:]).detach())[0, -1],
            "The model reads the last token alone: give it all tokens, and take the last position of what it returns.",
        ),
        (hidden[0, -1], "These are hidden states, C numbers: model.logits makes vocab_size numbers of them."),
        (hidden, "These are hidden states of every position: take the last one, and model.logits of it."),
        (hidden[0], "These are hidden states of every position: take the last one, and model.logits of it."),
        (last.softmax(-1), "These are probabilities: leave the softmax out, logits were asked for."),
        (last.log_softmax(-1), "These are logarithms of probabilities: leave log_softmax out, logits were asked for."),
        (every.mean(1)[0], "This is the mean over the positions: only the last position has seen all."),
        (every.sum(1)[0], "This is the sum over the positions: only the last position has seen all."),
        (every[0, :, -1], "You take the last token of the vocabulary, not the last position of the text."),
    ]
    compare(got, last, mistakes)


@exercise("torch.arange(a, b) counts from a to b - 1.")
def check_positions_behind(positions_behind):
    for P, T in (5, 3), (0, 4), (41, 14):
        got = positions_behind(P, T)
        asked = f"For a cache of {P} and a question of {T}"
        right = torch.arange(P, P + T)
        mistakes = [
            (torch.arange(P + T), f"{asked} you number the cache as well: its positions are in its keys."),
            (torch.arange(T), f"{asked} you begin at 0 again, as if nothing stood before the question."),
            (right + 1, f"{asked} you begin at P + 1: the cache takes 0 to P - 1."),
            (right - 1, f"{asked} you begin at P - 1, where the cache's last row stands."),
            (torch.arange(P, P + T + 1), f"{asked} you return one position too many: the end is P + T - 1."),
            (torch.arange(P, P + T - 1), f"{asked} you return one position too few: torch.arange leaves its end out."),
            (torch.full((T,), P), f"{asked} all tokens stand at P: each comes one after the other."),
            (right[None], f"{asked} there is one dimension too many, (1, T): return (T)."),
            (torch.arange(P), f"{asked} these are the positions of the cache: those of the question come after them."),
        ]
        compare(got, right, mistakes, f"{asked} the result")


@exercise("The scores are q @ keys.T, (T, P + T), and the output is weights @ values, (T, D).")
def check_head(head):
    rng = torch.Generator().manual_seed(0)
    P, T, D = 3, 4, 8
    past_k, past_v, q, k, v = (2 * torch.randn(n, D, generator=rng) for n in (P, P, T, T, T))
    got = head(q, k, v, past_k, past_v)
    root, values = math.sqrt(D), torch.cat([past_v, v])
    own, behind = (q @ k.T) / root, (q @ past_k.T) / root  # (T, T), (T, P)
    ones = torch.ones(T, T, dtype=torch.bool)
    hidden, late = ones.triu(1), torch.ones(T, P + T, dtype=torch.bool).triu(1)

    def masked(own, where=hidden, value=-torch.inf):
        return own.masked_fill(where, value)  # (T, T)

    def mixed(behind, own):
        return torch.cat([behind, own], 1).softmax(-1) @ values

    scores = torch.cat([behind, masked(own)], 1)  # (T, P + T)
    weights, unmasked = scores.softmax(-1), torch.cat([behind, own], 1)
    after = unmasked.softmax(-1)
    mistakes = [
        (weights, "These are the weights, (T, P + T): they still have to mix the values."),
        (mixed(behind * root, masked(own * root)), "The scores are not divided by sqrt(D)."),
        (mixed(behind / root, masked(own / root)), "The scores are divided by D: it is its square root."),
        (mixed(behind * D, masked(own * D)), "The scores are multiplied by sqrt(D): divide by it."),
        (mixed(behind * root / T**0.5, masked(own * root / T**0.5)), "The scores are divided by sqrt(T), the number of "
         "queries: it is sqrt(D), their width."),
        (mixed(behind * root / P**0.5, masked(own * root / P**0.5)), "The scores are divided by sqrt(P), the number of "
         "rows of the cache: it is sqrt(D), their width."),
        (mixed(behind * root, masked(own)), "The scores of the cache are not divided by sqrt(D)."),
        (mixed(behind, masked(own * root)), "The scores of the question are not divided by sqrt(D)."),
        (mixed(behind, own), "No mask: a position reads those that come after it."),
        (mixed(behind, masked(own, value=0)), "Masked scores are 0, so that their weights are not: fill in -inf before "
         "the softmax."),
        (mixed(behind, masked(own, ones.triu(0))), "The mask hides a position from itself: the triangle begins one "
         "column further right, triu(1)."),
        (mixed(behind, masked(own, ones.triu(2))), "The mask begins one column late: a position reads the next one."),
        (mixed(behind, masked(own, ones.tril())), "The mask is the wrong way round: it hides what came before."),
        (mixed(behind, masked(own, ones.tril(-1))), "The mask is the wrong way round: it hides what came before."),
        (mixed(behind, own + ones.triu(1)), "The mask of True and False is added to the scores as 1 and 0: fill in "
         "-inf where it is True."),
        (unmasked.masked_fill(late, -torch.inf).softmax(-1) @ values, "The mask begins at the first row of the "
         "cache: every position may read all P of them, so the triangle begins P columns later."),
        (torch.cat([after[:, :P], masked(after[:, P:], value=0)], 1) @ values, "The mask comes after the softmax, so "
         "that the weights of a row do not add up to 1: fill in -inf before it."),
        (masked(own).softmax(-1) @ v, "The cache is left out: nothing reads its rows."),
        (behind.softmax(-1) @ past_v, "The question's own positions are left out."),
        (behind.softmax(-1) @ past_v + masked(own).softmax(-1) @ v, "The cache and the question have a softmax each: "
         "one softmax runs over both, so that they compete for the same weight."),
        (weights[:, P:] @ v, "The values of the cache are left out: its weights mix past_v."),
        (weights @ torch.cat([v, past_v]), "Keys and values are in different orders: the cache comes first in both."),
        (torch.cat([masked(own), behind], 1).softmax(-1) @ values, "Keys and values are in different orders: the cache "
         "comes first in both."),
        (mixed(behind, masked(own.T)), "q and k are exchanged: a row of the scores belongs to a query, q @ k.T."),
        (mixed(q @ past_v.T / root, masked(q @ v.T / root)), "The scores are those of values: queries meet keys."),
        (weights @ torch.cat([past_k, k]), "Keys are mixed: the weights mix values."),
        (scores.softmax(0).nan_to_num() @ values, "The softmax runs over the wrong dimension: the weights of one "
         "query, a row, have to add up to 1."),
        (unmasked @ values, "The softmax is missing."),
        (unmasked.log_softmax(-1) @ values, "log_softmax gives logarithms: the weights are those of softmax."),
    ]  # fmt: skip
    if isinstance(got, torch.Tensor) and got.shape == (T, D):
        expect(not got.isinf().any() and not got.isnan().any(), "The output is not finite: -inf belongs into the "
               "scores, and a softmax makes weights of 0 of it.")  # fmt: skip
    compare(got, weights @ values, mistakes, "The output")


@exercise("model.prefill takes (1, P, C), rows[None], and model.loss takes (N, C) and (N), both without a batch.")
def check_gradient_of_rows(gradient_of_rows):
    model, rng = tiny_gpt(), torch.Generator().manual_seed(1)
    rows = torch.randn(5, model.config.n_embd, generator=rng)  # (P, C)
    tokens, targets = (torch.randint(40, (3, 7), generator=rng) for _ in range(2))  # (B, T) each

    def gradient(loss_of):
        mine = rows.clone().requires_grad_(True)
        hidden = model(tokens, model.prefill(mine[None]))  # (B, T, C)
        return torch.autograd.grad(loss_of(hidden), mine)[0]  # (P, C)

    def mean(hidden, targets=targets):
        return model.loss(hidden.flatten(0, 1), targets.flatten())

    given, right = rows.clone(), gradient(mean)
    try:
        got = gradient_of_rows(model, given, tokens, targets)
    except RuntimeError as error:
        if "does not require grad" in str(error):
            expect(given.requires_grad, "Nothing requires a gradient: call rows.requires_grad_(True) before rows are "
                   "used.")  # fmt: skip
            raise Wrong("rows ask for a gradient, but the loss does not depend on them: pass the cache on, "
                        "model(tokens, past), and use no torch.no_grad(), .detach() or .data.") from None  # fmt: skip
        raise
    expect(all(p.grad is None for p in model.parameters()), "The model's weights have gradients now: they are "
           "frozen, only the rows may require one.")  # fmt: skip
    expect(got is not None, "The function returns None: return the .grad of the very tensor that went into the loss, "
           "after loss.backward().")  # fmt: skip
    loss = mean(model(tokens, model.prefill(rows[None])))
    mistakes = [
        (right[None], "The batch dimension is still there, (1, P, C): return (P, C)."),
        (right * targets.numel(), "The gradient is that of the sum over all positions: model.loss is their mean."),
        (right * len(tokens), "The gradient is that of a sum over the batch: model.loss is the mean over all."),
        (2 * right, "The gradient is twice what it should be: gradients of two calls of backward() add up."),
        (-right, "The sign is wrong: return the gradient itself, not the step against it."),
        (rows - right, "These are rows after a step: return the gradient alone."),
        (rows, "These are the rows: return their gradient, rows.grad."),
        (loss, "This is the loss: return its gradient by the rows."),
        (gradient(lambda hidden: mean(hidden, tokens)), "The loss compares with tokens, the inputs: targets are the "
         "tokens that come next."),
        (gradient(lambda hidden: mean(hidden[:, -1:], targets[:, -1:])), "The loss looks at the last position only: "
         "the mean is over all of them."),
        (gradient(lambda hidden: mean(hidden[:, :-1], targets[:, 1:])), SHIFTED),
    ]  # fmt: skip
    compare(got, right, mistakes, "The gradient")


SHIFTED = "The targets are shifted once more: they are the next tokens already."


# ---------------------------------------------------------------- lesson 2: sixty-five rows learn addition


@exercise("A comparison such as torch.arange(n) >= m gives a tensor of True and False.")
def check_answer_positions(answer_positions):
    for Q, A in (5, 3), (8, 24), (2, 4):
        got, T = answer_positions(Q, A), Q + A - 1
        at = torch.arange(T)
        case = f"For a question of {Q} tokens and an answer of {A}"
        right = at >= Q - 1
        mistakes = [
            (at >= Q, f"{case} the mask begins one position late: the last token of the question predicts the "
             "answer's first."),
            (at > Q, f"{case} the mask begins two positions late: the last token of the question, at Q - 1, predicts "
             "the answer's first."),
            (at >= Q - 2, f"{case} the mask begins one position early: position Q - 2 predicts the question's last."),
            (at < Q - 1, f"{case} the mask is inverted: it is True where the target belongs to the question."),
            (at < Q, f"{case} the mask is True where a token of the question is read: its target counts."),
            (at == Q - 1, f"{case} the mask is True at the answer's first token alone: the answer has {A}."),
            (at >= A - 1, f"{case} Q and A are exchanged."),
            (at >= A, f"{case} Q and A are exchanged."),
            (torch.ones(T, dtype=torch.bool), f"{case} the mask is True everywhere, also for the question."),
            (at[Q - 1 :], f"{case} these are the positions: return True and False for each of the Q + A - 1."),
        ]  # fmt: skip
        if isinstance(got, torch.Tensor):
            expect(len(got.flatten()) != Q + A, f"{case} the mask has a place for each token, Q + A: the last token is "
                   "not read, so there are Q + A - 1 positions.")  # fmt: skip
            expect(got.shape != (A,) or A == T, f"{case} the result has a place for each token of the answer: it "
                   "should have one for each of the Q + A - 1 positions.")  # fmt: skip
        compare(got, right, mistakes, f"{case} the mask")


@exercise("model.prefill takes (1, P, C), rows[None]; model.loss takes hidden states (N, C) and targets (N), which "
          "hidden[answer] and targets[answer] are.")  # fmt: skip
def check_prompt_loss(prompt_loss):
    model, rng = tiny_gpt(), torch.Generator().manual_seed(2)
    rows = torch.randn(5, model.config.n_embd, generator=rng).requires_grad_(True)  # (P, C)
    tokens, targets = (torch.randint(40, (3, 9), generator=rng) for _ in range(2))  # (B, T) each
    answer = torch.arange(9) >= torch.tensor([[3], [5], [4]])  # (B, T)
    got = prompt_loss(rows, model, tokens, targets, answer)
    expect(
        not isinstance(got, float), "The loss is a plain number: keep the tensor, without .item(), for its gradient."
    )
    hidden = model(tokens, model.prefill(rows[None]))  # (B, T, C)
    mistakes = loss_mistakes(model, hidden, model(tokens), tokens, targets, answer)
    compare(got, model.loss(hidden[answer], targets[answer]), mistakes, "The loss")
    expect(got.requires_grad, "The loss has lost its gradient: no .detach(), .data or torch.no_grad() here.")


def loss_mistakes(model, hidden, alone, tokens, targets, answer):
    """Losses that are not the answers' mean. hidden and alone (B, T, C): behind the prompt and without it."""

    def mean(hidden, targets):
        return model.loss(hidden.flatten(0, -2), targets.flatten())

    right, zeros = mean(hidden[answer], targets[answer]), hidden * answer[..., None]
    each = torch.stack([mean(h[a], t[a]) for h, t, a in zip(hidden, targets, answer)])
    multiplied = ("Multiplying by the mask makes zeros, and these are still positions with a loss: take "
                  "hidden[answer] and targets[answer].")  # fmt: skip
    later = answer[:, 1:]
    return [
        (mean(hidden, targets), "The mean is over all positions, the question's too: take hidden[answer] and "
         "targets[answer]."),
        (mean(zeros, targets), multiplied),
        (mean(zeros, targets * answer), multiplied),
        (mean(hidden, targets * answer), multiplied),
        (right * answer.float().mean(), multiplied),
        (mean(hidden[~answer], targets[~answer]), "The mean is over the question's positions."),
        (mean(alone[answer], targets[answer]), "The prompt is left out: the model takes its cache as past."),
        (mean(hidden[answer], tokens[answer]), "The loss compares with tokens, the inputs: targets are the tokens that "
         "come next."),
        (mean(hidden[:, :-1][later], targets[:, 1:][later]), SHIFTED),
        (mean(hidden[:, -1], targets[:, -1]), "The loss looks at the last position only: the answer has more."),
        (right * answer.sum(), "This is the sum over the answers' positions: model.loss is their mean."),
        (-right, "The sign is wrong: model.loss is what training makes smaller."),
        (right.exp(), "This is exp(loss), the perplexity: return the loss."),
        (each, "These are losses of each text: return one mean over all answer positions."),
        (each.mean(), "This is the mean of each text's mean, so that short answers weigh more: take one mean over "
         "all answer positions."),
    ]  # fmt: skip


@exercise("loss_of(rows, batch) is called once for each batch, and returns a loss, ().")
def check_tune(tune):
    rng = torch.Generator().manual_seed(3)
    goals = torch.randn(6, 4, 3, generator=rng)  # a goal for the rows (4, 3) in each of 6 steps
    begin = torch.randn(4, 3, generator=rng)

    def loss_of(rows, goal):
        expect(torch.is_grad_enabled(), "The loss is computed under torch.no_grad(), so that nothing has a gradient.")
        expect(isinstance(goal, torch.Tensor) and goal.shape == begin.shape, "loss_of gets something else than one "
               "batch: call it in the loop, for each batch.")  # fmt: skip
        return (rows - goal).square().sum()

    def steps(goals=goals, clear=True, again=False, lr=0.1, weight_decay=0.0, kind=torch.optim.AdamW, sign=1):
        rows = torch.nn.Parameter(begin.clone())
        more = {"weight_decay": weight_decay}
        optimizer = kind([rows], lr=lr, **more)
        for goal in goals:
            optimizer = kind([rows], lr=lr, **more) if again else optimizer
            (sign * loss_of(rows, goal)).backward()
            optimizer.step()
            if clear:
                optimizer.zero_grad()
        return rows.detach()

    try:
        got = tune(begin.clone(), loss_of, list(goals), 0.1)
    except RuntimeError as error:
        expect("does not require grad" not in str(error), "rows are a plain tensor, which gets no gradient: make "
               "torch.nn.Parameter(rows) of them before the loop, for the optimizer and the loss.")  # fmt: skip
        raise
    mistakes = [
        (begin, "The rows have not moved: the optimizer needs the very rows that go into the loss, and in each step "
         "loss.backward(), then optimizer.step(), then optimizer.zero_grad()."),
        (steps(clear=False), "The gradients of all batches add up: call optimizer.zero_grad() after each step."),
        (steps(again=True), "A new optimizer is made for each batch, so that AdamW forgets its averages: make it "
         "before the loop."),
        (steps(goals[:1]), "Only the first batch is used: `return` stands inside the loop, or the loop ends early."),
        (steps(goals[-1:]), "Only the last batch is used: the step belongs inside the loop."),
        (steps(goals[:-1]), "The last batch is not used."),
        (steps(goals[1:]), "The first batch is not used."),
        (steps([*goals, *goals]), "Each batch is used twice: one step for each."),
        (steps(weight_decay=0.01), "The optimizer has weight decay, 0.01 by default: it pulls the rows to 0, which "
         "is no meaningful place. Give weight_decay=0."),
        (steps(kind=torch.optim.SGD), "This is SGD: AdamW was asked for."),
        (steps(kind=torch.optim.SGD, clear=False), "This is SGD, and gradients of all batches add up: AdamW was asked "
         "for."),
        (steps(lr=1e-3), "The learning rate is AdamW's default, 0.001: pass lr on."),
        (steps(lr=1e-3, weight_decay=0.01), "The learning rate is AdamW's default, 0.001, and so is the weight decay: "
         "pass lr on, and weight_decay=0."),
        (steps(sign=-1), "The steps make the loss larger: backward() is called on the loss itself."),
    ]  # fmt: skip
    if isinstance(got, torch.Tensor):
        expect(got.shape != (), "This is a loss: return the rows after the last step.")
        got = got.detach()
    compare(got, steps(), mistakes, "The result")


@exercise("A cache is a list of pairs (keys, values), with (1, n_head, P, D) each: rows are the dimension 2.")
def check_without_row(without_row):
    rng, P = torch.Generator().manual_seed(4), 5
    # as many heads as rows, so that a wrong dimension does not show itself by an error
    cache = [tuple(torch.randn(1, P, P, 3, generator=rng) for _ in range(2)) for _ in range(3)]
    before = [tuple(x.clone() for x in pair) for pair in cache]
    for i in (1, 0, 4):
        got = without_row(cache, i)
        expect(got is not None, "The function returns nothing: end it with `return`.")
        same = len(cache) == 3 and all(torch.equal(a, b) for one, two in zip(before, cache) for a, b in zip(one, two))
        expect(same, "The cache that was given is changed: make a new one, it is needed again.")
        expect(isinstance(got, list | tuple), f"The result is a {type(got).__name__}: a cache is a list, of a pair for "
               "each layer.")  # fmt: skip
        expect(len(got) == 3, f"The result has {len(got)} layers, the cache has 3.")
        keep = [p for p in range(P) if p != i]
        for n, (pair, mine) in enumerate(zip(cache, got)):
            expect(
                isinstance(mine, list | tuple) and len(mine) == 2, f"Layer {n + 1} should be a pair, keys and values."
            )
            for what, x, y in zip(("keys", "values"), pair, mine):
                where = f"Layer {n + 1}, {what}"
                mistakes = [
                    (x, f"{where}: nothing is missing. The row has to go from keys and values of every layer."),
                    (x[:, keep], f"{where}: a head is missing, not a row. Their dimensions are (1, n_head, P, D)."),
                    (x[:, :, [i]], f"{where}: this is row {i} alone, all others should be there."),
                    (x[:, :, i], f"{where}: this is row {i} alone, all others should be there."),
                    (x[:, :, :i], f"{where}: everything behind row {i} is missing as well."),
                    (x[:, :, i + 1 :], f"{where}: everything in front of row {i} is missing as well."),
                    *[(x[:, :, [p for p in range(P) if p != j]], f"{where}: row {j} is missing, not {i}.")
                      for j in range(P) if j != i],
                    (x[:, :, [p for p in range(P) if p not in (i, i + 1)]], f"{where}: row {i + 1} is missing too."),
                    (torch.cat([x[:, :, :i], 0 * x[:, :, [i]], x[:, :, i + 1 :]], 2), f"{where}: the row is set to "
                     "0. A key of 0 still gets a share of the softmax: take the row out."),
                    (pair[0][:, :, keep], f"{where}: these are the keys again."),
                    (pair[1][:, :, keep], f"{where}: these are the values."),
                ]  # fmt: skip
                compare(y, x[:, :, keep], mistakes, where)


# ---------------------------------------------------------------- lesson 3: where a prompt begins


def drawn_otherwise(hybrid_rows, table, trigger):
    """Random rows need not come from one call of randn, but from rng and with the table's standard deviation."""

    def draw(seed):
        return hybrid_rows(table, 8000, list(trigger), torch.Generator().manual_seed(seed))[:8000]

    one, again, other = draw(1), draw(1), draw(2)
    std, drawn = table.std().item(), f"a standard deviation of {one.std().item():.3f} around {one.mean().item():.3f}"
    expect(close(one, again) and not close(one, other), "The random rows do not come from rng: pass generator=rng.")
    expect(not close(one[0], one[1]), "All random rows are the same.")
    fits = (one.std(0) / std - 1).abs().max() < 0.04 and one.mean(0).abs().max() < 0.05 * std
    expect(fits, f"The random rows have {drawn}: each column should have {std:.3f} around 0, as "
           "torch.randn(n_random, C, generator=rng) * table.std() has.")  # fmt: skip


@exercise("table is (vocab_size, C), torch.randn(n_random, C, generator=rng) is (n_random, C), and table[trigger] is "
          "(len(trigger), C).")  # fmt: skip
def check_hybrid_rows(hybrid_rows):
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.05, 0.4, 8) + 0.1
    trigger = [7, 3, 3]

    def draw(n=5, kind=torch.randn, seed=11):
        return kind(n, 8, generator=torch.Generator().manual_seed(seed))

    words = table[torch.tensor(trigger)]
    for n in (5, 0):
        got = hybrid_rows(table, n, list(trigger), torch.Generator().manual_seed(11))
        scaled = draw(n) * table.std()
        mistakes = [
            (torch.cat([words, scaled]), "The trigger stands first: the random rows come before it."),
            (torch.cat([draw(n), words]), "The standard deviation of the random rows is 1: it should be the "
             "table's."),
            (torch.cat([draw(n) / table.std(), words]), "The random rows are divided by the table's standard "
             "deviation: multiply by it."),
            (torch.cat([draw(n) * table.std(0), words]), "Each column has a standard deviation of its own: take "
             "one of the whole table, table.std()."),
            (torch.cat([draw(n) * table.var(), words]), "The random rows are scaled by the table's variance: take "
             "its standard deviation."),
            (torch.cat([draw(n) * table.mean(), words]), "The random rows are scaled by the table's mean: take its "
             "standard deviation."),
            (torch.cat([scaled + table.mean(), words]), "The table's mean is added to the random rows: they were to "
             "be drawn around 0."),
            (torch.cat([draw(n, torch.rand) * table.std(), words]), "torch.rand draws between 0 and 1: torch.randn "
             "draws around 0."),
            (torch.cat([scaled, words * table.std()]), "The trigger's rows are scaled too: they are embeddings as "
             "they are."),
            (scaled, "The trigger's rows are missing."),
            (words, "The random rows are missing."),
        ]  # fmt: skip
        right = torch.cat([scaled, words])
        known = isinstance(got, torch.Tensor) and any(got.shape == m.shape and close(got, m) for m, _ in mistakes)
        if isinstance(got, torch.Tensor) and got.shape == right.shape and n and not known:
            expect(close(got[n:], words), "The trigger's rows are not table[trigger], in this order.")
            drawn_otherwise(hybrid_rows, table, trigger)
        else:
            compare(got, right, mistakes, "The result")


@exercise("a and b are lists of True and False, with a place for each question.")
def check_sign_test(sign_test):
    cases = [(3, 14, 30, 5), (1, 1, 0, 0), (0, 0, 9, 2), (10, 2, 1, 1), (0, 6, 0, 0)]
    for only_a, only_b, both, neither in cases:
        a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
        b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
        got, n, k = sign_test(a, b), only_a + only_b, min(only_a, only_b)
        expect(isinstance(got, tuple | list) and len(got) == 3, "Return three numbers: how many only the first had "
               "right, how many only the second, and p.")  # fmt: skip
        case = f"Where only the first is right in {only_a} questions and only the second in {only_b}"
        expect(
            all(map(is_whole, got[:2])), f"{case} your counts are {got[0]!r} and {got[1]!r}: they are whole numbers."
        )
        expect(not isinstance(got[2], str), f"{case} p is a text: return a number.")
        as_well = both and (got[0] == only_a + both or got[1] == only_b + both)
        expect(not as_well, f"{case} you count those that both have right as well: they tell nothing apart.")
        expect(only_a == only_b or tuple(got[:2]) != (only_b, only_a), f"{case} your counts are exchanged.")
        expect(n not in got[:2] or not (only_a and only_b), f"{case} you count {tuple(got[:2])}: {n} is in how many "
               "they differ, one way or the other.")  # fmt: skip
        expect(tuple(got[:2]) == (only_a, only_b), f"{case} you count {tuple(got[:2])}.")

        def tail(n, k, first=0):
            return sum(math.comb(n, j) for j in range(first, k + 1)) / 2**n

        right, p, whole = min(1, 2 * tail(n, k)), float(got[2]), len(a)
        mistakes = [
            (2 * tail(n, k), f"{case} p is {p:g}: a probability above 1. Take the smaller of it and 1."),
            (tail(n, k), f"{case} p is {p:g}, one direction alone: double it."),
            (2 * math.comb(n, k) / 2**n, f"{case} p is {p:g}, of exactly {k} and no other count: add up j from 0 "
             f"to {k}."),
            (2 * tail(n, k - 1), f"{case} p is {p:g}: the sum ends at {k} - 1, because range({k}) leaves out {k}."),
            (2 * tail(n, k, first=1), f"{case} p is {p:g}: the sum begins at 1, and j begins at 0."),
            (2 * tail(whole, k), f"{case} p is {p:g}: n is the number of questions on which they differ, not of all."),
            (2 * 2**n * tail(n, k), f"{case} p is {p:g}: each term is divided by 2**n."),
            (min(1, 2 * 2**n * tail(n, k)), f"{case} p is {p:g}: each term is divided by 2**n, and k is the smaller "
             "count."),
            (min(1, 2 * tail(n, max(only_a, only_b))), f"{case} p is {p:g}: k is the smaller of the two counts."),
            (2 * tail(n, max(only_a, only_b)), f"{case} p is {p:g}: k is the smaller of the two counts."),
            (1 - right, f"{case} p is {p:g}, what is left of 1: p is the probability of a result as uneven as this."),
            (100 * right, f"{case} p is {p:g}, in percent: return a number between 0 and 1."),
        ]  # fmt: skip
        for mistake, sentence in mistakes:
            expect(abs(mistake - right) < 1e-9 or abs(p - mistake) > 1e-9, sentence)
        expect(abs(p - right) < 1e-9, f"{case} p is {p:g}, and it should be {right:.4g}.")


@exercise("Both are texts, and what was written may be shorter or longer than the true answer.")
def check_first_error(first_error):
    true = "8705;5612;3418;000=825$"
    cases = [
        ("8705;5612;3418;000=825$", "", "a right answer"),
        ("8705;5511;3418;000=815$", "digit", "the second digit of the second column misread"),
        ("8705;5612;2417;000=725$", "digit", "the first digit of the third column misread"),
        ("8705;5601;3418;000=815$", "carry", "a wrong carry in the second column"),
        ("8705;5601;3407;000=715$", "carry", "a wrong carry, and other errors that follow from it"),
        ("8705;5613;3418;000=835$", "sum", "a wrong digit of the sum in the second column"),
        ("8705;5612;3418;001=1825$", "carry", "a wrong last carry"),
        ("8705;5612;3418;000=852$", "copy", "all steps right, and the final sum not"),
        ("8705;5612;3418;000=82$", "copy", "all steps right, and a final sum that ends early"),
        ("8705;5612;", "digit", "an answer that ends after two columns"),
        ("8705;5612;3418;000=8255$", "copy", "all steps right, and a digit too many at the end"),
    ]
    for written, kind, what in cases:
        got = first_error(written, true)
        expect(got is not None, f"For {what}, {written}, the function returns nothing.")
        expect(isinstance(got, str), f"For {what}, {written}, the result is {got!r}: a word was asked for.")
        later = "" if written != cases[4][0] else " Look at the first difference only, what follows comes from it."
        expect(got == kind, f"For {what}, {written} instead of {true}, the result is {got!r} and should be "
               f"{kind!r}.{later}")  # fmt: skip


# ---------------------------------------------------------------- lesson 4: what a prompt can move


@exercise("All four arguments are whole numbers.")
def check_count_numbers(count_numbers):
    for P, C, n_layer, r in (20, 256, 6, 8), (1, 12, 2, 3):
        got = count_numbers(P, C, n_layer, r)
        got = tuple(got) if isinstance(got, torch.Tensor) else got
        expect(isinstance(got, tuple | list) and len(got) == 3, "Return three numbers: of prompt tuning, of P-tuning "
               "v2 and of LoRA.")  # fmt: skip
        case = f"With P = {P}, C = {C}, n_layer = {n_layer} and r = {r}"
        expect(all(map(is_whole, got)), f"{case} you return {tuple(got)}: counts are whole numbers, so "
               "divide with // if at all.")  # fmt: skip
        prompt, deep, lora = got
        expect(prompt == P * C, f"{case} prompt tuning has P rows of C numbers, {P * C}, and you say {prompt}.")
        expect(deep != P * n_layer * C, f"{case} you count keys or values of P-tuning v2: there are both.")
        expect(deep != P * 2 * C, f"{case} you count one layer of P-tuning v2: there are {n_layer}.")
        right = P * n_layer * 2 * C
        expect(deep == right, f"{case} P-tuning v2 has {right} numbers, and you say {deep}.")
        expect(lora != 16 * r * C, f"{case} you count one layer of LoRA: there are {n_layer}.")
        expect(lora != n_layer * 12 * C * C, f"{case} you count the weights that LoRA leaves alone: it trains two "
               "thin matrices for each of them.")  # fmt: skip
        expect(lora != n_layer * r * 7 * C and lora != n_layer * r * 9 * C, f"{case} you count one of LoRA's two "
               "matrices.")  # fmt: skip
        expect(lora != n_layer * 2 * r * C, f"{case} you count one matrix of each block: LoRA updates four.")
        expect(lora == 16 * n_layer * r * C, f"{case} LoRA has {16 * n_layer * r * C} numbers, you say {lora}: a "
               "matrix from n_in to n_out gets r * n_in and n_out * r of them.")  # fmt: skip


@exercise("weights are (n_head, T, P + T): the columns are the last dimension.")
def check_weight_on_prefix(weight_on_prefix):
    P, T = 3, 4
    w = (2 * torch.randn(5, T, P + T, generator=torch.Generator().manual_seed(8))).softmax(-1)  # (n_head, T, P + T)
    mistakes = [
        (w[..., P:].sum(-1), "This is the weight on the question's own tokens, 1 - a."),
        (w[..., :P].mean(-1), "This is the mean over the prefix's rows: add their weights up."),
        (w[..., :P].amax(-1), "This is the largest weight on a row of the prefix: add them all up."),
        (w[..., :P].prod(-1), "This is the product of the weights: add them up."),
        (w[..., :P].sum(1), "The sum runs over positions: it should run over the columns, the last dimension."),
        (w[..., :P].sum(0), "The sum runs over heads: it should run over the columns, the last dimension."),
        (w[:, :P].sum(-1), "You take the first P positions: the prefix is the first P columns."),
        (w[:P].sum(-1), "You take the first P heads: the prefix is the first P columns."),
        (w.sum(-1), "These are all 1, the sum of a whole row: add up the first P columns."),
        (w[..., :P], "These are the weights of each row, (n_head, T, P): add them up."),
        (w[..., :P].sum(), "This is one number: add up over the columns only."),
        (w[..., :P].sum(-1, keepdim=True), "The last dimension is still there, (n_head, T, 1): leave keepdim out."),
        (w[..., -P:].sum(-1), "These are the last P columns: the prefix is the first P."),
        (w[..., P], "This is one column, of the question's first token: take the P columns before it."),
        (w[..., P - 1], "This is the column of the last row: take all P columns."),
        (w[..., :P].sum(-1).mean(0), "The heads are averaged: keep them apart."),
        (w[..., : P - 1].sum(-1), "The last row of the prefix is left out."),
        (w[..., : P + 1].sum(-1), "The question's first token is counted as well."),
        (w[..., 1:P].sum(-1), "The first row of the prefix is left out."),
    ]
    compare(weight_on_prefix(w.clone(), P), w[..., :P].sum(-1), mistakes, "a")


@exercise("a is (T, 1) beside y (T, D), so keep its dimension, .sum(-1, keepdim=True); (T, P) @ (P, D) is (T, D).")
def check_with_prefix(with_prefix):
    rng, P, T, D = torch.Generator().manual_seed(9), 3, 4, 6
    future = torch.cat([torch.zeros(T, P), torch.full((T, T), -torch.inf).triu(1)], 1)
    weights = (2 * torch.randn(T, P + T, generator=rng) + future).softmax(-1)
    past_v, v = torch.randn(P, D, generator=rng), torch.randn(T, D, generator=rng)
    behind, own = weights[:, :P], weights[:, P:]
    a = behind.sum(-1, keepdim=True)
    y = (own / (1 - a)) @ v
    mistakes = [
        (y + behind @ past_v, "y is not turned down: weight that goes to the prefix is taken from it, (1 - a) y."),
        (a * y + (1 - a) * (behind @ past_v), "a and 1 - a are exchanged."),
        (a * y + behind @ past_v, "y is multiplied by a: what is left for it is 1 - a."),
        ((1 - a) * y + a * (behind @ past_v), "The prefix's part is multiplied by a once more: its weights a_i add "
         "up to a already."),
        ((1 - a) * y + a * past_v.mean(0), "The prefix's values are averaged: each has a weight of its own."),
        ((1 - a) * y + past_v.sum(0), "The prefix's values are added without their weights a_i."),
        ((1 - a) * y - behind @ past_v, "The prefix's part is added, not taken away."),
        ((1 - a) * (y + behind @ past_v), "The prefix's part is multiplied by 1 - a as well: only y is."),
        ((1 - a) * y + behind @ past_v / a, "The prefix's part is divided by a: its weights a_i are what they are."),
        ((1 - a) * y, "The prefix's own values are missing."),
        (behind @ past_v, "The question's part, (1 - a) y, is missing."),
        (y, "This is y without the prefix."),
        ((1 - behind.mean(-1, keepdim=True)) * y + behind @ past_v, "a is the sum of the prefix's weights, not "
         "their mean."),
        ((1 - a.sum()) * y + behind @ past_v, "a is added up over the positions: each position has its own."),
        ((1 - a).mean() * y + behind @ past_v, "a is averaged over the positions: each position has its own."),
        (y / (1 - a) + behind @ past_v, "y is divided by 1 - a: it is multiplied."),
    ]  # fmt: skip
    compare(with_prefix(y, weights, past_v), weights @ torch.cat([past_v, v]), mistakes, "y'")


@exercise("x is (T, n_in), so x @ W.T is (T, n_out), x @ A.T is (T, r), and times B.T that is (T, n_out).")
def check_lora_linear(lora_linear):
    rng, T, n, r, alpha = torch.Generator().manual_seed(10), 4, 6, 3, 16.0
    x, W, A, B = (torch.randn(*s, generator=rng) for s in ((T, n), (n, n), (r, n), (n, r)))
    plain, update = x @ W.T, (x @ A.T) @ B.T
    mistakes = [
        (plain + update, "The update is not scaled: multiply it by alpha / r."),
        (plain + alpha * update, "The update is multiplied by alpha, not by alpha / r."),
        (plain + update / r, "The update is divided by r, and not multiplied by alpha."),
        (plain + r / alpha * update, "The scale is upside down: it is alpha / r."),
        (plain + alpha / r**0.5 * update, "The scale is alpha / sqrt(r), that of rsLoRA: here it is alpha / r."),
        (plain + alpha // r * update, "alpha // r rounds down: divide with /."),
        (plain + alpha / n * update, "The scale is alpha / n_in: r is the rank, the number of rows of A."),
        (plain - alpha / r * update, "The update is taken away: it is added."),
        (alpha / r * update, "W x is missing: LoRA adds to it."),
        (alpha / r * (plain + update), "W x is scaled as well: only the update is."),
        (x @ W + alpha / r * update, "W stands the wrong way: it is (n_out, n_in), so x @ W.T."),
        (x @ W + alpha / r * (x @ (B @ A)), "The matrices stand the wrong way: W is (n_out, n_in), so x @ W.T."),
        (plain + alpha / r * (x @ (B @ A)), "B A stands the wrong way: it is (n_out, n_in), so x @ (B @ A).T."),
        (plain + alpha / r * (plain @ A.T) @ B.T, "The update is made of W x: it is made of x."),
        (plain, "The update is missing."),
    ]
    compare(lora_linear(x, W, A, B, alpha), plain + alpha / r * update, mistakes, "y")


# ---------------------------------------------------------------- lesson 5: from a context to a cache


@exercise("teacher and student are (N, vocab_size) each: the softmax and the sum run over the last dimension.")
def check_divergence(divergence):
    rng = torch.Generator().manual_seed(6)
    teacher, student = (2 * torch.randn(7, 11, generator=rng) for _ in range(2))  # (N, vocab_size) each
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    each = (p * (log_p - log_q)).sum(-1)  # (N)
    mistakes = [
        (each, "This is the divergence at each position, (N): take its mean."),
        (each.sum(), "This is the sum over the positions: take their mean."),
        (each.mean() / 11, "The mean runs over the vocabulary too: add up over it, then take the mean over positions."),
        ((q * (log_q - log_p)).sum(-1).mean(), "Teacher and student are exchanged: p, in front of the brackets, is "
         "the teacher's."),
        ((q * (log_p - log_q)).sum(-1).mean(), "The probabilities in front of the brackets are the student's: p is the "
         "teacher's."),
        ((p - q).abs().sum(-1).mean(), "This is the distance of the probabilities, not of their logarithms."),
        ((p * (p - q)).sum(-1).mean(), "The logarithms in the brackets are missing."),
        (-(p * log_q).sum(-1).mean(), "This is the cross-entropy: the term p log p is missing, so that it is not 0 "
         "for a perfect student."),
        (-each.mean(), "The sign is wrong: a divergence is never negative."),
        (each.mean() / math.log(2), "This is in bits: take the natural logarithm, for nats."),
        ((teacher.softmax(0) * (teacher.log_softmax(0) - student.log_softmax(0))).sum(-1).mean(), "The softmax "
         "runs over positions: it should run over the vocabulary, the last dimension."),
        ((p * (teacher - student)).sum(-1).mean(), "These are logits, not logarithms of probabilities: take "
         "log_softmax of both."),
        ((teacher * (log_p - log_q)).sum(-1).mean(), "In front of the brackets are logits: p is their softmax."),
        ((log_p * (log_p - log_q)).sum(-1).mean(), "In front of the brackets is log p: it is p, log_p.exp()."),
        ((log_p - log_q).sum(-1).mean(), "p in front of the brackets is missing."),
        ((log_p - log_q).mean(), "p in front of the brackets is missing."),
        (((teacher - student) ** 2).mean(), "This is a squared error of logits."),
        (((p - q) ** 2).sum(-1).mean(), "This is a squared error of probabilities."),
        ((p * (log_p - q)).sum(-1).mean(), "kl_div takes logarithms of the student's probabilities: log_softmax."),
    ]  # fmt: skip
    compare(divergence(teacher, student), each.mean(), mistakes, "The divergence")


@exercise("Each tensor is (1, n_head, P_i, D): its rows are the dimension 2.")
def check_stack(stack):
    rng, lengths = torch.Generator().manual_seed(7), [3, 5, 1]
    keys = [torch.randn(1, 2, n, 4, generator=rng) for n in lengths]
    got = stack(list(keys))
    expect(got is not None, "The function returns nothing: end it with `return`.")
    expect(isinstance(got, tuple | list) and len(got) == 2, "Return two things: the stacked keys, and how many "
           "positions are empty in each.")  # fmt: skip
    pad = torch.nn.functional.pad
    right = torch.cat([pad(x, (0, 0, 5 - x.size(2), 0)) for x in keys])
    mistakes = [
        (torch.cat([pad(x, (0, 0, 0, 5 - x.size(2))) for x in keys]), "The empty positions stand at the end: the "
         "question follows there, so they belong at the beginning."),
        (torch.cat([x[:, :, -1:] for x in keys]), "All are cut to the shortest: bring them to the longest."),
        (torch.cat([x[:, :, :1] for x in keys]), "All are cut to the shortest: bring them to the longest."),
        (torch.cat(keys, 2), "The caches stand behind one another in one row: each is a row of the batch."),
        (right[None], "There is one dimension too many: torch.cat joins them along the batch, torch.stack makes a "
         "new dimension."),
        (right[:, None], "There is one dimension too many: torch.cat joins them along the batch, torch.stack makes a "
         "new dimension."),
        (right.transpose(0, 1), "Batch and heads are exchanged."),
        (right.flip(0), "The order of the caches is reversed."),
    ]  # fmt: skip
    kept = torch.cat([pad(torch.ones_like(x), (0, 0, 5 - x.size(2), 0)) for x in keys]).bool()
    if isinstance(got[0], torch.Tensor) and got[0].shape == right.shape and close(got[0][kept], right[kept]):
        expect(close(got[0], right), "The empty positions hold something else than zeros.")
    compare(got[0], right, mistakes, "The stacked tensor")
    counts = [
        (torch.tensor(lengths), "You count the positions that are taken: count the empty ones."),
        (torch.tensor([max(lengths)] * 3), "You return the longest length for each: count the empty positions."),
        (torch.tensor([-2, 0, -4]), "The counts are negative: the longest length minus each."),
        (torch.tensor(6), "This is the count of all together: one for each cache."),
        (torch.tensor([2, 0, 4])[:, None], "There is a dimension too many in the counts: return (B)."),
    ]
    compare(got[1], torch.tensor([2, 0, 4]), counts, "The count of empty positions")


@exercise("finals is a list of texts.")
def check_vote(vote):
    cases = [
        (["7", "9", "9"], "9", "the most frequent answer is not the first"),
        (["12", "8", "8", "12", "5"], "12", "of a tie the earlier answer wins"),
        (["b", "a"], "b", "of a tie the earlier answer wins"),
        (["3", "20", "20", "3", "3"], "3", "the answer with the most votes is not the largest"),
        (["", "4", ""], "", "an answer that was cut off is empty, and has votes like any other"),
        (["z", "y", "y", "x", "z"], "z", "of a tie the earlier answer wins, not the first in the alphabet"),
    ]
    for finals, right, why in cases:
        got = vote(list(finals))
        expect(got is not None, "The function returns nothing: end it with `return`.")
        expect(isinstance(got, str), f"For {finals} the result is {got!r}: return the answer itself, a text.")
        expect(got == right, f"For {finals} the result is {got!r} and should be {right!r}: {why}.")


# ---------------------------------------------------------------- lesson 6: a real model


@exercise("words is a list of texts, counts a dict of Counters, and n_words a whole number.")
def check_guess(guess):
    rng, cases = random.Random(0), []
    for _ in range(40):
        kinds = "person", "place", "time"
        counts = {kind: Counter(rng.choices("abcdefgh", k=rng.choice((4, 12, 40)))) for kind in kinds}
        cases.append((rng.choices("abcdefghxyz", k=4), counts, 11))

    def likeliest(score):
        return [max(c, key=lambda kind: sum(score(c[kind], word, n) for word in words)) for words, c, n in cases]  # noqa: B023

    right = likeliest(lambda count, word, n: math.log((count[word] + 1) / (count.total() + n)))
    try:
        got = [guess(list(words), {kind: Counter(c) for kind, c in counts.items()}, n) for words, counts, n in cases]
    except ValueError as error:
        expect("math domain" not in str(error) and "positive" not in str(error), "The logarithm of 0: a word that a "
               "kind has never seen needs the 1 that is added to each count.")  # fmt: skip
        raise
    expect(None not in got, "The function returns nothing: end it with `return`.")
    expect(not any(isinstance(answer, float | int) for answer in got), "Return the kind, not its score.")
    mistakes = [
        (likeliest(lambda count, word, n: -math.log((count[word] + 1) / (count.total() + n))), "You return the kind in "
         "which the words are least likely."),
        (likeliest(lambda count, word, n: math.log((count[word] + 1) / count.total())), "n_words is missing below the "
         "fraction: 1 was added to each of that many counts."),
        (likeliest(lambda count, word, n: count[word]), "You add up counts: a kind with many words would win always. "
         "Divide, and take logarithms."),
        (likeliest(lambda count, word, n: count[word] / count.total()), "You add up shares: those of several words are "
         "multiplied, so add their logarithms."),
        (likeliest(lambda count, word, n: (count[word] + 1) / (count.total() + n)), "You add up probabilities: those "
         "of several words are multiplied, so add their logarithms."),
        (likeliest(lambda count, word, n: math.log(count[word] + 1)), "The division is missing: a count says little "
         "without the number of all words of the kind."),
        (likeliest(lambda count, word, n: math.log((count[word] + 1) / (len(count) + n))), "len(count) is how many "
         "different words a kind has: .total() counts all of them."),
    ]  # fmt: skip
    for wrong, sentence in mistakes:
        expect(got == right or got != wrong, sentence)
    for (words, counts, _), answer, true in zip(cases, got, right):
        known = {kind: dict(count) for kind, count in counts.items()}
        expect(answer == true, f"For the words {words} and the counts {known} the result is {answer!r} and should be "
               f"{true!r}.")  # fmt: skip


@exercise("logits are (A, vocab_size), and so is logits.log_softmax(-1); label is (A).")
def check_label_score(label_score):
    logits, label = 2 * torch.randn(3, 9, generator=torch.Generator().manual_seed(15)), torch.tensor([4, 0, 7])
    log_p, rows = logits.log_softmax(-1), torch.arange(3)
    mistakes = [
        (log_p[rows, label].mean(), "This is the mean over the label's tokens: the logarithms are added."),
        (log_p[rows, label], "These are the logarithms of each token: add them up."),
        (log_p[rows, label].exp().prod(), "This is the probability: return its logarithm."),
        (log_p[rows, label].exp().sum(), "You add up probabilities: add their logarithms."),
        (log_p[rows, label].exp().sum().log(), "You add up probabilities: add their logarithms."),
        (log_p[rows, label].prod(), "You multiply logarithms: they are added."),
        (log_p[0, label].sum(), "All tokens are looked up in row 0: token i has the row i, [torch.arange(A), label]."),
        (logits[rows, label].sum(), "The softmax is missing: logits are no probabilities yet."),
        (logits.log_softmax(0)[rows, label].sum(), "The softmax runs over the tokens of the label: it should run over "
         "the vocabulary, the last dimension."),
        (log_p[:, label].sum(), "[:, label] picks every token of the label in every row: pick one in each row, "
         "[torch.arange(A), label]."),
        (log_p[0, label[0]], "Only the first token counts: the label has several."),
        (log_p.amax(-1).sum(), "You take the likeliest tokens: take those of the label."),
        (-log_p[rows, label].sum(), "The sign is wrong: the logarithm of a probability is below 0."),
        (-log_p[rows, label].mean(), "This is a loss, the mean with a minus: return the sum of the logarithms."),
    ]  # fmt: skip
    compare(label_score(logits.clone(), label.clone()), log_p[rows, label].sum(), mistakes, "The score")


class Stub:
    """A method with a cache of random rows, or with none."""

    def __init__(self, rows=None):
        self.rows = rows

    def past(self, network):
        return None if self.rows is None else network.prefill(self.rows[None])

    def loss(self, *batch):
        raise Wrong("method.loss will call your function: write the three lines yourself.")


@exercise("hidden is (B, T, C), hidden[answer] is (N, C), and targets[answer] is (N).")
def check_three_lines(three_lines):
    model, rng = tiny_gpt(), torch.Generator().manual_seed(16)
    tokens, targets = (torch.randint(40, (3, 7), generator=rng) for _ in range(2))  # (B, T)
    answer = torch.arange(7) >= torch.tensor([[2], [4], [5]])  # (B, T)
    for rows in torch.nn.Parameter(torch.randn(5, 16, generator=rng)), None:
        method = Stub(rows)
        hidden = model(tokens, method.past(model))  # (B, T, C)
        mistakes = loss_mistakes(model, hidden, model(tokens), tokens, targets, answer)
        got = three_lines(method, model, tokens.clone(), targets.clone(), answer.clone())
        plain = isinstance(got, float)
        expect(not plain, "The loss is a plain number: keep the tensor, without .item(), for its gradient.")
        compare(got, model.loss(hidden[answer], targets[answer]), mistakes, "The loss")
        expect(rows is None or got.requires_grad, "The loss has lost its gradient: no detach, item or no_grad.")
