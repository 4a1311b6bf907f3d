"""The lessons run to their end, their checks tell right from wrong and say what is wrong, and notebooks are in step."""

import json
import math
import re
from types import SimpleNamespace

import matplotlib
import pytest
import torch

from lessons import checks
from lessons.figures import figures
from lessons.run import FOLDER, LESSONS, cells, run_cells, solved

matplotlib.use("Agg")
SHARE = "0.05"  # of the examples that a lesson learns from and is tested on
names = [path.stem for path in LESSONS]


def exercises(path):
    """[(stub, check)]: the source of each exercise and of the cell behind it."""
    found = cells(path)
    return [(source, found[i + 1][1]) for i, (header, source) in enumerate(found) if '"exercise"' in header]


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_a_lesson_runs_to_its_end_and_its_checks_tell_stub_from_solution(path, capsys, monkeypatch):
    monkeypatch.setenv("LESSONS_SHARE", SHARE)
    found = exercises(path)
    assert 3 <= len(found) <= 4
    space = run_cells(solved(path), path)
    verdicts = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Right.", "Not yet"))]
    assert verdicts == ["Right."] * len(found)
    for stub, check in found:  # what a student sees who has not begun
        run_cells([("", stub), ("", check)], path, space)
        assert capsys.readouterr().out.startswith("Not yet: write the function")
    matplotlib.pyplot.close("all")


