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
        frames = traceback.extract_tb(error.__traceback__)
        yours = next((f for f in frames if f.filename != __file__), frames[-1])  # the first one outside of this file
        print(f"Not yet: your line `{yours.line}` stopped with {type(error).__name__}: {error}")
    else:
        print("Right.")


def expect(condition, sentence):
    if not condition:
        raise Wrong(sentence)


def compare(got, right, mistakes=(), what="The result"):
    """Expect the tensor `right`. mistakes: (what a common mistake gives, the sentence that says so)."""
    expect(got is not None, "The function returns nothing: end it with `return`.")
    expect(isinstance(got, torch.Tensor), f"{what} should be a tensor, but it is of type {type(got).__name__}.")
    if got.shape == right.shape and close(got, right):
        return  # first, since in a small case a mistake may give what is right
    for mistake, sentence in mistakes:
        expect(not (got.shape == mistake.shape and close(got, mistake)), sentence)
    shapes = f"{what} has shape {tuple(got.shape)}, and {tuple(right.shape)} was asked for."
    expect(got.shape == right.shape, shapes)
    expect(not got.isnan().any(), f"{what} contains NaN, as of the logarithm of a negative number, or of a softmax "
           "over nothing but minus infinity.")  # fmt: skip
    raise Wrong(f"{what} has the right shape, but other numbers than it should.")


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
            mistakes = [
                (torch.arange(P + T), f"{asked} you number the cache as well: its positions are in its keys."),
                (torch.arange(T), f"{asked} you begin at 0 again, as if nothing stood before the question."),
                (torch.arange(P + 1, P + T + 1), f"{asked} you begin at P + 1: the cache takes 0 to P - 1."),
                (torch.arange(P - 1, P + T - 1), f"{asked} you begin at P - 1, where the cache's last row stands."),
                (torch.arange(P, P + T + 1), f"{asked} you return one position too many: the end is P + T - 1."),
            ]
            compare(got, torch.arange(P, P + T), mistakes, f"{asked} the result")


def check_head(head):
    with verdict():
        rng = torch.Generator().manual_seed(0)
        P, T, D = 3, 4, 8
        past_k, past_v, q, k, v = (2 * torch.randn(n, D, generator=rng) for n in (P, P, T, T, T))
        try:
            got = head(q, k, v, past_k, past_v)
        except RuntimeError as error:
            expect("multiplied" not in str(error), f"Shapes do not fit ({error}): the scores are q @ keys.T, (T, "
                   "P + T), and the output is weights @ values.")  # fmt: skip
            raise
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


# ---------------------------------------------------------------- lesson 2: sixty-five rows learn addition


def check_answer_positions(answer_positions):
    with verdict():
        for Q, A in (5, 3), (8, 24), (2, 1):
            got, T = answer_positions(Q, A), Q + A - 1
            at = torch.arange(T)
            case = f"For a question of {Q} tokens and an answer of {A}"
            if isinstance(got, torch.Tensor) and got.shape == (T,):
                expect(got.dtype == torch.bool, f"The result should hold True and False, but its dtype is {got.dtype}.")
            mistakes = [
                (at >= Q, f"{case} the mask begins one position late: the last token of the question predicts the "
                 "answer's first."),
                (at < Q - 1, f"{case} the mask is inverted: it is True where the target belongs to the question."),
                (at == Q - 1, f"{case} the mask is True at the answer's first token alone: the answer has {A}."),
                (torch.ones(T, dtype=torch.bool), f"{case} the mask is True everywhere, also for the question."),
                (torch.arange(Q + A) >= Q, f"{case} the mask has a place for each token, Q + A: the last token is not "
                 "read, so there are Q + A - 1 positions."),
            ]  # fmt: skip
            compare(got, at >= Q - 1, mistakes, f"{case} the mask")


