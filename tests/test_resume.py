"""Runs that are stopped, killed or damaged, or lose their disk: they go on to the same bytes, or end in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, results_of
from filelock import FileLock

import train_task
from run import record, resume


@pytest.fixture(scope="module")
def base(tmp_path_factory, little_base):
    return little_base(tmp_path_factory.mktemp("models") / "little", n_layer=1, n_embd=16)


@pytest.fixture
def run(command, base):
    """Call train_task.py as a command: a prompt alone, tuned for 13 steps, since 12 examples are held out."""

    def run(*args):
        few = ["--task", "word_reversal", "--examples", 64, "--batch-size", 4, "--test-examples", 3, "--n-random", 4]
        return command("train_task.py", "--model", base, *few, "--beside", "none", *args)

    return run


@pytest.fixture
def in_step(monkeypatch):
    """Call a function in the n-th step of tuning."""

    def in_step(n, function):
        original, calls = train_task.train_step, iter(range(1, 1000))

        def step(*args):
            if next(calls) == n:
                function()
            return original(*args)

        monkeypatch.setattr(train_task, "train_step", step)

    return in_step


def test_killed_at_any_moment_runs_go_on_to_the_same_bytes():
    """3 kills, some of them in a write; make torture has 1,000."""
    command = [sys.executable, "-m", "tests.heavy.torture", "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    counts = [line.split(", ")[0] for line in done.stdout.splitlines()]
    assert counts == [f"{name}: kills 1" for name in ("hybrid", "hard", "cartridge")]


@pytest.mark.parametrize(
    "number, method", [(signal.SIGHUP, "dept"), (signal.SIGUSR2, "hard"), (signal.SIGTERM, "cartridge")]
)
def test_a_signal_stops_a_run_after_its_step(run, in_step, tmp_path, number, method):
    """Of methods with two groups in an optimizer, and with generators of torch and of Python."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    handlers = [signal.getsignal(n) for n in resume.STOP]
    run("--method", method, "--out", whole).ok()
    in_step(7, lambda: os.kill(os.getpid(), number))
    done = run("--method", method, "--out", stopped)
    assert done.code == 128 + number and done.err.endswith("stopped; the same command with --resume goes on\n")
    saved = resume.load(stopped).state
    assert len(saved["loss"][method]["loss"]) == 7 and list(saved["before"]) == [method]
    assert "already in use" in run("--out", stopped).err  # without --resume nothing is replaced
    run("--method", method, "--out", stopped, "--resume").ok()
    assert not resume.is_stopped(stopped)
    assert results_of(stopped) == results_of(whole)
    assert (stopped / "prefix.safetensors").read_bytes() == (whole / "prefix.safetensors").read_bytes()
    assert handlers == [signal.getsignal(n) for n in resume.STOP]


def test_a_second_signal_stops_at_once(tmp_path):
    with resume.Checkpoint(tmp_path, dict, {}) as c:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert end.value.code == 128 + signal.SIGTERM and c.signal == signal.SIGINT


def test_a_finished_run_says_so_and_does_nothing(run, tmp_path):
    again = "--out", tmp_path / "run", "--resume"
    run(*again).ok()  # with nothing there it begins
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    assert "is finished: nothing is left to do" in run(*again).ok().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before
    run(*again, "--seed", 1).refused("holds another run, its --seed differs")
    results = results_of(tmp_path / "run") | {"context": {"text": {"no": "text"}}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    run(*again).refused("the context in")


def test_a_run_of_other_data_is_not_resumed(run, in_step, tmp_path):
    own, args = tmp_path / "own.jsonl", ("--task", tmp_path / "own.jsonl", "--out", tmp_path / "run")
    rows = [json.dumps({"prompt": f"What is {i}?", "answer": f"the answer {i}"}) for i in range(40)]
    own.write_text("\n".join(rows))
    in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(*args).code == 143
    own.write_text("\n".join(rows[:-1]))
    run(*args, "--resume").refused("holds another run, the examples differs")


def test_two_runs_in_one_folder(run, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / resume.LOCK):
        done = run("--out", tmp_path / "run", "--overwrite")
        assert (done.code, done.err.splitlines()[-1].count("another run is at work in")) == (2, 1)
    run("--out", tmp_path / "run").ok()  # an old lock alone is no run


def test_a_line_of_the_log_every_50_steps(run, in_step, tmp_path):
    out, log = tmp_path / "run", tmp_path / "run" / resume.LOG
    in_step(120, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run("--examples", 800, "--out", out).code == 143
    run("--examples", 800, "--out", out, "--resume").ok()
    rows, curve = [json.loads(row) for row in log.read_text().splitlines()], results_of(out)["loss"]["hybrid"]
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert [row["loss"] for row in rows] == curve["loss"][49:150:50]
    assert [row["examples"] for row in rows] == curve["examples"][49:150:50]


def test_a_folder_that_is_removed_ends_a_run_in_one_line(run, in_step, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    in_step(3, lambda: shutil.rmtree(tmp_path / "run"))
    done = run("--out", tmp_path / "run")
    assert done.code == 2 and "No such file or directory" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_half_files_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    kept = {"results.json", ".tmp", ".tmpl", "tmp", ".tmp-notes"}
    for name in kept | {"tmp-123-results.json", ".tmpvmnfZd"}:  # the second is what safetensors leaves
        (tmp_path / name).touch()
    with resume.Checkpoint(tmp_path, dict, {}):
        assert {p.name for p in tmp_path.iterdir()} == kept | {resume.LOCK, resume.NEWEST}


def test_the_commit_of_the_source(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a", *args], check=True)

    monkeypatch.setattr(record, "__file__", str(tmp_path / "run" / "record.py"))
    (tmp_path / "one.py").write_text("")
    assert record.source() is None
    for args in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        git(*args)
    commit = record.source()
    assert len(commit) == 40
    (tmp_path / "one.py").write_text("1")
    assert record.source() == f"{commit}-dirty"


def test_what_another_run_has_done_since_the_folder_was_read_is_not_done_again(run, tmp_path, monkeypatch):
    """The other run ends between the look into the folder and the lock on it."""
    out, open_folder = tmp_path / "run", resume.Checkpoint.open_folder

    def late(checkpoint):
        monkeypatch.undo()
        run("--resume", "--out", out).ok()
        open_folder(checkpoint)

    monkeypatch.setattr(resume.Checkpoint, "open_folder", late)
    run("--resume", "--out", out).refused("has been at work")
    assert resume.is_finished(out)
    assert "nothing is left to do" in run("--resume", "--out", out).ok().out