# what people type instead, and what the check has to say about it
WRONG = {
    "check_next_token_logits": [
        (lambda model, tokens: model.logits(model(tokens)), "every position"),
        (lambda model, tokens: model.logits(model(tokens))[0, 0], "first position"),
        (lambda model, tokens: model.logits(model(tokens))[:, -1], "The batch is still there"),
        (lambda model, tokens: model(tokens)[0, -1], "hidden states"),
        (lambda model, tokens: model.logits(model(tokens))[0, -1].softmax(-1), "softmax"),
        (lambda model, tokens: None, "returns nothing"),
        (lambda model, tokens: 7, "should be a tensor, but it is of type int"),
        (lambda model, tokens: model.logits(model(tokens[0])), "your line `(lambda model, tokens"),
    ],
    "check_positions_behind": [
        (lambda P, T: torch.arange(T), "begin at 0"),
        (lambda P, T: torch.arange(P + 1, P + T + 1), "P + 1"),
        (lambda P, T: torch.arange(P + T), "number the cache as well"),
        (lambda P, T: torch.arange(P, P + T + 1), "one position too many"),
        (lambda P, T: list(range(P, P + T)), "should be a tensor, but it is of type list"),
        (lambda P, T: torch.arange(P, T), "and (3,) was asked for|stopped with"),
    ],
    "check_head": [
        (lambda q, k, v, a, b: attend(q, k, v, a, b, scale=1), "not divided by sqrt(D)"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, scale=q.size(1)), "square root"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, mask=False), "No mask"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, behind=1), "P columns later"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, dim=0), "wrong dimension"),
        (lambda q, k, v, a, b: attend(q, k, v, a[:0], b[:0]), "left out"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b)[:, :4], "shape"),
        (lambda q, k, v, a, b: torch.cat([a, k]) @ q, "the scores are q @ keys.T"),
    ],
    "check_gradient_of_rows": [
        (lambda model, rows, t, y: gradient(model, rows, t, y, batch=False), "batch of one prompt"),
        (lambda model, rows, t, y: gradient(model, rows, t, y, scale=t.numel()), "sum over all positions"),
        (lambda model, rows, t, y: gradient(model, rows, t, y, ask=False), "requires a gradient"),
        (lambda model, rows, t, y: gradient(model.requires_grad_(True), rows, t, y), "weights have gradients"),
        (lambda model, rows, t, y: gradient(model, rows, t, y)[None], "batch dimension is still there"),
        (lambda model, rows, t, y: gradient(model, rows, t, y[:, :3]), "stopped with"),
    ],
    "check_answer_positions": [
        (lambda Q, A: torch.arange(Q + A - 1) >= Q, "one position late"),
        (lambda Q, A: torch.arange(Q + A - 1) < Q - 1, "inverted"),
        (lambda Q, A: torch.arange(Q + A - 1) == Q - 1, "first token alone"),
        (lambda Q, A: torch.ones(Q + A - 1) > 0, "True everywhere"),
        (lambda Q, A: torch.arange(Q + A) >= Q, "a place for each token"),
        (lambda Q, A: (torch.arange(Q + A - 1) >= Q - 1).float(), "True and False"),
        (lambda Q, A: [False] * (Q - 1) + [True] * A, "should be a tensor"),
    ],
    "check_prompt_loss": [
        (lambda rows, m, t, y, a: loss(m, t, y, a, m.prefill(rows)), "batch of one prompt"),
        (lambda rows, m, t, y, a: loss(m, t, y, a | True, m.prefill(rows[None])), "over all positions"),
        (lambda rows, m, t, y, a: loss(m, t, y, ~a, m.prefill(rows[None])), "question's positions"),
        (lambda rows, m, t, y, a: loss(m, t, y, a, None), "left out"),
        (lambda rows, m, t, y, a: loss(m, t, t, a, m.prefill(rows[None])), "the inputs"),
        (lambda rows, m, t, y, a: a.sum() * loss(m, t, y, a, m.prefill(rows[None])), "sum over the answer's"),
        (lambda rows, m, t, y, a: loss(m, t, y, a, m.prefill(rows[None])).detach(), "lost its gradient"),
        (lambda rows, m, t, y, a: loss(m, t, y, a, m.prefill(rows[None])).item(), "of type float"),
    ],
    "check_tune": [
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, clear=False), "add up"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches[:1], lr), "first batch"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, weight_decay=0.01), "weight decay"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, 1e-3), "pass lr on"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, torch.optim.SGD), "SGD"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, backward=False), "have not moved"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, again=True), "new optimizer"),
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr)[0], "shape"),
        (lambda rows, f, batches, lr: f(rows, batches[0]).backward(), "torch.nn.Parameter(rows)"),
    ],
    "check_without_row": [
        (lambda cache, i: cache, "nothing is missing"),
        (lambda cache, i: [remove(cache[0], i), *cache[1:]], "Layer 2, keys: nothing is missing"),
        (lambda cache, i: [(remove(pair, i)[0], pair[1]) for pair in cache], "Layer 1, values: nothing is missing"),
        (lambda cache, i: [remove(pair, i, 1) for pair in cache], "a head is missing"),
        (lambda cache, i: [remove(pair, i + 1) for pair in cache], "row 2 is missing, not 1"),
        (lambda cache, i: [tuple(x[:, :, :i] for x in pair) for pair in cache], "everything behind"),
        (lambda cache, i: [tuple(x[:, :, i : i + 1] for x in pair) for pair in cache], "row 1 alone"),
        (lambda cache, i: [tuple(x.index_fill(2, torch.tensor(i), 0) for x in p) for p in cache], "set to 0"),
        (lambda cache, i: [tuple(x.index_fill_(2, torch.tensor(i), 0) for x in p) for p in cache], "is changed"),
        (lambda cache, i: None, "returns nothing"),
    ],
    "check_hybrid_rows": [
        (lambda t, n, trigger, g: begin(t, n, trigger, g, 1), "standard deviation of the random rows is 1"),
        (lambda t, n, trigger, g: begin(t, n, trigger, g, t.std(0)), "Each column"),
        (lambda t, n, trigger, g: begin(t, n, trigger, g, t.var()), "variance"),
        (lambda t, n, trigger, g: begin(t, n, trigger, g, t.std()).roll(3, 0), "trigger stands first"),
        (lambda t, n, trigger, g: begin(t, n, [], g, t.std()), "trigger's rows are missing"),
        (lambda t, n, trigger, g: t[trigger], "random rows are missing"),
        (lambda t, n, trigger, g: begin(t, n, sorted(set(trigger)), g, t.std()), "(8, 8) was asked for"),
    ],
    "check_sign_test": [
        (lambda a, b: (sum(a), sum(b), 1.0), "those that both have right"),
        (lambda a, b: signs(b, a), "exchanged"),
        (lambda a, b: signs(a, b, sides=1), "double it"),
        (lambda a, b: signs(a, b, most=9), "above 1"),
        (lambda a, b: signs(a, b, late=-1), "leaves out 3"),
        (lambda a, b: signs(a, b, n=len(a)), "not of all"),
        (lambda a, b: signs(a, b)[2], "three numbers"),
    ],
    "check_first_error": [
        (lambda written, true: "copy", "and should be ''"),
        (lambda written, true: kind(written, true, wide=4), "instead of"),
        (lambda written, true: kind(written[::-1], true[::-1]) if written != true else "", "should be 'digit'"),
        (lambda written, true: {"digit": "digits"}.get(kind(written, true), kind(written, true)), "should be 'digit'"),
        (lambda written, true: kind(written, true) or None, "returns nothing"),
        (lambda written, true: kind(written.split("=")[0] + "=", true), "should be ''"),
    ],
    "check_divergence": [
        (lambda t, s: divergence(s, t).sum(-1).mean(), "exchanged"),
        (lambda t, s: divergence(t, s).sum(), "sum over the positions"),
        (lambda t, s: divergence(t, s).mean(), "over the vocabulary too"),
        (lambda t, s: divergence(t, s).sum(-1), "at each position"),
        (lambda t, s: divergence(t, s, 0).sum(-1).mean(), "over positions"),
        (lambda t, s: torch.nn.functional.cross_entropy(s, t.softmax(-1)), "cross-entropy"),
        (lambda t, s: (t.softmax(-1) * (t - s)).sum(-1).mean(), "logits"),
        (lambda t, s: torch.nn.functional.kl_div(s, t, reduction="batchmean"), "contains NaN"),
    ],
    "check_stack": [
        (lambda keys: padded(keys, at_end=True), "at the end"),
        (lambda keys: (padded(keys)[0], torch.tensor([x.size(2) for x in keys])), "that are taken"),
        (lambda keys: padded(keys)[0], "Return two things"),
        (lambda keys: (padded(keys)[0].transpose(0, 1), padded(keys)[1]), "exchanged"),
        (lambda keys: (torch.cat(keys, 2), padded(keys)[1]), "behind one another"),
        (lambda keys: (torch.cat(keys), None), "stopped with"),
    ],
    "check_vote": [
        (lambda finals: max(finals), "should be '12'"),
        (lambda finals: finals[0], "should be '9'"),
        (lambda finals: max(sorted(finals), key=finals.count), "should be"),
        (lambda finals: max(finals[::-1], key=finals.count), "the earlier answer wins"),
        (lambda finals: max((f for f in finals if f), key=finals.count), "cut off"),
        (lambda finals: max(finals.count(f) for f in finals), "the answer itself"),
    ],
}