def check_prompt_loss(prompt_loss):
    with verdict():
        model, rng = tiny_gpt(), torch.Generator().manual_seed(2)
        rows = torch.randn(5, model.config.n_embd, generator=rng).requires_grad_(True)  # (P, C)
        tokens, targets = (torch.randint(40, (3, 9), generator=rng) for _ in range(2))  # (B, T) each
        answer = torch.arange(9) >= torch.tensor([[3], [5], [4]])  # (B, T)
        try:
            got = prompt_loss(rows, model, tokens, targets, answer)
        except (RuntimeError, IndexError) as error:
            expect("must match" not in str(error), f"Shapes do not fit ({error}): model.prefill takes (1, P, C), a "
                   "batch of one prompt, and model.loss takes (N, C) and (N), which hidden[answer] and "
                   "targets[answer] are.")  # fmt: skip
            raise
        hidden, alone = model(tokens, model.prefill(rows[None])), model(tokens)  # (B, T, C) each
        right = model.loss(hidden[answer], targets[answer])
        each = torch.stack([model.loss(h[a], t[a]) for h, t, a in zip(hidden, targets, answer)])
        mistakes = [
            (model.loss(hidden.flatten(0, 1), targets.flatten()), "The mean is over all positions, the question's "
             "too: take hidden[answer] and targets[answer]."),
            (model.loss(hidden[~answer], targets[~answer]), "The mean is over the question's positions."),
            (model.loss(alone[answer], targets[answer]), "The prompt is left out: the model takes its cache as past."),
            (model.loss(hidden[answer], tokens[answer]), "The loss compares with tokens, the inputs: targets are the "
             "tokens that come next."),
            (right * answer.sum(), "This is the sum over the answer's positions: model.loss is their mean."),
            (each.mean(), "This is the mean of each text's mean, so that short answers weigh more: take one mean over "
             "all answer positions."),
        ]  # fmt: skip
        compare(got, right, mistakes, "The loss")
        expect(got.requires_grad, "The loss has lost its gradient: no .detach(), .item() or torch.no_grad() here.")


def check_tune(tune):
    with verdict():
        rng = torch.Generator().manual_seed(3)
        goals = torch.randn(6, 4, 3, generator=rng)  # a goal for the rows (4, 3) in each of 6 steps
        begin = torch.randn(4, 3, generator=rng)

        def loss_of(rows, goal):
            return (rows - goal).square().sum()

        def steps(n=6, clear=True, again=False, lr=0.1, weight_decay=0.0, kind=torch.optim.AdamW):
            rows = torch.nn.Parameter(begin.clone())
            more = {"weight_decay": weight_decay}
            optimizer = kind([rows], lr=lr, **more)
            for goal in goals[:n]:
                optimizer = kind([rows], lr=lr, **more) if again else optimizer
                loss_of(rows, goal).backward()
                optimizer.step()
                if clear:
                    optimizer.zero_grad()
            return rows.detach()

        try:
            got = tune(begin.clone(), loss_of, list(goals), 0.1)
        except RuntimeError as error:
            expect("does not require grad" not in str(error), "rows are a plain tensor, which gets no gradient: make "
                   "torch.nn.Parameter(rows) of them before the loop.")  # fmt: skip
            raise
        mistakes = [
            (begin, "The rows have not moved: does the optimizer get the very rows that go into the loss, and is there "
             "loss.backward() before optimizer.step()?"),
            (steps(clear=False), "The gradients of all batches add up: call optimizer.zero_grad() after each step."),
            (steps(again=True), "A new optimizer is made for each batch, so that AdamW forgets its averages: make it "
             "before the loop."),
            (steps(1), "Only the first batch is used: `return` stands inside the loop."),
            (steps(weight_decay=0.01), "The optimizer has weight decay, 0.01 by default: it pulls the rows to 0, which "
             "is no meaningful place. Give weight_decay=0."),
            (steps(kind=torch.optim.SGD), "This is SGD: AdamW was asked for."),
            (steps(lr=1e-3), "The learning rate is AdamW's default, 0.001: pass lr on."),
        ]  # fmt: skip
        compare(got.detach() if isinstance(got, torch.Tensor) else got, steps(), mistakes, "The result")


