"""Each run of a study is done once: by jobs, by several machines in one folder, and where one of them dies."""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torture
import undrawn

import train_task
from eval import plots
from files import errors as cli
from files.weights import save_model
from model import GPT, GPTConfig
from research import claim, cluster, compare, studies
from run import resume

ROOT = Path(__file__).parent.parent
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed: requirements-cluster.txt"
)


@pytest.fixture
def study(tmp_path):
    """The arguments of a study of three runs, one of them tuned, and of a fourth that loads what that one learned."""
    torch.manual_seed(0)
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=1, n_head=2, n_embd=32)), tmp_path / "little")
    shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", tmp_path / "little")
    words = "transfer --series hybrid --tasks symbolic_sum --seeds 1 --questions 2 --examples 64 --jobs 2".split()
    return [*words, "--device", "cpu", "--model", str(tmp_path / "little"), "--out", str(tmp_path / "out")]


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


def until(what, seconds=30):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


# ---------------------------------------------------------------- claims


def do_claimed(folder, names, seed, machine):
    """Do each run that nobody has done: a line to its file, twice as long as a look takes."""
    claim.MACHINE = machine
    left = list(names)
    random.Random(seed).shuffle(left)
    while left:
        for name in list(left):
            with claim.claim(folder / name) as is_mine:
                if is_mine and not (folder / name / "done").exists():
                    with open(folder / name / "log", "a") as log:
                        log.write(f"{os.getpid()}\n")
                    time.sleep(0.002)
                    (folder / name / "done").touch()
            if (folder / name / "done").exists():
                left.remove(name)


def hold(folder, machine="another", clock=None):
    """Hold the claim of a run until killed. clock: seconds by which this machine's times are wrong."""
    claim.MACHINE, claim.BEAT = machine, 0.05
    if clock is not None:
        utime = os.utime
        claim.os.utime = lambda path, times=None: utime(path, times or (time.time() + clock,) * 2)
    with claim.claim(folder) as is_mine:
        assert is_mine
        (folder / "begun").touch()
        time.sleep(600)
        (folder / "ended").touch()


def take(folder, result):
    """Claim a run as soon as it is free, and say so."""
    seen = {}
    until(lambda: claim.is_free(folder, seen))
    with claim.claim(folder) as is_mine:
        if is_mine:
            with open(result, "a") as log:
                log.write("mine\n")
            time.sleep(1)


def test_processes_that_race_for_many_claims_do_each_run_once(tmp_path):
    """Six of them, as if on three machines."""
    names = [str(i) for i in range(150)]
    calls = [(do_claimed, tmp_path, names, seed, f"machine {seed % 3}") for seed in range(6)]
    with forked(*calls) as processes:
        for p in processes:
            p.join(60)
            assert p.exitcode == 0
    assert {name: (tmp_path / name / "log").read_text().count("\n") for name in names} == dict.fromkeys(names, 1)
    assert len({(tmp_path / name / "log").read_text() for name in names}) > 1  # not all by one process


@pytest.mark.parametrize("machine", [claim.MACHINE, "another"])
def test_the_claim_of_a_killed_holder_is_taken_over_by_one(tmp_path, monkeypatch, machine):
    """At once on its own machine; elsewhere, where nothing but touches can be seen, when these have stopped."""
    monkeypatch.setattr(claim, "DEAD", 0.5)
    with forked((hold, tmp_path, machine)) as (holder,):
        until((tmp_path / "begun").exists)
        seen = {}
        for _ in range(20):  # for twice as long as it may be silent
            assert not claim.is_free(tmp_path, seen)
            time.sleep(0.05)
        os.kill(holder.pid, signal.SIGKILL)
        with forked(*[(take, tmp_path, tmp_path / "result")] * 5):
            until((tmp_path / "result").exists)
            time.sleep(0.5)
            assert (tmp_path / "result").read_text() == "mine\n"
            assert not claim.is_free(tmp_path, {})


@pytest.mark.parametrize("clock", [-10_000, 10_000])
def test_a_machine_with_a_wrong_clock_holds_its_claim(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(claim, "DEAD", 0.5)
    with forked((hold, tmp_path, "another", clock)) as (holder,):
        until((tmp_path / "begun").exists)
        seen = {}
        for _ in range(20):
            assert not claim.is_free(tmp_path, seen)
            time.sleep(0.05)
        assert abs(next(iter(seen.values()))[0] / 1e9 - time.time() - clock) < 100  # its times are wrong
        os.kill(holder.pid, signal.SIGKILL)
        until(lambda: claim.is_free(tmp_path, seen), 5)


def test_a_holder_that_wakes_up_after_it_was_given_up_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "DEAD", 0.3)
    with forked((hold, tmp_path)) as (holder,):
        until((tmp_path / "begun").exists)
        os.kill(holder.pid, signal.SIGSTOP)
        seen = {}
        until(lambda: claim.is_free(tmp_path, seen))
        with claim.claim(tmp_path) as is_mine:
            assert is_mine
            os.kill(holder.pid, signal.SIGCONT)
            holder.join(10)
            assert holder.exitcode == 1 and not (tmp_path / "ended").exists()


def test_an_ended_claim_is_free_at_once(tmp_path):
    for _ in range(2):
        with claim.claim(tmp_path / "run") as is_mine:
            assert is_mine and not claim.is_free(tmp_path / "run", {})
            with claim.claim(tmp_path / "run") as also_mine:
                assert not also_mine
        assert claim.is_free(tmp_path / "run", {})


# ---------------------------------------------------------------- studies