WRONG |= {
    "check_count_numbers": [
        (lambda P, C, n, r: (P * C, P * n * C, 16 * n * r * C), "there are both"),
        (lambda P, C, n, r: (P * C, 2 * P * C, 16 * n * r * C), "one layer of P-tuning"),
        (lambda P, C, n, r: (P * C, 2 * P * n * C, 16 * r * C), "one layer of LoRA"),
        (lambda P, C, n, r: (P * C, 2 * P * n * C, 8 * n * r * C), "one of LoRA's two matrices"),
        (lambda P, C, n, r: (P * C, 2 * P * n * C, 12 * n * C * C), "leaves alone"),
        (lambda P, C, n, r: (P + C, 2 * P * n * C, 16 * n * r * C), "prompt tuning has P rows"),
        (lambda P, C, n, r: 16 * n * r * C, "three numbers"),
    ],
    "check_weight_on_prefix": [
        (lambda w, P: w[..., P:].sum(-1), "1 - a"),
        (lambda w, P: w[..., :P].mean(-1), "the mean over"),
        (lambda w, P: w[..., :P].sum(1), "runs over positions"),
        (lambda w, P: w[..., :P].sum(0), "runs over heads"),
        (lambda w, P: w[:, :P].sum(-1), "first P positions"),
        (lambda w, P: w[..., : P + 1].sum(-1), "first token is counted"),
        (lambda w, P: w[..., :P].sum(-1).mean(0), "averaged"),
    ],
    "check_with_prefix": [
        (lambda y, w, v: y + w[:, : len(v)] @ v, "not turned down"),
        (lambda y, w, v: (1 - w[:, : len(v)].sum(-1)) * y + w[:, : len(v)] @ v, "keepdim=True"),
        (lambda y, w, v: (1 - w[:, : len(v)].mean(-1, keepdim=True)) * y + w[:, : len(v)] @ v, "not their mean"),
        (lambda y, w, v: w[:, : len(v)] @ v, "(1 - a) y, is missing"),
        (lambda y, w, v: (1 - w[:, : len(v)].sum(-1, keepdim=True)) * y, "own values are missing"),
    ],
    "check_lora_linear": [
        (lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "not scaled"),
        (lambda x, W, A, B, alpha: x @ W.T + alpha * x @ A.T @ B.T, "by alpha, not"),
        (lambda x, W, A, B, alpha: x @ W + alpha / len(A) * x @ A.T @ B.T, "W stands the wrong way"),
        (lambda x, W, A, B, alpha: alpha / len(A) * x @ A.T @ B.T, "W x is missing"),
        (lambda x, W, A, B, alpha: x @ W.T + alpha / len(B) * x @ A.T @ B.T, "r is the rank"),
        (lambda x, W, A, B, alpha: x @ W.T + x @ A @ B, "stopped with"),
    ],
}