def check_without_row(without_row):
    with verdict():
        rng, P = torch.Generator().manual_seed(4), 5
        # as many heads as rows, so that a wrong dimension does not show itself by an error
        cache = [tuple(torch.randn(1, P, P, 3, generator=rng) for _ in range(2)) for _ in range(3)]
        before = [tuple(x.clone() for x in pair) for pair in cache]
        for i in (1, 0, 4):
            got = without_row(cache, i)
            expect(got is not None, "The function returns nothing: end it with `return`.")
            same = all(torch.equal(a, b) for one, other in zip(before, cache) for a, b in zip(one, other))
            expect(len(cache) == 3 and same, "The cache that was given is changed: make a new one, it is needed again.")
            expect(len(got) == 3, f"The result has {len(got)} layers, the cache has 3.")
            keep = [p for p in range(P) if p != i]
            for n, (pair, mine) in enumerate(zip(cache, got)):
                for what, x, y in zip(("keys", "values"), pair, mine):
                    where = f"Layer {n + 1}, {what}"
                    mistakes = [
                        (x, f"{where}: nothing is missing. The row has to go from keys and values of every layer."),
                        (x[:, keep], f"{where}: a head is missing, not a row. Their dimensions are (1, n_head, P, D)."),
                        (x[:, :, [i]], f"{where}: this is row {i} alone, all others should be there."),
                        (x[:, :, :i], f"{where}: everything behind row {i} is missing as well."),
                        (x[:, :, [p for p in range(P) if p != i - 1]], f"{where}: row {i - 1} is missing, not {i}."),
                        (x[:, :, [p for p in range(P) if p != i + 1]], f"{where}: row {i + 1} is missing, not {i}."),
                        (torch.cat([x[:, :, :i], 0 * x[:, :, [i]], x[:, :, i + 1 :]], 2), f"{where}: the row is set to "
                         "0. A key of 0 still gets a share of the softmax: take the row out."),
                    ]  # fmt: skip
                    compare(y, x[:, :, keep], mistakes, where)


# ---------------------------------------------------------------- lesson 3: where a prompt begins


def check_hybrid_rows(hybrid_rows):
    with verdict():
        table = torch.randn(30, 8, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.05, 0.4, 8) + 0.1
        trigger = [7, 3, 3]

        def draw(n=5):
            return torch.randn(n, 8, generator=torch.Generator().manual_seed(0))

        for n in (5, 0):
            got = hybrid_rows(table, n, list(trigger), torch.Generator().manual_seed(0))
            words, scaled = table[torch.tensor(trigger)], draw(n) * table.std()
            mistakes = [
                (torch.cat([words, scaled]), "The trigger stands first: the random rows come before it."),
                (torch.cat([draw(n), words]), "The standard deviation of the random rows is 1: it should be the "
                 "table's."),
                (torch.cat([draw(n) * table.std(0), words]), "Each column has a standard deviation of its own: take "
                 "one of the whole table, table.std()."),
                (torch.cat([draw(n) * table.var(), words]), "The random rows are scaled by the table's variance: take "
                 "its standard deviation."),
                (torch.cat([draw(n) * table.std() + table.mean(), words]), "The table's mean is added to the random "
                 "rows: they were to be drawn around 0."),
                (scaled, "The trigger's rows are missing."),
                (words, "The random rows are missing."),
            ]  # fmt: skip
            compare(got, torch.cat([scaled, words]), mistakes, "The result")


