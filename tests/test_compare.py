"""compare.py on a tiny base: what is run, what is kept, what fails, several processes in a folder, and jobs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import undrawn
from conftest import results_of
from filelock import FileLock

import train_task
from eval import plots, report
from files import errors
from research import cluster, compare, studies
from run import resume


@pytest.fixture
def study(study_args, tmp_path):
    """The arguments of a study of three runs, one of them tuned, and a fourth that measures what it learned."""
    words = "transfer --series hybrid --tasks symbolic_sum --seeds 1 --questions 2 --examples 32 --jobs 2 --device cpu"
    return [*words.split(), "--model", *study_args.model, "--out", str(tmp_path / "out")]


@contextmanager
def forked(*calls):
    """Processes of these functions, each (function, its arguments), which are killed when the block ends."""
    processes = [get_context("fork").Process(target=f, args=args) for f, *args in calls]
    for p in processes:
        p.start()
    try:
        yield processes
    finally:
        for p in processes:
            p.kill()
            p.join()


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def a_head(study, name, log):
    """compare.py in a process of its own, whose pool is forked; a line of the log for each run that it does."""
    compare.get_context = lambda method: get_context("fork")
    plots.write, main = undrawn.drawn, train_task.main

    def noted(line):
        with open(log, "a") as file:
            file.write(f"{name} {line[line.index('--out') + 1]}\n")
        time.sleep(0.5)
        return main(line)

    train_task.main = noted
    sys.stdout = sys.stderr = open(f"{log} of {name}", "w")
    errors.run_main(compare.main, "compare.py", study)


# ---------------------------------------------------------------- a study


def test_a_study_measures_each_cell_and_the_contexts_and_keeps_what_is_finished(study, tmp_path, command, monkeypatch):
    monkeypatch.setattr(compare, "get_context", lambda method: get_context("fork"))
    done = command("research.compare", *study)
    assert done.code == 0, done.err
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
    assert command("research.compare", *study).code == 0
    again = {p: p.stat().st_mtime_ns for p in runs.glob("*/results.json")}
    assert [p.parent for p in again if again[p] != times[p]] == [gone] and results_of(gone) == found


def test_a_failed_run_leaves_its_traceback_and_the_study_goes_on(study_args, tmp_path, command, monkeypatch):
    """One is refused for its input, another fails in the code: the table leaves both out and says so."""
    main = train_task.main

    def failing(line):
        if "broken" in line:
            raise KeyError("a fault of the code")
        main(line)

    def cells(args, task):
        """A study of three rows."""
        yield studies.cell(args, task, "too long", "--n-random 5000")
        yield studies.cell(args, task, "broken", "--trigger broken")
        yield studies.cell(args, task, "nothing", "--method zero-shot")

    studies.study("word_reversal")(cells)
    monkeypatch.setitem(compare.STUDIES, "cells", compare.STUDIES.pop("cells"))
    monkeypatch.setattr(train_task, "main", failing)
    monkeypatch.setattr(compare, "get_context", lambda method: get_context("fork"))
    few = "--seeds", 1, "--questions", 2, "--examples", 32, "--jobs", 2, "--device", "cpu"
    done = command("research.compare", "cells", *few, "--model", *study_args.model, "--out", tmp_path)
    assert done.code == 1
    code, refused = sorted((path.read_text() for path in tmp_path.glob("runs/*/error.txt")), key=len, reverse=True)
    assert "Traceback" in code and "line" in code and code.endswith("KeyError: 'a fault of the code'\n")
    assert "block_size 256" in refused and refused.count("\n") == 1
    table = (tmp_path / "cells" / "table.md").read_text()
    assert table in done.out and "| nothing |" in table and "| broken |" not in table
    lines = [line for line in table.splitlines() if line.startswith("A row is left out, since a run failed: ")]
    assert len(lines) == 2 and any("KeyError: 'a fault of the code' (" in line for line in lines)


def test_a_cell_is_the_mean_over_bases_and_seeds_by_hand():
    """Of another task its first range counts, beside its own start."""

    def run(task, before, *after):
        scores = [{"correct": a, "n": 10} for a in after]
        start = {} if before is None else {"hybrid": {"in": {"correct": before, "n": 10}}}
        measured = {"task": task, "accuracy": {"hybrid": dict(zip(("in", "longer"), scores))}, "before": start}
        return measured | {"trainable": {"hybrid": 7}, "seconds": {"tuning": 2.0, "measuring": 1.0}}

    cell = studies.Cell("a", "s", None, (), [], {})
    runs = [[run("a", 1, 10, 1), run("b", 2, 9, 0)], [run("a", 3, 7, 2), run("b", 4, 5, 0)]]
    row = compare.table_row(cell, runs)
    assert row["accuracy"] == {"in": [85, 70, 100], "longer": [15, 10, 20], "on b": [70, 50, 90]}
    assert row["before"] == {"in": [20, 10, 30], "on b": [30, 20, 40]}
    assert (row["series"], row["trainable"], row["seconds"]) == ("s", 7, 3.0)


def test_runs_are_made_for_each_base_and_seed_and_shared(study_args, tmp_path, little_base):
    """The folder of a run depends on its arguments, its base and the source."""
    study_args.model.append(str(little_base(tmp_path / "other", n_layer=1, n_embd=16)))
    one = studies.cell(study_args, "addition", "one", then={"addition:plain": ["research.measure", studies.PROMPT]})
    jobs, places = compare.plan([one, studies.cell(study_args, "addition", "same")], study_args, tmp_path)
    assert len(jobs) == 4 and [len(runs) for runs in places] == [4, 4]  # 2 bases, 2 seeds
    assert [first for (first,) in places[1]] == [first for first, _ in places[0]] == list(jobs)
    for (first, other), runs in zip(places[0], jobs.values()):
        assert list(runs) == [first, other] and str(first / "prefix.safetensors") in runs[other]
    args = train_task.parse_args(jobs[places[0][3][0]][places[0][3][0]][1:])
    assert (args.seed, args.model, args.resume) == (1, study_args.model[1], True)
    other, _ = compare.plan([studies.cell(study_args, "addition", "", "--lr 1")], study_args, tmp_path)
    assert not jobs.keys() & other.keys()
    little_base(tmp_path / "other", n_layer=1, n_embd=16, std=0.1)  # other weights under the same name
    again, _ = compare.plan([one], study_args, tmp_path)
    assert list(again)[:2] == list(jobs)[:2] and not jobs.keys() & set(list(again)[2:])


def test_the_source_hash_covers_what_numbers_depend_on_and_nothing_else(tmp_path):
    for folder in ("tasks", "data", "eval", "files", "run", "methods", "research"):
        shutil.copytree(compare.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("nano*", "__pycache__"))
    for file in compare.ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    before = compare.source_hash(tmp_path)
    assert before == compare.source_hash()
    for name in ("eval/report.py", "sample.py", "research/bench.py", "tasks/notes.md"):
        with open(tmp_path / name, "a") as file:
            file.write("# more\n")
    assert compare.source_hash(tmp_path) == before
    for name in ("tasks/page.py", "data/words.txt", "methods/more/rows.py", "prefix.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "a") as file:
            file.write("# more\n")
        assert (after := compare.source_hash(tmp_path)) != before, name
        before = after


def test_bad_input_is_one_line(command, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # without SLURM
    for words, why in (
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("methods", "--seeds", 0), "--seeds: 0: give"),
        (("base_size",), "base_size needs --sizes"),
        (("prompt_position", "--series", "above"), "--series above: prompt_position has before, inside, after"),
        (("headline", "--series", "scratch", "--seeds", 1, "--cluster", "slurm"), "slurm its commands"),
    ):
        done = command("research.compare", *words)
        assert done.code == 2 and why in done.err.splitlines()[-1]


# ---------------------------------------------------------------- its table and figures


def test_a_study_s_table_shows_the_start_and_the_best_context():
    row = {"task": "t", "x": None, "accuracy": {"in": [1.0, 0.0, 2.0]}, "before": {}, "trainable": 0, "seconds": 5.4}
    tuned = row | {"series": "s", "x": 10, "before": {"in": [0.5, 0.0, 1.0]}, "trainable": 1234}
    context, settings = row | {"series": "best context"}, {"model": "one, other", "seeds": 2}
    text = report.study_table([tuned, context], settings, 2, "32 examples", "rows")
    assert "| s | 10 | 0.5 > 1.0 [0.0, 2.0] | 1,234 | 5 |" in text
    assert "mean of 2 seeds on each base [lowest, highest]; 32 examples; bases one, other; seconds" in text
    for rows in ([tuned], [tuned | {"before": {}}, context]):
        with pytest.raises(Exception, match="best context was not measured|no accuracy before tuning"):
            report.study_table(rows, settings, 2, "")


# ---------------------------------------------------------------- several processes


def test_of_three_processes_in_one_folder_two_do_each_run_once_and_what_the_killed_one_was_at(study, tmp_path):
    log = tmp_path / "log"
    with forked((a_head, study, "first", log)) as (first,):
        until(log.exists)
        with forked(*[(a_head, study, name, log) for name in ("a", "b")]) as heads:
            until(Path(f"{log} of a").exists)
            os.kill(first.pid, signal.SIGKILL)
            for p in heads:
                p.join(120)
                assert p.exitcode == 0
    runs = [line.split()[1] for line in log.read_text().splitlines() if not line.startswith("first ")]
    assert runs and len(runs) == len(set(runs))
    assert all(map(resume.is_finished, (tmp_path / "out" / "runs").iterdir()))
    for name in ("a", "b"):
        assert "| hybrid | 0.0 > 0.0" in Path(f"{log} of {name}").read_text()


def test_a_job_whose_run_is_locked_is_put_off_or_waits(tmp_path):
    out = tmp_path / "run"
    runs = {out: ["train_task", "--nonsense"]}
    out.mkdir()
    with FileLock(out / cluster.LOCK) as lock, forked((cluster.do_job, runs, True)) as (waiting,):
        assert cluster.do_job(runs) is False
        time.sleep(0.3)
        assert waiting.is_alive() and not (out / cluster.ERROR).exists()
        lock.release()
        waiting.join(30)
    assert waiting.exitcode == 0 and "--nonsense" in (out / cluster.ERROR).read_text()


def test_a_process_of_the_pool_that_is_killed_is_one_line(study, tmp_path):
    with forked((a_head, study, "a", tmp_path / "log")) as (head,):
        until((tmp_path / "log").exists)
        workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(head.pid)], capture_output=True, text=True)
        os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
        head.join(60)
        assert head.exitcode == 2
    assert "the process of a run was killed: the same command goes on" in Path(f"{tmp_path / 'log'} of a").read_text()


def test_a_job_whose_time_is_up_is_requeued_and_goes_on(study, tmp_path):
    """SIGUSR2, which SLURM sends then, ends the process after a step; submitit's executor starts it again."""
    pytest.importorskip("submitit")
    args = compare.parse_args([*study, "--cluster", "local"])
    cell, out = studies.cell(args, "symbolic_sum", "hybrid", "--examples 1000 --batch-size 16"), tmp_path / "run"
    line = ["train_task", *cell.line, "--model", *args.model, "--resume", "--overwrite"]
    job = cluster.open_executor(args, tmp_path / "jobs").submit(cluster.run_job, 1, {out: line})
    until((out / resume.LOG).exists)
    os.kill(int(Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text()), signal.SIGUSR2)
    assert job.result() is True and job.stdout().count("Starting with") == 2
    found = results_of(out)
    curve, (n, _) = found["loss"]["hybrid"]["examples"], found["examples"]["hybrid"]
    assert curve == sorted(set(curve)) and curve[-1] == n and len(curve) == -(-n // 16)


def test_a_job_that_was_killed_leaves_what_submitit_says_and_an_interrupt_cancels_the_others(tmp_path, monkeypatch):
    job = Mock()
    job.done.side_effect = KeyboardInterrupt
    job.result.side_effect = RuntimeError("Job 3 has not produced any output")
    out = tmp_path / "run"
    out.mkdir()
    assert compare.is_done(job, {out: []}) is True
    assert (out / cluster.ERROR).read_text() == "Job 3 has not produced any output\n"
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(cluster, "open_executor", lambda args, folder: Mock(submit=lambda *_: job))
    with pytest.raises(KeyboardInterrupt):
        compare.do_all({out: {out: []}}, SimpleNamespace(cluster="slurm", jobs=1, cpus=1, out=tmp_path))
    job.cancel.assert_called_once()
