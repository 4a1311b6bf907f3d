"""run/processes.py: two processes against one, on tiny random bases, with Gloo."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from data.batches import training_batches
from files.safe import read_tensors
from prefix import HybridPrefix
from research import documents
from run import processes
from train_task import train_step


def start(n, *args):
    """A module and its arguments in n processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    command = [sys.executable, *launcher, "-m", *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)


def run(n, *args):
    """stdout and stderr of a module in n processes; one process is this one, which has torch loaded already."""
    if n == 1:
        importlib.import_module(args[0]).main([str(arg) for arg in args[1:]])
        return "", ""
    process = start(n, *args)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


def task(base, out, *more):
    few = "--examples", 64, "--batch-size", 16, "--test-examples", 7, "--dtype", "float32", "--device", "cpu"
    return "train_task", "--task", "word_reversal", "--model", base, "--out", out, *few, *more


def results(folder):
    return json.loads((folder / "results.json").read_text())


def wait_for_the_log(process, out):
    """Until 50 steps are tuned."""
    while not ((out / "log.jsonl").exists() and (out / "log.jsonl").read_text()) and process.poll() is None:
        time.sleep(0.05)


def test_two_processes_tune_and_measure_what_one_does(base, no_drawing, tmp_path):
    for n in (1, 2):
        out, _ = run(n, *task(base, tmp_path / str(n), "--beside", "lora", "--epochs", 1))
    assert out.count("frozen parameters") == 1  # the first process alone prints
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    assert two["loss"].keys() == one["loss"].keys() and {"hybrid", "lora"} <= one["loss"].keys()
    for name, curve in one["loss"].items():
        assert two["loss"][name]["examples"] == curve["examples"]
        torch.testing.assert_close(two["loss"][name]["loss"], curve["loss"], atol=1e-4, rtol=0)
    assert two["before"] == one["before"]  # every question was asked, once
    (_, mine), (_, theirs) = (read_tensors(tmp_path / str(n) / "prefix.safetensors") for n in (1, 2))
    torch.testing.assert_close(theirs, mine, atol=1e-3, rtol=0)


def test_a_run_goes_on_with_another_number_of_processes(base, no_drawing, tmp_path):
    more = "--beside", "none", "--examples", 1500
    run(1, *task(base, tmp_path / "whole", *more))
    process = start(2, *task(base, tmp_path / "stopped", *more))
    wait_for_the_log(process, tmp_path / "stopped")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and "--resume goes on" in err, err
    run(1, *task(base, tmp_path / "stopped", *more, "--resume"))
    whole, stopped = (results(tmp_path / name)["loss"]["hybrid"] for name in ("whole", "stopped"))
    assert stopped["examples"] == whole["examples"]
    torch.testing.assert_close(stopped["loss"], whole["loss"], atol=1e-3, rtol=0)


def test_pretraining_in_two_processes_loses_what_one_loses(tmp_path):
    prose = tmp_path / "prose"
    prose.mkdir()
    words, rng = [w for group in documents.BY_LETTERS.values() for w in group], random.Random(0)
    for i in range(3):
        (prose / f"{i}.txt").write_text(" ".join(rng.choices(words, k=4000)))
    small = "--vocab-size", 300, "--block-size", 64, "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--device", "cpu"
    small += "--batch-tokens", 256, "--tokens", 256 * 12, "--eval-interval", 12, "--dtype", "float32"
    for n in (1, 2):
        run(n, "research.pretrain", "--text", prose, "--out", tmp_path / str(n), *small)
    one, two = (json.loads((tmp_path / str(n) / "log.json").read_text())[-1] for n in (1, 2))
    for name in ("documents", "answers", "prose"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)


def test_a_process_that_dies_ends_the_others(base, tmp_path):
    process = start(2, *task(base, tmp_path / "out", "--examples", 4000, "--epochs", 50, "--beside", "none"))
    wait_for_the_log(process, tmp_path / "out")
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(found[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # and does not wait for ever
    assert process.returncode != 0
    assert "Signal 9" in err or "another process has ended" in err
    assert "[rank" not in err  # how torch begins each line of a traceback


def test_what_is_refused_is_one_line_of_the_first_process(base, tmp_path):
    process = start(2, *task(base, tmp_path / "out", "--beside", "none", "--method", "hard"))
    _, err = process.communicate(timeout=100)
    lines = [line for line in err.splitlines() if line.startswith("train_task.py")]
    assert process.returncode != 0 and len(lines) == 1 and "hard" in lines[0], err
    assert not (tmp_path / "out").exists()


def test_shares_of_a_batch_give_the_gradient_of_the_whole(tiny, monkeypatch):
    """The arithmetic of `share` and `average`, with the processes one after the other and the sum written out."""
    examples = [([40 + i], [60 + j for j in range(i + 2)]) for i in range(5)]
    (batch,) = training_batches(examples, 5, random.Random(0))
    whole = HybridPrefix(tiny, n_random=4)
    train_step(whole, tiny, batch, [], torch.float32)
    sums, weights = torch.zeros_like(whole.rows), 0
    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    for r in range(2):
        monkeypatch.setattr(processes, "rank", lambda r=r: r)
        mine = processes.share(batch)
        prompt = HybridPrefix(tiny, n_random=4)
        prompt.loss(tiny, *mine).backward()
        sums += prompt.rows.grad * mine[2].sum()
        weights += mine[2].sum()
    torch.testing.assert_close(sums / weights, whole.rows.grad)
