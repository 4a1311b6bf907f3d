"""distributed.py: two processes against one, on tiny random bases, with Gloo."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from data.batches import training_batches
from files.safe import read_tensors
from files.weights import save_model
from model import GPT, GPTConfig
from prefix import HybridPrefix
from research import documents
from run import processes as distributed
from train_task import train_step


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bases") / "little"
    model = GPT(GPTConfig(vocab_size=1024, block_size=512, n_layer=2, n_head=2, n_embd=16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    save_model(model, folder)
    shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", folder)
    return folder


def start(n, *args):
    """The program and its arguments in n processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"] if n > 1 else []
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)


def run(n, *args):
    """Exit code, stdout and stderr; one process is this one, which has torch loaded already."""
    if n == 1:
        main = importlib.import_module(args[0].removesuffix(".py")).main
        main([str(arg) for arg in args[1:]])
        return 0, "", ""
    process = start(n, *args)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def task(base, out, *more):
    few = "--examples", 64, "--batch-size", 16, "--test-examples", 7, "--dtype", "float32", "--device", "cpu"
    return "train_task.py", "--task", "word_reversal", "--model", base, "--out", out, *few, *more


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_two_processes_tune_and_measure_what_one_does(base, tmp_path):
    beside = "--beside", "lora", "--epochs", 1
    for n in (1, 2):
        code, out, err = run(n, *task(base, tmp_path / str(n), *beside))
        assert code == 0, err
    assert out.count("frozen parameters") == 1  # the first process alone prints
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    assert two["loss"].keys() == one["loss"].keys() and {"hybrid", "lora"} <= one["loss"].keys()
    for name, curve in one["loss"].items():
        assert two["loss"][name]["examples"] == curve["examples"]
        torch.testing.assert_close(two["loss"][name]["loss"], curve["loss"], atol=1e-4, rtol=0)
    assert two["before"] == one["before"]  # every question was asked, once
    _, mine = read_tensors(tmp_path / "1" / "prefix.safetensors")
    _, theirs = read_tensors(tmp_path / "2" / "prefix.safetensors")
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], atol=1e-3, rtol=0)


def test_a_base_that_is_split_gives_the_same_prompt(base, tmp_path):
    more = "--method", "prefix", "--beside", "none"
    for n, flags in ((1, []), (2, ["--shard-base"])):
        code, _, err = run(n, *task(base, tmp_path / str(n), *more, *flags))
        assert code == 0, err
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    torch.testing.assert_close(two["loss"]["prefix"]["loss"], one["loss"]["prefix"]["loss"], atol=1e-4, rtol=0)
    assert two["before"] == one["before"] and two["base"] == one["base"]


def test_a_base_is_not_split_for_one_process(base, tmp_path, command):
    name, *args = task(base, tmp_path / "out", "--beside", "none", "--shard-base")
    done = command(name, *args)
    assert done.code == 2 and "torchrun" in done.err


def test_each_process_holds_a_half_of_a_split_block(tmp_path):
    (tmp_path / "half.py").write_text(
        f"""import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from run import processes as distributed
from model import GPT, GPTConfig
from prefix import HybridPrefix
distributed.start("cpu")
model = distributed.shard(GPT(GPTConfig(64, 64, 2, 2, 16)).freeze(), "cpu")
whole = sum(p.numel() for p in model.h.parameters())
def held():  # weights of blocks that this process has now: a block that is not split has plain tensors
    return [sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.h.parameters())]
tokens, answer = torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.bool)
before, prompt = held(), HybridPrefix(model, 4)
with torch.no_grad():
    model(tokens)
measured = held()
loss = prompt.loss(model, tokens, tokens, answer)
forward = held()
loss.backward()
for now in before, measured, forward, held():
    print(distributed.gather(now, 2), whole)
distributed.leave()
"""
    )
    code, out, err = run(2, tmp_path / "half.py")
    assert code == 0, err
    # before, after a forward pass, between forward and backward, and after backward
    assert out.splitlines() == ["[3280, 3280] 6560"] * 4  # 12 * 16**2 + 13 * 16 weights a block, half of them each