def divergence(teacher, student, dim=-1):
    log_p, log_q = teacher.log_softmax(dim), student.log_softmax(dim)
    return log_p.exp() * (log_p - log_q)


def padded(keys, at_end=False):
    empty = [max(x.size(2) for x in keys) - x.size(2) for x in keys]
    pad = [torch.nn.functional.pad(x, (0, 0, 0, n) if at_end else (0, 0, n, 0)) for x, n in zip(keys, empty)]
    return torch.cat(pad), torch.tensor(empty)


def begin(table, n_random, trigger, rng, std):
    rows = torch.randn(n_random, table.size(1), generator=rng) * std
    return torch.cat([rows, table[torch.tensor(trigger, dtype=torch.long)]])


def signs(a, b, sides=2, most=1, late=0, n=None):
    """The sign test of the third lesson, with its mistakes."""
    only_a, only_b = sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    n, k = n or only_a + only_b, min(only_a, only_b) + late
    return only_a, only_b, min(most, sides * sum(math.comb(n, j) for j in range(k + 1)) / 2**n)


def kind(written, true, wide=5):
    at = next((i for i, (a, b) in enumerate(zip(written.ljust(len(true)), true)) if a != b), None)
    if at is None:
        return ""
    return "copy" if at > true.rindex("=") else ("digit", "digit", "carry", "sum", "sum")[at % wide]


def attend(q, k, v, past_k, past_v, scale=None, mask=True, behind=None, dim=-1):
    """One head, with the mistakes of the first lesson."""
    P, T = len(past_k), len(q)
    scores = q @ torch.cat([past_k, k]).T / (scale or q.size(1) ** 0.5)
    if mask:
        scores = scores.masked_fill(torch.ones(T, P + T, dtype=torch.bool).triu(behind or P + 1), -torch.inf)
    return scores.softmax(dim) @ torch.cat([past_v, v])


def gradient(model, rows, tokens, targets, batch=True, scale=1, ask=True):
    rows = rows.requires_grad_(True) if ask else rows
    hidden = model(tokens, model.prefill(rows[None] if batch else rows))
    (scale * model.loss(hidden.flatten(0, 1), targets.flatten())).backward()
    return rows.grad


def loss(model, tokens, targets, answer, past):
    return model.loss(model(tokens, past)[answer], targets[answer])


def tuned(rows, f, batches, lr, kind=torch.optim.AdamW, weight_decay=0, clear=True, backward=True, again=False):
    """The loop of the second lesson, with its mistakes."""
    rows = torch.nn.Parameter(rows)
    optimizer = kind([rows], lr, weight_decay=weight_decay)
    for batch in batches:
        optimizer = kind([rows], lr, weight_decay=weight_decay) if again else optimizer
        if backward:
            f(rows, batch).backward()
        optimizer.step()
        if clear:
            optimizer.zero_grad()
    return rows.detach()


def remove(pair, i, dim=2):
    return tuple(torch.cat([x.narrow(dim, 0, i), x.narrow(dim, i + 1, x.size(dim) - i - 1)], dim) for x in pair)


@pytest.mark.parametrize("check", WRONG)
def test_a_check_says_what_is_wrong(check, capsys):
    for answer, message in WRONG[check]:
        getattr(checks, check)(answer)
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and any(part in said for part in message.split("|")), said


def test_every_check_is_tried_with_wrong_answers():
    used = {name for path in LESSONS for _, check in exercises(path) for name in WRONG if name in check}
    assert used == {name for name in dir(checks) if name.startswith("check_")} == set(WRONG)


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_the_notebook_is_in_step_with_the_python_file(path):
    jupytext = pytest.importorskip("jupytext", reason="of the extra lessons")
    ours, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in ours.cells] == [(c.cell_type, c.source) for c in notebook.cells]


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_the_notebook_holds_its_outputs_and_is_small(path):
    file = path.with_suffix(".ipynb")
    code = [SimpleNamespace(**c) for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    verdicts = [cell for cell in code if any("Not yet: write" in "".join(o.get("text", "")) for o in cell.outputs)]
    assert len(verdicts) == len(exercises(path))
    assert file.stat().st_size < 400_000


def test_slides_show_the_figures_of_the_notebooks():
    slides = (FOLDER / "slides.md").read_text().split("\n---\n")[1:]  # the first part is the header
    shown = re.findall(r"!\[.*?\]\((.*?)\.png\)", "".join(slides))
    assert 25 <= len(slides) <= 30
    assert sorted(shown) == sorted(figures())
