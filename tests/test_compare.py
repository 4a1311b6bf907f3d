"""compare.py on a tiny base: two methods, what they learned asked elsewhere, a stop and going on."""

import json

import pytest
import torch
from conftest import results_of

from eval import plots, report
from files.weights import save_model
from model import GPT, GPTConfig
from research import compare, studies


def test_finished_runs_are_kept_and_the_rest_is_run(study_args, tmp_path):
    cells = [
        studies.cell(study_args, "word_reversal", "nothing", 1, "--method", "zero-shot"),
        studies.cell(study_args, "word_reversal", "rows", 24, "--method", "hybrid", then=["last_letter"]),
    ]
    results = compare.run_all(cells, study_args, tmp_path / "study")
    assert [[len(outs) for outs in runs] for runs in results] == [[1, 1], [2, 2]]
    one, other = ([json.loads((out / "results.json").read_text()) for out in outs] for outs in cells[1]["runs"])
    assert one[0]["args"]["seed"] == 0 and other[0]["args"]["seed"] == 1
    assert one[0]["loss"]["hybrid"]["examples"][-1] == 26  # of 32 a fifth is held back
    assert one[1]["task"] == "last_letter" and not one[1]["loss"]  # loaded, not tuned again
    kept = cells[0]["runs"][0][0] / "results.json"
    gone = cells[1]["runs"][1][1] / "results.json"
    before = kept.stat().st_mtime_ns
    gone.unlink()
    again = compare.run_all(cells, study_args, tmp_path / "study")
    assert kept.stat().st_mtime_ns == before and gone.exists()
    assert again[1][0] == results[1][0]

    rows = compare.summary(cells, results)
    assert list(rows[1]["accuracy"]) == ["in-distribution", "9 letters", "10 letters", "new words", "on last_letter"]
    assert rows[1]["trainable"] == one[0]["prompt"]["rows"] * 32
    for along in ("rows", ""):
        plots.plot_study(rows, tmp_path, along)
        assert (tmp_path / "figure_word_reversal.png").stat().st_size > 5000
        (tmp_path / "figure_word_reversal.png").unlink()


def test_a_cell_of_two_bases_is_the_mean_over_both(study_args, little_base, tmp_path):
    study_args.model.append(str(little_base(tmp_path / "other", n_layer=1, n_embd=32)))
    study_args.seeds = 1
    cells = [studies.cell(study_args, "word_reversal", "nothing", None, "--method", "zero-shot")]
    (runs,) = compare.run_all(cells, study_args, tmp_path / "study")
    each = [results_of(out) for (out,) in cells[0]["runs"]]
    made = [(r["base"]["name"], r["args"]["seed"]) for r in each]
    assert made == [("little", 0), ("other", 0)] and len(runs) == 2


def test_mean_and_extremes_over_the_seeds_by_hand():
    def results(*right):
        return {
            "accuracy": {
                "hybrid": {"in-distribution": {"correct": right[0], "n": 10}, "longer": {"correct": right[1], "n": 4}}
            },
            "before": {"hybrid": {"in-distribution": {"correct": 1, "n": 10}, "longer": {"correct": right[1], "n": 4}}},
            "trainable": {"hybrid": 7},
            "seconds": {"tuning": 2.0, "measuring": 1.0},
        }

    cells = [{"task": "t", "series": "s", "x": None}]
    (row,) = compare.summary(cells, [[[results(10, 1)], [results(7, 2)], [results(4, 3)]]])
    assert row["accuracy"] == {"in-distribution": [70, 40, 100], "longer": [50, 25, 75]}
    assert row["before"] == {"in-distribution": [10, 10, 10], "longer": [50, 25, 75]}
    assert row["added"] == {"in-distribution": [60, 30, 90], "longer": [0, 0, 0]}
    assert (row["trainable"], row["seconds"]) == (7, 3.0)


def test_what_was_taken_up_on_another_task_stands_beside_its_own_start():
    def results(task, before, after):
        score = {"in": {"correct": after, "n": 10}, "longer": {"correct": 0, "n": 10}}
        start = {"in": {"correct": before, "n": 10}, "longer": {"correct": 0, "n": 10}}
        one = {"task": task, "accuracy": {"hybrid": score}, "before": {"hybrid": start} if before is not None else {}}
        return one | {"trainable": {"hybrid": 7}, "seconds": {"tuning": 2.0}}

    cells = [{"task": "a", "series": "s", "x": None}]
    (row,) = compare.summary(cells, [[[results("a", 1, 5), results("b", 2, 9), results("c", None, 4)]]])
    assert row["accuracy"]["on b"] == [90, 90, 90] and row["before"]["on b"] == [20, 20, 20]
    assert row["accuracy"]["on c"] == [40, 40, 40] and "on c" not in row["before"]
    assert row["added"]["on b"] == [70, 70, 70] and list(row["accuracy"]) == ["in", "longer", "on b", "on c"]