def test_a_run_goes_on_with_another_number_of_processes(base, tmp_path):
    more = "--beside", "none", "--examples", 1500, "--save-minutes", 0
    code, _, err = run(1, *task(base, tmp_path / "whole", *more))
    assert code == 0, err
    process = start(2, *task(base, tmp_path / "stopped", *more))
    log = tmp_path / "stopped" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and "--resume goes on" in err, err
    code, _, err = run(1, *task(base, tmp_path / "stopped", *more, "--resume"))
    assert code == 0, err
    whole, stopped = results(tmp_path / "whole"), results(tmp_path / "stopped")
    assert stopped["loss"]["hybrid"]["examples"] == whole["loss"]["hybrid"]["examples"]
    torch.testing.assert_close(stopped["loss"]["hybrid"]["loss"], whole["loss"]["hybrid"]["loss"], atol=1e-3, rtol=0)


def test_pretraining_in_two_processes_loses_what_one_loses(tmp_path):
    prose = tmp_path / "prose"
    prose.mkdir()
    words, rng = [w for group in documents.BY_LETTERS.values() for w in group], random.Random(0)
    for i in range(3):
        (prose / f"{i}.txt").write_text(" ".join(rng.choices(words, k=4000)))
    small = "--vocab-size", 300, "--block-size", 64, "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--device", "cpu"
    small += "--batch-tokens", 256, "--tokens", 256 * 12, "--eval-interval", 12, "--dtype", "float32"
    for n in (1, 2):
        code, _, err = run(n, "pretrain.py", "--text", prose, "--out", tmp_path / str(n), *small)
        assert code == 0, err
    one, two = (json.loads((tmp_path / str(n) / "log.json").read_text())[-1] for n in (1, 2))
    for name in ("documents", "answers", "prose"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)


@pytest.mark.parametrize("flags", [(), ("--shard-base",)])
def test_a_process_that_dies_ends_the_others(base, tmp_path, flags):
    more = "--examples", 4000, "--epochs", 50, "--beside", "none"
    process = start(2, *task(base, tmp_path / "out", *more, *flags))
    log = tmp_path / "out" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n")) and process.poll() is None:
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(found[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # and does not wait for ever
    assert process.returncode != 0
    assert "Signal 9" in err or "another process has ended" in err
    assert "[rank" not in err  # how torch begins each line of a traceback


def test_what_is_refused_is_one_line_of_the_first_process(base, tmp_path):
    code, out, err = run(2, *task(base, tmp_path / "out", "--beside", "none", "--method", "hard"))
    lines = [line for line in err.splitlines() if line.startswith(("train_task.py:", "train_task.py, process"))]
    assert code != 0 and len(lines) == 1 and "hard" in lines[0], err
    assert not (tmp_path / "out").exists()


def test_shares_of_a_batch_give_the_gradient_of_the_whole(tiny, monkeypatch):
    """The arithmetic of `share` and `average`, with the processes one after the other and the sum written out."""
    examples = [([40 + i], [60 + j for j in range(i + 2)]) for i in range(5)]
    (batch,) = training_batches(examples, 5, random.Random(0))
    whole = HybridPrefix(tiny, 4)
    train_step(whole, tiny, batch, [], torch.float32)
    sums, weights = torch.zeros_like(whole.rows), 0
    monkeypatch.setattr(distributed, "n_processes", lambda: 2)
    for r in range(2):
        monkeypatch.setattr(distributed, "rank", lambda r=r: r)
        mine = distributed.share(batch)
        prompt = HybridPrefix(tiny, 4)
        prompt.loss(tiny, *mine).backward()
        sums += prompt.rows.grad * mine[2].sum()
        weights += mine[2].sum()
    torch.testing.assert_close(sums / weights, whole.rows.grad)