def check_sign_test(sign_test):
    with verdict():
        cases = [(3, 14, 30, 5), (1, 1, 0, 0), (0, 0, 9, 2), (10, 2, 1, 1), (0, 6, 0, 0)]
        for only_a, only_b, both, neither in cases:
            a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
            b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
            got, n, k = sign_test(a, b), only_a + only_b, min(only_a, only_b)
            expect(isinstance(got, tuple) and len(got) == 3, "Return three numbers: how many only the first had right, "
                   "how many only the second, and p.")  # fmt: skip
            case = f"Where only the first is right in {only_a} questions and only the second in {only_b}"
            as_well = both and tuple(got[:2]) == (only_a + both, only_b + both)
            expect(not as_well, f"{case} you count those that both have right as well: they tell nothing apart.")
            expect(only_a == only_b or tuple(got[:2]) != (only_b, only_a), f"{case} your counts are exchanged.")
            expect(tuple(got[:2]) == (only_a, only_b), f"{case} you count {tuple(got[:2])}.")
            tail = sum(math.comb(n, j) for j in range(k + 1)) / 2**n
            right, p = min(1, 2 * tail), float(got[2])
            whole = len(a)
            mistakes = [
                (1.0 * (2 * tail), f"{case} p is {p:g}: a probability above 1. Take the smaller of it and 1."),
                (tail, f"{case} p is {p:g}, one direction alone: double it."),
                (2 * math.comb(n, k) / 2**n, f"{case} p is {p:g}, of exactly {k} and no other count: add up j from 0 "
                 f"to {k}."),
                (2 * sum(math.comb(n, j) for j in range(k)) / 2**n, f"{case} p is {p:g}: the sum ends at {k} - 1, "
                 f"because range({k}) leaves out {k}."),
                (2 * sum(math.comb(whole, j) for j in range(k + 1)) / 2**whole, f"{case} p is {p:g}: n is the number "
                 "of questions on which they differ, not of all."),
            ]  # fmt: skip
            for mistake, sentence in mistakes:
                expect(abs(mistake - right) < 1e-9 or abs(p - mistake) > 1e-9, sentence)
            expect(abs(p - right) < 1e-9, f"{case} p is {p:g}, and it should be {right:.4g}.")


def check_first_error(first_error):
    with verdict():
        true = "1405;2507;3609;000=975$"
        cases = [
            ("1405;2507;3609;000=975$", "", "a right answer"),
            ("1405;2407;3609;000=965$", "digit", "the second digit of the second column misread"),
            ("1405;2507;4609;000=1075$", "digit", "the first digit of the third column misread"),
            ("1405;2517;3609;000=975$", "carry", "a wrong carry in the second column"),
            ("1405;2517;3619;001=1975$", "carry", "a wrong carry, and other errors that follow from it"),
            ("1405;2508;3609;000=985$", "sum", "a wrong digit of the sum in the second column"),
            ("1405;2507;3609;001=1975$", "carry", "a wrong last carry"),
            ("1405;2507;3609;000=957$", "copy", "all steps right, and the final sum not"),
            ("1405;2507;3609;000=97$", "copy", "all steps right, and a final sum that ends early"),
            ("1405;2507;", "digit", "an answer that ends after two columns"),
            ("1405;2507;3609;000=9755$", "copy", "all steps right, and a digit too many at the end"),
        ]
        for written, kind, what in cases:
            got = first_error(written, true)
            expect(got is not None, f"For {what}, {written}, the function returns nothing.")
            expect(isinstance(got, str), f"For {what}, {written}, the result is {got!r}: a word was asked for.")
            later = "" if written != cases[4][0] else " Look at the first difference only, what follows comes from it."
            expect(got == kind, f"For {what}, {written} instead of {true}, the result is {got!r} and should be "
                   f"{kind!r}.{later}")  # fmt: skip


# ---------------------------------------------------------------- lesson 5: from a context to a cache