def test_a_figure_has_a_panel_for_another_task_though_no_context_was_asked_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "write", lambda fig, path: drawn.append(fig.axes))
    there = {"in": [95] * 3, "on b": [50] * 3}
    plots.plot_study([a_row("prompt", before={}, accuracy=there), a_row("best context", before={})], tmp_path)
    ((own, other),) = drawn
    assert (own.get_title(), other.get_title()) == ("in", "on\nb")
    assert {line.get_xdata()[0] for line in other.lines} == {50}  # the mean and its whiskers


def test_a_heat_map_has_a_cell_for_each_pair_of_tasks_and_a_row_for_each_other_start(tmp_path, monkeypatch):
    """The numbers that are drawn, read off the axes: the prompt of each task on each, then the default start."""
    drawn = []
    monkeypatch.setattr(plots, "write", lambda fig, path: drawn.append(fig.axes[0]))
    value, rows = {("a", "a"): 90, ("a", "b"): 50, ("b", "a"): 40, ("b", "b"): 80}, []
    for task in ("a", "b"):
        on = {f"on {other}": [value[task, other]] * 3 for other in ("a", "b")}
        rows.append(a_row("prompt", task=task, before={"in": [5] * 3} | {k: [10] * 3 for k in on}))
        rows[-1]["accuracy"] = {"in": [95] * 3} | on
        after = {"in": [60 if task == "a" else 70] * 3}
        rows.append(a_row("default", task=task, before={"in": [20] * 3}, accuracy=after))
        rows.append(a_row("best context", task=task))
    plots.plot_heat(rows, tmp_path / "heat.png")
    (axis,) = drawn
    texts = [t.get_text() for t in axis.texts]
    assert texts == ["10 > 90", "10 > 50", "10 > 40", "10 > 80", "20 > 60", "20 > 70"]
    assert axis.images[0].get_array().tolist() == [[90, 50], [40, 80], [60, 70]]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["prompt of a", "prompt of b", "default"]


def test_a_run_that_fails_is_named_and_the_others_are_kept(study_args, tmp_path):
    cells = [
        studies.cell(study_args, "word_reversal", "broken", None, "--method", "prompt", "--n-random", 5000),
        studies.cell(study_args, "word_reversal", "nothing", 1, "--method", "zero-shot"),
    ]
    study_args.seeds = 1
    with pytest.raises(ValueError, match="1 of 2 runs failed; .*--n-random 5000.*block_size 256"):
        compare.run_all(cells, study_args, tmp_path / "study")
    assert (cells[1]["runs"][0][0] / "results.json").exists()


def test_bad_input_is_one_line(command):
    for words, why in (
        ((), "name a study: methods"),
        (("nonsense",), "no study 'nonsense': choose from methods"),
        (("methods", "--seeds", 0), "--seeds: 0: give at least 1"),
        (("capacity", "--tasks", "addition"), "--tasks addition: capacity has one task, memory: leave it out"),
        (("methods", "--model", "nano-2", "nano-prose"), "--model nano-2 nano-prose: they are not of one size"),
    ):
        done = command("compare.py", *words)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert why in done.err
    assert "methods               Every method on every task" in command("compare.py", "--list").out


def a_row(series, **more):
    row = {"task": "t", "series": series, "x": None, "accuracy": {"in": [1.0, 0.0, 2.0]}, "before": {}, "added": {}}
    return row | {"trainable": 0, "seconds": 5.4} | more


def test_a_study_s_table_shows_the_start_and_the_best_context():
    tuned = a_row("s", x=10, before={"in": [0.5, 0.0, 1.0]}, trainable=1234)
    context = a_row("best context")
    settings = {"model": "little", "seeds": 2}
    assert "| s | 10 | 0.5 > 1.0 [0.0, 2.0] | 1,234 | 5 |" in report.study_table(
        [tuned, context], settings, 2, "", "rows"
    )
    text = report.study_table([tuned, context], settings, 2, "32 examples")
    assert "| s | 0.5 > 1.0 [0.0, 2.0] | 1,234 | 5 |" in text
    assert "mean of 2 seeds [lowest, highest]; 32 examples; base little; seconds" in text
    text = report.study_table([tuned, context], settings | {"model": "one, other"}, 2, "32 examples")
    assert "mean of 2 seeds on each base [lowest, highest]; 32 examples; bases one, other; seconds" in text
    elsewhere = tuned | {"accuracy": {"in": [1.0, 0.0, 2.0], "on u": [3.0, 3.0, 3.0]}}  # not asked of the context
    text = report.study_table([elsewhere, context], settings, 2, "")
    assert "| s | 0.5 > 1.0 [0.0, 2.0] | 3.0 [3.0, 3.0] | 1,234" in text
    with pytest.raises(AssertionError, match="best context was not measured"):
        report.study_table([tuned], settings, 2, "")
    with pytest.raises(AssertionError, match="no accuracy before tuning"):
        report.study_table([tuned | {"before": {}}, context], settings, 2, "")


