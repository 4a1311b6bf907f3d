"""run/processes.py: two processes against one, on tiny random bases, with Gloo."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, read_results

from files.errors import UserError
from files.safe import read_tensors
from run import processes


def start(*args):
    """A module and its arguments in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, args)], **pipes, cwd=ROOT, env=env)


def run(n, *args):
    """stdout of a module in n processes; one process is this one, which has torch loaded already."""
    if n == 1:
        return importlib.import_module(args[0]).main([str(arg) for arg in args[1:]])
    process = start(*args)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def task(base, out, *more):
    few = "--examples", 64, "--batch-size", 16, "--test-examples", 7, "--dtype", "float32", "--device", "cpu"
    return "train_task", "--task", "last_letter", "--model", base, "--out", out, *few, *more


def losses_close(one, two, within):
    """Whether the loss curves in two folders have the same examples, and losses that differ by rounding."""
    curves = [read_results(folder)["loss"] for folder in (one, two)]
    torch.testing.assert_close(*curves, atol=within, rtol=0)


def wait_for_the_log(process, out):
    """Until 50 steps are tuned."""
    while not ((out / "log.jsonl").exists() and (out / "log.jsonl").read_text()) and process.poll() is None:
        time.sleep(0.05)


ALONE = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


class Soon(threading.Timer):
    def __init__(self, seconds, *what):
        super().__init__(0, *what)


@pytest.mark.parametrize("stated, line", [({}, "WORLD_SIZE expected"), ({"WORLD_SIZE": "x"}, "'x'")])
def test_half_of_torchrun_s_variables_are_one_line(monkeypatch, stated, line):
    for name, value in (ALONE | stated).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=line):
        processes.start("cpu")


def test_who_waits_for_processes_says_so(monkeypatch, capsys):
    for name, value in (ALONE | {"WORLD_SIZE": "2", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("threading.Timer", Soon)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *how, **more: time.sleep(1))
    processes.start("cpu")
    waits = "waiting for all of torchrun's processes (RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_PORT=1)\n"
    assert capsys.readouterr().err == waits


def test_two_processes_tune_and_measure_what_one_does(base, no_drawing, tmp_path):
    for n in (1, 2):
        out = run(n, *task(base, tmp_path / str(n), "--beside", "lora", "--epochs", 1))
    assert out.count("frozen parameters") == 1  # the first process alone prints
    losses_close(tmp_path / "1", tmp_path / "2", 1e-4)
    one, two = read_results(tmp_path / "1"), read_results(tmp_path / "2")
    assert one["before"] == two["before"] != {}  # every question was asked, once
    (_, mine), (_, theirs) = (read_tensors(tmp_path / name / "prefix.safetensors") for name in ("1", "2"))
    torch.testing.assert_close(theirs, mine, atol=1e-3, rtol=0)


def test_a_run_goes_on_with_another_number_of_processes(base, no_drawing, tmp_path):
    more = "--beside", "none", "--examples", 1500
    run(1, *task(base, tmp_path / "whole", *more))
    process = start(*task(base, tmp_path / "stopped", *more))
    wait_for_the_log(process, tmp_path / "stopped")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and "--resume goes on" in err, err
    run(1, *task(base, tmp_path / "stopped", *more, "--resume"))
    losses_close(tmp_path / "whole", tmp_path / "stopped", 1e-3)


def test_a_process_that_dies_ends_the_others(base, tmp_path):
    process = start(*task(base, tmp_path / "out", "--examples", 4000, "--epochs", 50, "--beside", "none"))
    wait_for_the_log(process, tmp_path / "out")
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(found[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # and does not wait for ever
    assert process.returncode != 0
    assert "Signal 9" in err or "another process has ended" in err
    assert "[rank" not in err  # how torch begins each line of a traceback


def test_a_method_that_draws_what_its_step_does_is_refused(command, base, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    command(*task(base, tmp_path / "out", "--method", "hard")).refused("--method hard draws at random")