def check_divergence(divergence):
    with verdict():
        rng = torch.Generator().manual_seed(6)
        teacher, student = (2 * torch.randn(7, 11, generator=rng) for _ in range(2))  # (N, vocab_size) each
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        each = (p * (log_p - log_q)).sum(-1)  # (N)
        mistakes = [
            (each, "This is the divergence at each position, (N): take its mean."),
            (each.sum(), "This is the sum over the positions: take their mean."),
            ((p * (log_p - log_q)).mean(), "The mean runs over the vocabulary too: add up over it, then take the mean "
             "over positions."),
            ((q * (log_q - log_p)).sum(-1).mean(), "Teacher and student are exchanged: p, in front of the brackets, is "
             "the teacher's."),
            (-(p * log_q).sum(-1).mean(), "This is the cross-entropy: the term p log p is missing, so that it is not 0 "
             "for a perfect student."),
            (-each.mean(), "The sign is wrong: a divergence is never negative."),
            ((teacher.softmax(0) * (teacher.log_softmax(0) - student.log_softmax(0))).sum(-1).mean(), "The softmax "
             "runs over positions: it should run over the vocabulary, the last dimension."),
            ((p * (teacher - student)).sum(-1).mean(), "These are logits, not logarithms of probabilities: take "
             "log_softmax of both."),
            (((teacher - student) ** 2).mean(), "This is a squared error of logits."),
        ]  # fmt: skip
        compare(divergence(teacher, student), each.mean(), mistakes, "The divergence")


def check_stack(stack):
    with verdict():
        rng, lengths = torch.Generator().manual_seed(7), [3, 5, 1]
        keys = [torch.randn(1, 2, n, 4, generator=rng) for n in lengths]
        got = stack(list(keys))
        expect(got is not None, "The function returns nothing: end it with `return`.")
        expect(isinstance(got, tuple) and len(got) == 2, "Return two things: the stacked keys, and how many positions "
               "are empty in each.")  # fmt: skip
        pad = torch.nn.functional.pad
        right = torch.cat([pad(x, (0, 0, 5 - x.size(2), 0)) for x in keys])
        mistakes = [
            (torch.cat([pad(x, (0, 0, 0, 5 - x.size(2))) for x in keys]), "The empty positions stand at the end: the "
             "question follows there, so they belong at the beginning."),
            (torch.cat([x[:, :, -1:] for x in keys]), "All are cut to the shortest: bring them to the longest."),
            (torch.cat(keys, 2), "The caches stand behind one another in one row: each is a row of the batch."),
            (right[None], "There is one dimension too many: torch.cat joins them along the batch, torch.stack makes a "
             "new dimension."),
            (torch.stack([x[0] for x in (pad(k, (0, 0, 5 - k.size(2), 0)) for k in keys)], 1), "Batch and heads are "
             "exchanged."),
        ]  # fmt: skip
        compare(got[0], right, mistakes, "The stacked tensor")
        counts = [
            (torch.tensor(lengths), "You count the positions that are taken: count the empty ones."),
            (torch.tensor([max(lengths)] * 3), "You return the longest length for each: count the empty positions."),
        ]
        compare(got[1], torch.tensor([2, 0, 4]), counts, "The count of empty positions")


def check_vote(vote):
    with verdict():
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


# ---------------------------------------------------------------- lesson 4: what no prompt can do


def check_count_numbers(count_numbers):
    with verdict():
        for P, C, n_layer, r in (20, 256, 6, 8), (1, 12, 2, 3):
            got = count_numbers(P, C, n_layer, r)
            expect(isinstance(got, tuple) and len(got) == 3, "Return three numbers: of prompt tuning, of P-tuning v2 "
                   "and of LoRA.")  # fmt: skip
            prompt, deep, lora = got
            case = f"With P = {P}, C = {C}, n_layer = {n_layer} and r = {r}"
            expect(prompt == P * C, f"{case} prompt tuning has P rows of C numbers, {P * C}, and you say {prompt}.")
            expect(deep != P * n_layer * C, f"{case} you count keys or values of P-tuning v2: there are both.")
            expect(deep != P * 2 * C, f"{case} you count one layer of P-tuning v2: there are {n_layer}.")
            right = P * n_layer * 2 * C
            expect(deep == right, f"{case} P-tuning v2 has {right} numbers, and you say {deep}.")
            expect(lora != 16 * r * C, f"{case} you count one layer of LoRA: there are {n_layer}.")
            expect(lora != n_layer * 12 * C * C, f"{case} you count the weights that LoRA leaves alone: it trains two "
                   "thin matrices for each of them.")  # fmt: skip
            expect(lora != n_layer * r * 8 * C, f"{case} you count one of LoRA's two matrices.")
            expect(lora == 16 * n_layer * r * C, f"{case} LoRA has {16 * n_layer * r * C} numbers, you say {lora}: a "
                   "matrix from n_in to n_out gets r * n_in and n_out * r of them.")  # fmt: skip


