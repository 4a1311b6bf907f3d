"""The lessons run to their end, checks say what is wrong with an answer, and notebooks and numbers are in step."""

import json
import math
import re

import matplotlib
import pytest
import torch

from lessons import checks
from lessons.figures import figures
from lessons.run import FOLDER, LESSONS, cells, fill, run_cells, solved

matplotlib.use("Agg")
names = [path.stem for path in LESSONS]


def exercises(path):
    """[(stub, check)]: the source of each exercise and of the cell behind it."""
    found = cells(path)
    return [(source, found[i + 1][1]) for i, (header, source) in enumerate(found) if '"exercise"' in header]


def outputs(path):
    """The outputs of all code cells of a lesson's notebook."""
    found = json.loads(path.with_suffix(".ipynb").read_text())["cells"]
    return [output for cell in found if cell["cell_type"] == "code" for output in cell["outputs"]]


def printed(path):
    return "".join("".join(output.get("text", "")) for output in outputs(path))


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_a_lesson_runs_to_its_end_and_its_checks_tell_stub_from_solution(path, capsys, monkeypatch):
    monkeypatch.setenv("LESSONS_SHARE", "0.02")  # of the examples that a lesson learns from and is tested on
    found = exercises(path)
    assert 3 <= len(found) <= 4
    space = run_cells(solved(path), path)
    verdicts = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Right.", "Not yet"))]
    assert verdicts == ["Right."] * len(found)
    for stub, check in found:  # what a student sees before starting
        run_cells([("", stub), ("", check)], path, space)
        assert capsys.readouterr().out.startswith("Not yet: write the function")
    matplotlib.pyplot.close("all")


# what people type instead, and what the check has to say about it
WRONG = {
    "check_scores": [
        (lambda q, k: q @ k.T, "not divided by sqrt(D)"),
        (lambda q, k: (k @ q.T) / 3**0.5, "exchanged"),
        (lambda q, k: q @ k, "k.T"),
    ],
    "check_causal": [
        (lambda s: s.masked_fill(torch.ones_like(s).triu().bool(), -torch.inf), "may look at itself"),
        (lambda s: s.tril(), "are 0"),
        (lambda s: torch.ones_like(s).triu(1).bool(), "where the future is"),
    ],
    "check_attention": [
        (lambda q, k, v: (q @ k.T / 3**0.5).softmax(-1).tril() @ v, "after the softmax"),
        (lambda q, k, v: (q @ k.T / 3**0.5).softmax(-1) @ v, "No mask"),
    ],
    "check_step": [
        (lambda q, k, v, c: (toy(q, *c), (torch.cat([c[0], k]), torch.cat([c[1], v]))), "does not see itself"),
        (lambda q, k, v, c: (toy(q, torch.cat([c[0], k]), torch.cat([c[1], v])), c), "still the old ones"),
        (lambda q, k, v, c: toy(q, torch.cat([c[0], k]), torch.cat([c[1], v])), "two things"),
    ],
    "check_next_token_logits": [
        (lambda model, tokens: model.logits(model(tokens)), "every position"),
        (lambda model, tokens: None, "returns nothing"),
        (lambda model, tokens: model.logits(model(tokens[0])), "your line `(lambda model, tokens"),
    ],
    "check_positions_behind": [
        (lambda P, T: torch.arange(T), "begin at 0"),
    ],
    "check_head": [
        (lambda q, k, v, a, b: attend(q, k, v, a, b, scale=1), "not divided by sqrt(D)"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, begin=1), "P columns later"),
    ],
    "check_gradient_of_rows": [
        (lambda m, rows, t, y: gradient(m, rows, t, y), "requires a gradient"),
        (lambda m, rows, t, y: gradient(m, rows.requires_grad_(), t, y, scale=t.numel()), "sum over all positions"),
        (lambda m, rows, t, y: gradient(m.requires_grad_(), rows.requires_grad_(), t, y), "weights have gradients"),
    ],
    "check_answer_positions": [
        (lambda Q, A: torch.arange(Q + A - 1) >= Q, "one position late"),
    ],
    "check_prompt_loss": [
        (lambda rows, m, t, y, a: loss(m, t, y, a | True, rows[None]), "over all positions"),
        (lambda rows, m, t, y, a: loss(m, t, y, a, rows[None]).detach(), "lost its gradient"),
    ],
    "check_tune": [
        (lambda rows, f, batches, lr: tuned(rows, f, batches, lr, clear=False), "add up"),
        (lambda rows, f, batches, lr: rows, "have not moved"),
    ],
    "check_without_row": [
        (lambda cache, i: [remove(cache[0], i), *cache[1:]], "Layer 2, keys: nothing is missing"),
        (lambda cache, i: [remove(pair, i + 1) for pair in cache], "row 2 is missing, not 1"),
        (lambda cache, i: [tuple(x.index_fill(2, torch.tensor(i), 0) for x in p) for p in cache], "set to 0"),
    ],
    "check_hybrid_rows": [
        (lambda t, n, trigger, g: begin(t, n, trigger, g, 1), "standard deviation of the random rows is 1"),
        (lambda t, n, trigger, g: begin(t, n, trigger, g, t.std()).roll(3, 0), "trigger stands first"),
    ],
    "check_sign_test": [
        (lambda a, b: (sum(a), sum(b), 1.0), "those that both have right"),
        (lambda a, b: signs(a, b, sides=1), "double it"),
    ],
    "check_first_error": [
        (lambda written, true: "copy", "and should be ''"),
    ],
    "check_count_numbers": [
        (lambda P, C, n, r: (P * C, P * n * C, 16 * n * r * C), "there are both"),
    ],
    "check_weight_on_prefix": [
        (lambda w, P: w[..., P:].sum(-1), "1 - a"),
    ],
    "check_with_prefix": [
        (lambda y, w, v: y + w[:, : len(v)] @ v, "not turned down"),
    ],
    "check_lora_linear": [
        (lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "not scaled"),
    ],
    "check_divergence": [
        (lambda t, s: (s.softmax(-1) * (s.log_softmax(-1) - t.log_softmax(-1))).sum(-1).mean(), "exchanged"),
        (lambda t, s: (t.softmax(0) * (t.log_softmax(0) - s.log_softmax(0))).sum(-1).mean(), "over positions"),
    ],
    "check_stack": [
        (lambda keys: padded(keys, at_end=True), "at the end"),
    ],
    "check_vote": [
        (lambda finals: max(finals[::-1], key=finals.count), "the earlier answer wins"),
    ],
}


