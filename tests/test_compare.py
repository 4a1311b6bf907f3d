"""compare.py on a tiny base: what is run, what is kept, what fails, several processes in a folder, and SLURM."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import copy_source, results_of

import train_task
from eval import report
from research import compare, studies
from run import resume


@pytest.fixture
def study(study_args, tmp_path):
    """The arguments of a study of three runs, one of them tuned, and a fourth that measures what it learned."""
    words = "transfer --series hybrid --tasks symbolic_sum --seeds 1 --questions 2 --examples 32 --jobs 2 --device cpu"
    return [*words.split(), "--model", study_args.model, "--out", str(tmp_path / "out")]


def until(what, seconds=200):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs of a study need no process of their own, which takes seconds to begin."""

    def start(out, line, args):
        module, *argv = line
        with redirect_stdout(StringIO()):
            importlib.import_module(module).main([*argv, "--out", str(out)])
        return Mock(poll=lambda: 0)

    monkeypatch.setattr(compare, "start", start)


def test_a_study_measures_each_cell_and_the_contexts_and_keeps_what_is_finished(
    study, tmp_path, command, in_this_process
):
    command("research.compare", "init", "--tasks", "nope").refused("no task 'nope'")
    done = command("research.compare", *study).ok()
    folder, runs = tmp_path / "out" / "transfer", tmp_path / "out" / "runs"
    assert sorted(p.name for p in folder.iterdir()) == ["figure_symbolic_sum.png", "study.json", "table.md"]
    rows = {r["series"]: r for r in json.loads((folder / "study.json").read_text())["rows"]}
    assert list(rows) == ["hybrid", "the example as text", "best context"]
    assert "on symbolic_sum:sequence" in rows["hybrid"]["accuracy"]
    table = (folder / "table.md").read_text()
    assert table in done.out and all(f"| {series} | " in table for series in rows)

    # one of four runs is done again, to the same results
    (gone,) = runs.glob("*_on_symbolic_sum-sequence_*")
    found, times = results_of(gone), {p: p.stat().st_mtime_ns for p in runs.glob("*/results.json")}
    (gone / "results.json").unlink()
    command("research.compare", *study).ok()
    assert [p.parent for p in times if times[p] != p.stat().st_mtime_ns] == [gone] and results_of(gone) == found


def test_a_failed_run_is_left_out_with_its_last_line_and_the_study_goes_on(study_args, tmp_path, command, monkeypatch):
    def cells(args, task):
        """A study of two rows."""
        yield studies.cell(args, task, "too long", "--n-random 5000")
        yield studies.cell(args, task, "nothing", "--method zero-shot")

    studies.study("word_reversal")(cells)
    monkeypatch.setitem(compare.STUDIES, "cells", compare.STUDIES.pop("cells"))
    few = "--seeds", 1, "--questions", 2, "--examples", 32, "--jobs", 2, "--device", "cpu"
    done = command("research.compare", "cells", *few, "--model", study_args.model, "--out", tmp_path)
    table = (tmp_path / "cells" / "table.md").read_text()
    assert done.code == 1 and table in done.out and "| nothing |" in table and "| too long |" not in table
    (line,) = [line for line in table.splitlines() if line.startswith("A row is left out, since a run failed: ")]
    assert "block_size 256" in line and line.endswith(f"/{compare.OUTPUT})")  # where its traceback would be