def check_weight_on_prefix(weight_on_prefix):
    with verdict():
        P, T = 5, 5
        w = (2 * torch.randn(5, T, P + T, generator=torch.Generator().manual_seed(8))).softmax(-1)  # (n_head, T, P + T)
        mistakes = [
            (w[..., P:].sum(-1), "This is the weight on the question's own tokens, 1 - a."),
            (w[..., :P].mean(-1), "This is the mean over the prefix's rows: add their weights up."),
            (w[..., :P].sum(1), "The sum runs over positions: it should run over the columns, the last dimension."),
            (w[..., :P].sum(0), "The sum runs over heads: it should run over the columns, the last dimension."),
            (w[:, :P].sum(-1), "You take the first P positions: the prefix is the first P columns."),
            (w[..., :P], "These are the weights of each row, (n_head, T, P): add them up."),
            (w[..., :P].sum(-1).mean(0), "The heads are averaged: keep them apart."),
            (w[..., : P - 1].sum(-1), "The last row of the prefix is left out."),
            (w[..., : P + 1].sum(-1), "The question's first token is counted as well."),
        ]
        compare(weight_on_prefix(w.clone(), P), w[..., :P].sum(-1), mistakes, "a")


def check_with_prefix(with_prefix):
    with verdict():
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
            ((1 - a) * y + a * (behind @ past_v), "The prefix's part is multiplied by a once more: its weights a_i add "
             "up to a already."),
            ((1 - a) * y + a * past_v.mean(0), "The prefix's values are averaged: each has a weight of its own."),
            ((1 - a) * y, "The prefix's own values are missing."),
            (behind @ past_v, "The question's part, (1 - a) y, is missing."),
            ((1 - behind.mean(-1, keepdim=True)) * y + behind @ past_v, "a is the sum of the prefix's weights, not "
             "their mean."),
        ]  # fmt: skip
        try:
            got = with_prefix(y, weights, past_v)
        except RuntimeError as error:
            expect("must match" not in str(error), f"Shapes do not fit ({error}): a is (T, 1) beside y (T, D), so keep "
                   "its dimension, .sum(-1, keepdim=True).")  # fmt: skip
            raise
        compare(got, weights @ torch.cat([past_v, v]), mistakes, "y'")


def check_lora_linear(lora_linear):
    with verdict():
        rng, T, n, r, alpha = torch.Generator().manual_seed(10), 4, 6, 3, 16.0
        x, W, A, B = (torch.randn(*s, generator=rng) for s in ((T, n), (n, n), (r, n), (n, r)))
        plain, update = x @ W.T, (x @ A.T) @ B.T
        mistakes = [
            (plain + update, "The update is not scaled: multiply it by alpha / r."),
            (plain + alpha * update, "The update is multiplied by alpha, not by alpha / r."),
            (plain + alpha / r**0.5 * update, "The scale is alpha / sqrt(r), that of rsLoRA: here it is alpha / r."),
            (plain + alpha / n * update, "The scale is alpha / n_in: r is the rank, the number of rows of A."),
            (alpha / r * update, "W x is missing: LoRA adds to it."),
            (alpha / r * (plain + update), "W x is scaled as well: only the update is."),
            (x @ W + alpha / r * update, "W stands the wrong way: it is (n_out, n_in), so x @ W.T."),
            (x @ W + alpha / r * (x @ (B @ A)), "The matrices stand the wrong way: W is (n_out, n_in), so x @ W.T."),
            (plain + alpha / r * (x @ (B @ A)), "B A stands the wrong way: it is (n_out, n_in), so x @ (B @ A).T."),
            (plain, "The update is missing."),
        ]
        compare(lora_linear(x, W, A, B, alpha), plain + alpha / r * update, mistakes, "y")