def toy(q, keys, values):
    return (q @ keys.T / q.size(1) ** 0.5).softmax(-1) @ values


def attend(q, k, v, past_k, past_v, scale=None, begin=None):
    scores = q @ torch.cat([past_k, k]).T / (scale or q.size(1) ** 0.5)
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(len(past_k) + 1 if begin is None else begin)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ torch.cat([past_v, v])


def gradient(model, rows, tokens, targets, scale=1):
    hidden = model(tokens, model.prefill(rows[None]))
    (scale * model.loss(hidden.flatten(0, 1), targets.flatten())).backward()
    return rows.grad


def loss(model, tokens, targets, answer, rows):
    return model.loss(model(tokens, model.prefill(rows))[answer], targets[answer])


def tuned(rows, f, batches, lr, clear=True):
    optimizer = torch.optim.AdamW([rows := torch.nn.Parameter(rows)], lr, weight_decay=0)
    for batch in batches:
        f(rows, batch).backward()
        optimizer.step()
        if clear:
            optimizer.zero_grad()
    return rows.detach()


def remove(pair, i):
    return tuple(torch.cat([x[:, :, :i], x[:, :, i + 1 :]], dim=2) for x in pair)


def begin(table, n_random, trigger, rng, std):
    rows = torch.randn(n_random, table.size(1), generator=rng) * std
    return torch.cat([rows, table[torch.tensor(trigger, dtype=torch.long)]])


def signs(a, b, sides=2):
    only_a, only_b = sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    n, k = only_a + only_b, min(only_a, only_b)
    return only_a, only_b, min(1, sides * sum(math.comb(n, j) for j in range(k + 1)) / 2**n)


def padded(keys, at_end=False):
    empty = [max(x.size(2) for x in keys) - x.size(2) for x in keys]
    pad = [torch.nn.functional.pad(x, (0, 0, 0, n) if at_end else (0, 0, n, 0)) for x, n in zip(keys, empty)]
    return torch.cat(pad), torch.tensor(empty)


@pytest.mark.parametrize("check", WRONG)
def test_a_check_says_what_is_wrong(check, capsys):
    for answer, message in WRONG[check]:
        getattr(checks, check)(answer)
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and message in said, said


def test_every_check_belongs_to_an_exercise_and_is_tried_with_wrong_answers():
    used = {name for path in LESSONS for _, check in exercises(path) for name in WRONG if name in check}
    assert used == {name for name in dir(checks) if name.startswith("check_")} == set(WRONG)


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_the_notebook_is_in_step_with_the_python_file_and_holds_its_outputs(path):
    jupytext = pytest.importorskip("jupytext", reason="of the extra lessons")
    ours, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    for cell in ours.cells:  # the text's numbers are those of the stored run
        cell.source = fill(cell.source, path.name[0]) if cell.cell_type == "markdown" else cell.source
    assert [(c.cell_type, c.source) for c in ours.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    found = outputs(path)
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert printed(path).count("Not yet: write") == len(exercises(path))
    assert path.with_suffix(".ipynb").stat().st_size < 400_000


def test_slides_show_the_figures_of_the_notebooks():
    slides = (FOLDER / "slides.md").read_text().split("\n---\n")[1:]  # the first part is the header
    shown = re.findall(r"!\[.*?\]\((.*?)\.png\)", "".join(slides))
    assert 25 <= len(slides) <= 30
    assert set(shown) <= set(figures())


def test_accuracies_in_prose_and_slides_are_rows_of_the_tables_that_the_notebooks_print():
    tables = [path for path in LESSONS if path.name[0] in "23"]
    columns = [re.findall(r"[+-]?\d+", line) for path in tables for line in printed(path).splitlines()]
    rows = {tuple(map(int, row)) for line in columns for row in (line[-5:], line[-10::2], line[-9::2])}
    prose = " ".join(source for path in tables for header, source in cells(path) if header == "[markdown]")
    quoted = re.findall(r"\d+(?:, \d+){3} and \d+", prose.replace("\n# ", " "))  # a number for each of the five ranges
    quoted += re.findall(r"\|((?: \d+ \|){5})\n", slides := (FOLDER / "slides.md").read_text())
    for line in re.findall(r"\|((?: \d+ > \d+ \|){5})\n", slides.replace("*", "")):
        numbers = re.findall(r"\d+", line)
        quoted += [" ".join(numbers[::2]), " ".join(numbers[1::2])]  # before and after
    assert len(quoted) >= 15
    assert not [numbers for numbers in quoted if tuple(map(int, re.findall(r"\d+", numbers))) not in rows]