def a_machine(study, machine, log):
    """compare.py on a machine of its own, which notes each run that it does, and a second that one takes."""
    claim.MACHINE, claim.BEAT, claim.DEAD = machine, 0.2, 2
    compare.get_context = lambda method: get_context("fork")
    main = train_task.main

    def noted(line):
        with open(log, "a") as file:
            file.write(f"{machine} {line[line.index('--out') + 1]}\n")
        time.sleep(1)
        return main(line)

    train_task.main = noted
    sys.stdout = sys.stderr = open(f"{log} of {machine}", "w")
    cli.run_main(compare.main, "compare.py", study)


def test_two_machines_that_start_one_study_do_each_run_once_and_both_have_the_table(study, tmp_path):
    log = tmp_path / "log"
    with forked(*[(a_machine, study, machine, log) for machine in ("a", "b")]) as processes:
        for p in processes:
            p.join(120)
    runs = [line.split()[1] for line in log.read_text().splitlines()]
    assert len(runs) == len(set(runs)) == 4
    for machine in ("a", "b"):
        assert "| hybrid | 0.0 > 0.0" in Path(f"{log} of {machine}").read_text()


def test_what_a_dead_machine_was_at_is_done_by_the_other(study, tmp_path):
    log = tmp_path / "log"
    with forked((a_machine, study, "a", log)) as (first,):
        until(log.exists)
        with forked((a_machine, study, "b", log)) as (second,):
            until(lambda: "b " in Path(f"{log}").read_text() or Path(f"{log} of b").exists())
            os.kill(first.pid, signal.SIGKILL)
            second.join(120)
            assert second.exitcode == 0
    assert "| hybrid | 0.0 > 0.0" in Path(f"{log} of b").read_text()
    assert not [out for out in (tmp_path / "out" / "runs").iterdir() if not resume.is_finished(out)]


@needs_submitit
def test_a_study_of_jobs_ends_as_one_without(study, tmp_path, command, monkeypatch):
    monkeypatch.setattr(compare, "get_context", lambda method: get_context("fork"))
    monkeypatch.setattr(plots, "write", undrawn.drawn)  # as the jobs do
    done = command("compare.py", *study)
    assert done.code == 0, done.err
    (tmp_path / "out").rename(tmp_path / "alone")
    done = command("compare.py", *study, "--cluster", "local")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out" / "jobs").glob("*_result.pkl"))) == 4
    shutil.rmtree(tmp_path / "out" / "jobs")
    assert torture.final(tmp_path / "out") == torture.final(tmp_path / "alone")


def a_job(args, line, out, folder):
    """A job of a run that has begun to tune, and the process that does it."""
    job = cluster.submit(cluster.open_executor(args, folder), 1, out, line)
    before = (out / resume.LOG).stat().st_mtime_ns if out.exists() else 0
    until(lambda: (out / resume.LOG).exists() and (out / resume.LOG).stat().st_mtime_ns > before, 60)
    (process,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    return job, int(process)


@needs_submitit
def test_a_job_that_is_killed_is_named_and_one_whose_time_is_up_is_requeued_and_goes_on(study, tmp_path):
    """SIGUSR2, which SLURM sends then, ends the process after a step; submitit's executor starts it again."""
    args = compare.parse_args([*study, "--cluster", "local"])
    cell = studies.cell(args, "symbolic_sum", "hybrid", None, "--examples", 1600, "--batch-size", 16)
    line = [*cell["args"], "--model", *args.model, "--device", "cpu", "--save-minutes", "0"]
    out = tmp_path / "run"
    job, process = a_job(args, line, out, tmp_path / "jobs")
    os.kill(process, signal.SIGKILL)
    (why,) = compare.why_failed(out, job)
    assert why.startswith("run: Job ") and f"{job.job_id}_0_result.pkl has not produced any output" in why
    assert claim.is_free(out, {}) and resume.is_stopped(out)

    job, process = a_job(args, line, out, tmp_path / "jobs")
    os.kill(process, signal.SIGUSR2)
    assert job.result() == []
    assert job.stdout().count("Starting with") == 2 and "Requeued job" in job.stdout()

    train_task.main([*line, "--out", str(tmp_path / "alone")])
    assert torture.final(out) == torture.final(tmp_path / "alone")


def test_a_study_that_is_stopped_cancels_its_jobs(tmp_path, capsys):
    class Job:
        canceled = False

        def done(self):
            raise KeyboardInterrupt

        def cancel(self):
            Job.canceled = True

    with pytest.raises(KeyboardInterrupt):
        compare.do_all({tmp_path / "run": []}, lambda out, line: Job(), 1, 0, None)
    assert Job.canceled and "canceled 1 runs; the same command goes on" in capsys.readouterr().err


def test_what_is_missing_is_one_line(study, command, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = command("compare.py", *study, "--cluster", "slurm")
    assert done.code == 2 and "compare.py: --cluster slurm: sbatch is not found: start" in done.err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = command("compare.py", *study, "--cluster", "local")
    assert done.code == 2 and done.err.endswith("needs submitit: pip install -r requirements-cluster.txt\n")


def test_a_process_of_the_pool_that_is_killed_is_one_line(study, tmp_path):
    with forked((a_machine, study, "a", tmp_path / "log")) as (head,):
        until((tmp_path / "log").exists)
        workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(head.pid)], capture_output=True, text=True)
        os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
        head.join(60)
        assert head.exitcode == 2
    assert "its process was killed: the same command goes on" in Path(f"{tmp_path / 'log'} of a").read_text()