def test_a_study_that_is_told_to_end_ends_its_runs(study_args, tmp_path, command, monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    monkeypatch.setattr(compare, "start", lambda *args: sleeper)
    monkeypatch.setattr("time.sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    done = command("research.compare", "prompt_position", "--model", study_args.model, "--out", tmp_path)
    signal.signal(signal.SIGTERM, before)
    assert done.code == 128 + signal.SIGTERM and sleeper.wait() == -signal.SIGTERM


def test_a_cell_is_the_mean_over_seeds_by_hand():
    """Of another task its first range counts."""

    def run(task, before, *after):
        scores = [{"correct": a, "n": 10} for a in after]
        start = {} if before is None else {"hybrid": {"in": {"correct": before, "n": 10}}}
        measured = {"task": task, "accuracy": {"hybrid": dict(zip(("in", "longer"), scores))}, "before": start}
        return measured | {"trainable": {"hybrid": 7}, "seconds": {"tuning": 2.0, "measuring": 1.0}}

    cell = studies.Cell("a", "s", None, [], {})
    runs = [[run("a", 1, 10, 1), run("b", 2, 9, 0)], [run("a", 3, 7, 2), run("b", 4, 5, 0)]]
    row = compare.table_row(cell, runs)
    assert row["accuracy"] == {"in": [85, 70, 100], "longer": [15, 10, 20], "on b": [70, 50, 90]}
    assert row["before"] == {"in": [20, 10, 30], "on b": [30, 20, 40]}
    assert (row["series"], row["trainable"], row["seconds"]) == ("s", 7, 3.0)


def test_runs_are_made_for_each_seed_and_shared(study_args, tmp_path, little_base):
    """The folder of a run depends on its arguments, its base and the source."""
    one = studies.cell(study_args, "addition", "one", then={"addition:plain": ["research.measure", studies.PROMPT]})
    jobs, places = compare.plan([one, studies.cell(study_args, "addition", "same")], study_args, tmp_path)
    assert len(jobs) == 2 and [len(runs) for runs in places] == [2, 2]
    assert [first for (first,) in places[1]] == [first for first, _ in places[0]] == list(jobs)
    for (first, other), runs in zip(places[0], jobs.values()):
        assert list(runs) == [first, other] and str(first / "prefix.safetensors") in runs[other]
    args = train_task.parse_args(jobs[places[0][1][0]][places[0][1][0]][1:])
    assert (args.seed, args.model, args.resume) == (1, study_args.model, True)
    other, _ = compare.plan([studies.cell(study_args, "addition", "", "--lr 1")], study_args, tmp_path)
    little_base(Path(study_args.model), n_layer=1, n_embd=32, std=0.1)  # other weights under the same name
    again, _ = compare.plan([one], study_args, tmp_path)
    assert not jobs.keys() & (other.keys() | again.keys())


def test_the_source_hash_covers_what_numbers_depend_on_and_nothing_else(tmp_path):
    copy_source(tmp_path)
    before = compare.source_hash(tmp_path)
    assert before == compare.source_hash()
    for name in ("sample.py", "research/bench.py", "tasks/notes.md"):
        (tmp_path / name).write_text("more")
    assert compare.source_hash(tmp_path) == before
    (tmp_path / "methods" / "more").mkdir()
    for name in ("tasks/page.py", "data/words.txt", "methods/more/rows.py", "prefix.py"):
        (tmp_path / name).write_text("more")
        assert (after := compare.source_hash(tmp_path)) != before, name
        before = after


def test_a_row_that_a_study_does_not_have_is_one_line(command):
    done = command("research.compare", "prompt_position", "--series", "above")
    assert done.code == 2 and "--series above: prompt_position has before, inside, after" in done.err.splitlines()[-1]


def test_a_study_s_table_shows_the_start_and_the_best_context():
    row = {"task": "t", "x": None, "accuracy": {"in": [1.0, 0.0, 2.0]}, "before": {}, "trainable": 0, "seconds": 5.4}
    tuned = row | {"series": "s", "x": 10, "before": {"in": [0.5, 0.0, 1.0]}, "trainable": 1234}
    context, settings = row | {"series": "best context"}, {"model": "one", "seeds": 2}
    text = report.study_table([tuned, context], settings, 2, "32 examples", "rows")
    assert "| s | 10 | 0.5 > 1.0 [0.0, 2.0] | 1,234 | 5 |" in text
    assert "mean of 2 seeds [lowest, highest]; 32 examples; base one; seconds" in text
    text = report.study_table([tuned, context], settings | {"seeds": 1}, 2, "32 examples", "rows")
    assert "| s | 10 | 0.5 > 1.0 | 1,234 | 5 |" in text and "one seed; 32 examples" in text
    for rows in ([tuned], [tuned | {"before": {}}, context]):
        with pytest.raises(Exception, match="best context was not measured|no accuracy before tuning"):
            report.study_table(rows, settings, 2, "")


def test_studies_share_a_folder_and_wait_for_what_a_killed_one_has_begun(study, tmp_path):
    """No run fails, though another process is in its folder."""
    argv, runs = [sys.executable, "-m", "research.compare", *study], tmp_path / "out" / "runs"
    killed = subprocess.Popen(argv)
    until(lambda: list(runs.glob("*")))
    killed.kill()
    pipes = {"stdout": subprocess.PIPE, "text": True}
    for process in [subprocess.Popen(argv, **pipes) for _ in range(2)]:
        assert "| hybrid | 0.0 > 0.0" in process.communicate(timeout=400)[0] and process.returncode == 0
    assert all(map(resume.is_finished, runs.iterdir()))


def test_a_job_whose_time_is_up_goes_on_and_an_interrupt_stops_it(study_args, tmp_path, monkeypatch):
    """`srun` is a stand-in that runs the command."""
    srun, out, started, start = tmp_path / "srun", tmp_path / "run", [], compare.start
    srun.write_text('#!/bin/sh\ntest "$1 $2" = "--signal=USR2@120 --gpus=1" && shift 2 && exec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(compare, "start", lambda *args: started.append(start(*args)) or started[-1])
    study_args.slurm = "--gpus=1"
    cell = studies.cell(study_args, "symbolic_sum", "hybrid", "--examples 1000 --batch-size 16")
    jobs = {out: {out: ["train_task", *cell.line, "--model", study_args.model, "--resume", "--overwrite"]}}

    def time_is_up():
        until((out / resume.LOG).exists)
        os.kill(started[0].pid, signal.SIGUSR2)

    thread = threading.Thread(target=time_is_up)
    thread.start()
    compare.do_all(jobs, study_args)
    thread.join()
    assert [process.returncode for process in started] == [128 + signal.SIGUSR2, 0]
    found = results_of(out)
    curve, (n, _) = found["loss"]["hybrid"]["examples"], found["examples"]["hybrid"]
    assert curve == sorted(set(curve)) and curve[-1] == n and len(curve) == -(-n // 16)

    (out / "results.json").unlink()
    monkeypatch.setattr("time.sleep", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare.do_all(jobs, study_args)
    monkeypatch.undo()
    assert started[2].wait(200) != 0
