"""The lessons run to their end, their checks tell right from wrong and say what is wrong, and notebooks are in step."""

import json
from types import SimpleNamespace

import matplotlib
import pytest
import torch

from checkpoint import save_model
from lessons import checks
from lessons.attention import attention_weights
from lessons.run import LESSONS, cells, run_cells, solved

matplotlib.use("Agg")
SHARE = "0.05"  # of the examples that a lesson learns from and is tested on
names = [path.stem for path in LESSONS]


def exercises(path):
    """[(stub, check)]: the source of each exercise and of the cell behind it."""
    found = cells(path)
    return [(source, found[i + 1][1]) for i, (header, source) in enumerate(found) if '"exercise"' in header]


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_a_lesson_runs_to_its_end_and_its_checks_tell_stub_from_solution(path, capsys, monkeypatch, tmp_path):
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
        (lambda model, tokens: model.logits(model(tokens[0])), "it stopped in line"),
    ],
    "check_positions_behind": [
        (lambda P, T: torch.arange(T), "begin at 0"),
        (lambda P, T: torch.arange(P + 1, P + T + 1), "P + 1"),
        (lambda P, T: torch.arange(P + T), "number the cache as well"),
        (lambda P, T: torch.arange(P, P + T + 1), "one position too many"),
        (lambda P, T: list(range(P, P + T)), "should be a tensor, but it is of type list"),
        (lambda P, T: torch.arange(P, T), "and (3,) was asked for|stopped in line"),
    ],
    "check_head": [
        (lambda q, k, v, a, b: attend(q, k, v, a, b, scale=1), "not divided by sqrt(D)"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, scale=q.size(1)), "square root"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, mask=False), "No mask"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, behind=1), "P columns later"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b, dim=0), "wrong dimension"),
        (lambda q, k, v, a, b: attend(q, k, v, a[:0], b[:0]), "left out"),
        (lambda q, k, v, a, b: attend(q, k, v, a, b)[:, :4], "shape"),
    ],
    "check_gradient_of_rows": [
        (lambda model, rows, t, y: gradient(model, rows, t, y, batch=False), "batch of one prompt"),
        (lambda model, rows, t, y: gradient(model, rows, t, y, scale=t.numel()), "sum over all positions"),
        (lambda model, rows, t, y: gradient(model, rows, t, y, ask=False), "requires a gradient"),
        (lambda model, rows, t, y: gradient(model.requires_grad_(True), rows, t, y), "weights have gradients"),
        (lambda model, rows, t, y: gradient(model, rows, t, y)[None], "batch dimension is still there"),
        (lambda model, rows, t, y: gradient(model, rows, t, y[:, :3]), "stopped in line"),
    ],
}


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


@pytest.mark.parametrize("check", WRONG)
def test_a_check_says_what_is_wrong(check, capsys):
    for answer, message in WRONG[check]:
        getattr(checks, check)(answer)
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and any(part in said for part in message.split("|")), said


def test_every_check_is_tried_with_wrong_answers():
    used = {name for path in LESSONS for _, check in exercises(path) for name in WRONG if name in check}
    assert used == {name for name in dir(checks) if name.startswith("check_")} == set(WRONG)


def test_attention_weights_are_those_of_transformers(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_model(tiny, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = torch.randint(1024, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = torch.stack(theirs(tokens, output_attentions=True).attentions)  # (n_layer, 1, n_head, 9, 9)
    torch.testing.assert_close(attention_weights(tiny, tokens), right, atol=1e-5, rtol=1e-4)
    behind = attention_weights(tiny, tokens[:, 4:], tiny.prefill(tokens[:, :4]))  # (n_layer, 1, n_head, 5, 9)
    torch.testing.assert_close(behind, right[..., 4:, :], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", LESSONS, ids=names)
def test_the_notebook_is_in_step_with_the_python_file(path):
    jupytext = pytest.importorskip("jupytext", reason="of requirements-lessons.txt")
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