# ---------------------------------------------------------------- lesson 0: attention from scratch


def ours(function):
    """What the next cells use where an answer is not right yet."""
    print("The next cells use the project's own function.")
    return function


def toy_scores(q, k):
    return q @ k.T / math.sqrt(q.size(1))


def toy_causal(scores):
    return scores.masked_fill(torch.ones(scores.shape, dtype=torch.bool).triu(1), -torch.inf)


def toy_attention(q, k, v):
    return toy_causal(toy_scores(q, k)).softmax(-1) @ v


def toy_step(q, k, v, cache):
    keys, values = torch.cat([cache[0], k]), torch.cat([cache[1], v])
    return toy_scores(q, keys).softmax(-1) @ values, (keys, values)


def check_scores(scores):
    with verdict():
        rng = torch.Generator().manual_seed(11)
        S, D = 4, 3
        q, k = torch.randn(6, D, generator=rng), torch.randn(S, D, generator=rng)
        try:
            got = scores(q.clone(), k.clone())
        except RuntimeError as error:
            fits = "multiplied" not in str(error) and "must match" not in str(error)
            expect(fits, f"Shapes do not fit ({error}): turn the keys' rows into columns with k.T.")
            raise
        right = toy_scores(q, k)
        mistakes = [
            (right * math.sqrt(D), "The scores are not divided by sqrt(D)."),
            (right / math.sqrt(D), "The scores are divided by D: it is its square root."),
            (right * math.sqrt(D) / math.sqrt(S), "The scores are divided by the square root of the number of keys: D "
             "is the length of a key, q.size(1)."),
            (right * math.sqrt(D) / math.sqrt(6), "The scores are divided by the square root of the number of queries: "
             "D is the length of a query, q.size(1)."),
            (right.T, "Rows and columns are exchanged: row i is for query i, so q stands first."),
            (k @ q.T, "Rows and columns are exchanged: row i is for query i, so q stands first."),
            (right.softmax(-1), "These are the weights: leave the softmax out, it comes later."),
        ]  # fmt: skip
        compare(got, right, mistakes, "The table of scores")
        return scores
    return ours(toy_scores)


def check_causal(causal):
    with verdict():
        scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(12))
        got = causal(scores.clone())
        above = torch.ones(5, 5, dtype=torch.bool).triu(1)
        expect(got is not None, "The function returns nothing: end it with `return`.")
        expect(not (isinstance(got, torch.Tensor) and got.dtype == torch.bool), "This says where the future is: "
               "return the scores, with -inf in these places.")  # fmt: skip
        mistakes = [
            (scores, "Nothing is masked: masked_fill returns a new tensor, return that."),
            (scores.masked_fill(above, 0), "Masked scores are 0, and the softmax gives those weight: fill in -inf."),
            (scores.masked_fill(above.T, -torch.inf), "The past is hidden, not the future: query i is row i, and "
             "later keys stand to the right of the diagonal."),
            (scores.masked_fill(~above, -torch.inf), "Only the future is left: fill in -inf where the mask is True."),
            (scores.masked_fill(above | torch.eye(5, dtype=torch.bool), -torch.inf), "A position may look at itself, "
             "and the diagonal is hidden as well: triu(1) begins one above it."),
            (scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(2), -torch.inf), "Each position still sees "
             "the next one: triu(1) begins right behind the diagonal."),
            (scores.masked_fill(above, -torch.inf).softmax(-1), "These are weights: leave the softmax out."),
            (scores + above, "The mask is added as 0 and 1: later keys should get -inf."),
        ]  # fmt: skip
        compare(got, scores.masked_fill(above, -torch.inf), mistakes, "The masked table")
        return causal
    return ours(toy_causal)