def test_a_run_is_finished_for_its_arguments_its_base_and_the_source_alone(study_args, tmp_path):
    """A folder of the same flags is no finished run once the weights or the code have changed."""
    one = compare.run_folder(tmp_path, ["--task", "addition"], "base", "source")
    others = [
        compare.run_folder(tmp_path, ["--task", "addition", "--lr", "1"], "base", "source"),
        compare.run_folder(tmp_path, ["--task", "addition"], "other base", "source"),
        compare.run_folder(tmp_path, ["--task", "addition"], "base", "other source"),
    ]
    assert one not in others and len(set(others)) == 3
    cells = [studies.cell(study_args, "word_reversal", "nothing", None, "--method", "zero-shot")]
    compare.run_all(cells, study_args, tmp_path / "study")
    before = cells[0]["runs"][0][0]
    torch.manual_seed(1)
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=1, n_head=2, n_embd=32)), study_args.model[0])
    compare.run_all(cells, study_args, tmp_path / "study")
    assert cells[0]["runs"][0][0] != before and (before / "results.json").exists()


def test_a_study_from_the_command_line_holds_every_start_and_context(study_args, tmp_path, command):
    flags = ("--model", *study_args.model, "--tasks", "word_reversal", "--seeds", 1, "--examples", 32, "--questions", 5)
    done = command("compare.py", "prompt_position", *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    folder = tmp_path / "out" / "prompt_position"
    assert sorted(p.name for p in folder.iterdir()) == ["figure_word_reversal.png", "study.json", "table.md"]
    text = (folder / "table.md").read_text()
    for series in ("before", "inside", "after", "best context", "the example as text"):
        assert f"| {series} | " in text
    rows = json.loads((folder / "study.json").read_text())["rows"]
    assert [bool(r["before"]) for r in rows] == [True, True, True, False, False]

    # one row of the table alone, and none that the study does not have
    done = command("compare.py", "prompt_position", *flags, "--out", tmp_path / "out", "--series", "after")
    rows = json.loads((folder / "study.json").read_text())["rows"]
    assert [r["series"] for r in rows] == ["after", "the example as text", "best context"]
    done = command("compare.py", "prompt_position", *flags, "--out", tmp_path / "out", "--series", "above")
    assert done.code == 2 and "--series above: prompt_position has before, inside, after" in done.err

    # with --add the earlier row stays, in the study's order, and one measured again is as it was measured now
    done = command("compare.py", "prompt_position", *flags, "--out", tmp_path / "out", "--series", "before", "--add")
    assert done.code == 0, done.err
    added = json.loads((folder / "study.json").read_text())["rows"]
    assert [r["series"] for r in added] == ["before", "after", "the example as text", "best context"]
    assert added[1:] == rows and "| after | " in (folder / "table.md").read_text()
    fewer = [*flags[:-1], 4, "--out", tmp_path / "out"]
    done = command("compare.py", "prompt_position", *fewer, "--series", "before", "--add")
    assert done.code == 2 and "'questions': 5" in done.err and "leave out --add" in done.err
    assert json.loads((folder / "study.json").read_text())["rows"] == added


def test_rows_of_earlier_commands_stand_in_the_order_of_the_study():
    def row(series, x=None, seconds=1, task="addition"):
        return {"task": task, "series": series, "x": x, "seconds": seconds}

    cells = [row("a", 1), row("a", 2), row("b", 1)]
    earlier = [row("a", 2), row("b", 1), row("best context", 1), row("best context", 2)]
    now = [row("a", 1, 2), row("b", 1, 2), row("best context", 1, 2)]
    found = compare.merged(earlier, now, cells)
    assert [(r["series"], r["x"], r["seconds"]) for r in found] == [
        ("a", 1, 2),
        ("a", 2, 1),
        ("b", 1, 2),
        ("best context", 2, 1),
        ("best context", 1, 2),
    ]
    assert compare.merged([], now, cells) == now
    other = [row("a", 1, task="last_letter")]
    assert compare.merged(now, other, other) == [*now, *other]  # a task that was added stands behind