def check_attention(attention):
    with verdict():
        rng = torch.Generator().manual_seed(13)
        q, k, v = (2 * torch.randn(5, 3, generator=rng) for _ in range(3))
        got, s = attention(q.clone(), k.clone(), v.clone()), toy_scores(q, k)
        late = s.softmax(-1).tril()
        mistakes = [
            (s.softmax(-1) @ v, "No mask: a position reads what comes after it."),
            (late @ v, "The mask comes after the softmax, so that weights do not add up to 1 any more: mask first."),
            (toy_causal(s).softmax(-1), "These are the weights, (T, T): they still have to mix the values."),
            (s.tril() @ v, "The softmax is missing: scores are no weights yet."),
            (toy_causal(s).softmax(0).nan_to_num() @ v, "The softmax runs over the wrong dimension: the weights of one "
             "query, a row, have to add up to 1."),
            (toy_causal(s).softmax(-1) @ k, "The weights mix the keys: they should mix the values."),
            (toy_causal(s * math.sqrt(3)).softmax(-1) @ v, "The scores are not divided by sqrt(D)."),
            (v[s.masked_fill(s != toy_causal(s), -torch.inf).argmax(-1)], "Each position reads only its best key: take "
             "the mean of all values by the weights."),
        ]  # fmt: skip
        compare(got, toy_attention(q, k, v), mistakes, "What is read")
        return attention
    return ours(toy_attention)


def check_step(step):
    with verdict():
        rng = torch.Generator().manual_seed(14)
        q, k, v = (2 * torch.randn(1, 4, generator=rng) for _ in range(3))
        keys, values = (2 * torch.randn(3, 4, generator=rng) for _ in range(2))
        try:
            got = step(q.clone(), k.clone(), v.clone(), (keys.clone(), values.clone()))
        except RuntimeError as error:
            expect("must match" not in str(error), "Shapes do not fit: new rows are put below the old ones, "
                   "torch.cat([keys, k]), which is dimension 0.")  # fmt: skip
            raise
        expect(got is not None, "The function returns nothing: end it with `return`.")
        expect(isinstance(got, tuple) and len(got) == 2, "Return two things: what is read, and the cache.")
        expect(isinstance(got[1], tuple | list) and len(got[1]) == 2, "The cache is a pair: keys and values.")
        out, (new_keys, new_values) = toy_step(q, k, v, (keys, values))
        s = toy_scores(q, new_keys)
        mistakes = [
            (toy_scores(q, keys).softmax(-1) @ values, "The token does not see itself: put its key and its value into "
             "the cache first."),
            (toy_causal(s).softmax(-1) @ new_values, "The mask hides all but the first row: everything in the cache "
             "stands before the new token, so that no mask is needed."),
            ((s * 2).softmax(-1) @ new_values, "The scores are not divided by sqrt(D)."),
            (s @ new_values, "The softmax is missing: scores are no weights yet."),
            (s.softmax(0) @ new_values, "The softmax runs over the wrong dimension: the weights of one query, a row, "
             "have to add up to 1."),
            (s.softmax(-1) @ new_keys, "The weights mix the keys: they should mix the values."),
            (s.softmax(-1), "These are the weights, (1, P + 1): they still have to mix the values."),
            (v, "Only the new token is read: the weights run over the cache as well."),
        ]  # fmt: skip
        compare(got[0], out, mistakes, "What is read")
        for i, (name, old, new) in enumerate((("keys", keys, k), ("values", values, v))):
            cases = [
                (old, f"The cache's {name} are still the old ones: return those with the new row."),
                (torch.cat([new, old]), f"The new row stands in front of the cache's {name}: it belongs behind them."),
                (new, f"The cache's {name} are the new row alone: keep the old ones."),
                ((new_values, new_keys)[i], "Keys and values are exchanged in the cache."),
            ]
            compare(got[1][i], torch.cat([old, new]), cases, f"The cache's {name}")
        return step
    return ours(toy_step)
