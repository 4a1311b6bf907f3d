"""The programs beside train_task.py: measure, distill, reproduce; and sharded, as far as one process goes."""

import json
import shutil

import pytest
import test_processes
import torch
from conftest import read_results, results_of

from data.tokenizer import Tokenizer
from files.weights import load_model, save_model
from prefix import DeepPrefix
from run.prompts import load_prefix

FEW = "--task", "last_letter", "--examples", 32, "--test-examples", 4, "--beside", "none"


@pytest.mark.parametrize("flags", ["--mlp", "--method lora --shots 1"])
def test_a_prompt_measures_as_its_run_did(run, command, base, tmp_path, flags):
    run(*FEW, *flags.split(), "--out", tmp_path / "run").ok()
    file = tmp_path / "run" / "prefix.safetensors"
    few = "--model", base, "--test-examples", 4, "--out", tmp_path / "out"
    command("research.measure", file, *few).ok()  # the task is the file's
    before, after = results_of(tmp_path / "run"), results_of(tmp_path / "out")
    (name,) = before["accuracy"]
    assert list(after["accuracy"])[-1] == name and {"few-shot"} < after["accuracy"].keys()
    assert after["accuracy"][name] == before["accuracy"][name]
    assert after["before"] == before["before"]  # the start is made again from the file
    assert after["nearest_tokens"] == before["nearest_tokens"] and after["loss"] == {}
    command("research.measure", file, *few, "--task=next_letter", "--beside", "none", "--overwrite").ok()
    measured = read_results(tmp_path / "out")
    assert (list(measured["accuracy"]), measured["task"]) == ([name], "next_letter")


def test_a_run_is_reproduced_from_its_record(run, command, base, tmp_path):
    run(*FEW, "--seed", 3, "--resume", "--out", tmp_path / "run").ok()
    assert "run-again: the same results" in command("research.reproduce", tmp_path / "run").ok().out
    assert results_of(tmp_path / "run-again") == results_of(tmp_path / "run")

    # other weights under the same name
    model = load_model(base)
    with torch.no_grad():
        model.wte.weight *= 2
    other, path = tmp_path / "little", tmp_path / "run" / "results.json"
    save_model(model, other)
    shutil.copy(base / "encoding.json", other)
    text = path.read_text()
    path.write_text(text.replace(str(base), str(other)))
    done = command("research.reproduce", tmp_path / "run", "--out", tmp_path / "third")
    assert done.code == 1 and "\nbase: {" in done.out and "\nloss: {" in done.out

    for other in ("python -m research.reproduce out/run", "", "python train_task.py --trigger 'half of"):
        path.write_text(json.dumps(json.loads(text) | {"command": other}))
        done = command("research.reproduce", tmp_path / "run", "--out", tmp_path / "fourth")
        done.refused("holds no command of train_task.py")


def test_a_text_becomes_a_cache_that_sample_reads(base, command, tmp_path):
    text = "It was late in the autumn of the year when he came down to the old house by the river. "
    (tmp_path / "letter.txt").write_text(text)
    flags = "--model", base, "--examples", 256, "--n-random", 4, "--lr", 0.03, "--dtype", "float32"
    command("research.distill", tmp_path / "letter.txt", *flags, "--out", tmp_path / "out").ok()
    measured = read_results(tmp_path / "out")
    assert measured["divergence"]["tuned"] < measured["divergence"]["before tuning"]
    model, tokenizer = load_model(base), Tokenizer.load(base, 1024, "bpe")
    tokens = tokenizer.encode(text)
    assert (measured["tokens"], measured["rows"]) == (len(tokens), 4)
    cartridge, header = load_prefix(tmp_path / "out" / "prefix.safetensors", model, tokenizer)
    assert (header["tokenize"], header["stop"], header["trigger"]) == ("bpe", "", text)
    assert cartridge.text.tolist() == tokens
    assert torch.equal(cartridge.start, DeepPrefix(model, trigger=tokens[:4]).rows)
    asked = "--model", base, "--prefix", tmp_path / "out" / "prefix.safetensors", "--prompt", "It was"
    command("sample.py", *asked, "--max-new-tokens", 5).ok()

    (tmp_path / "long.txt").write_text(text * 20)
    command("research.distill", tmp_path / "long.txt", *flags, "--out", tmp_path / "new").refused("tokens: give 9 to")


def test_a_split_base_gives_the_same_losses_and_none_is_split_for_one_process(base, command, no_drawing, tmp_path):
    flags = "--method", "prefix", "--beside", "none"
    test_processes.run(1, *test_processes.task(base, tmp_path / "1", *flags))
    _, *line = test_processes.task(base, tmp_path / "2", *flags)
    test_processes.run(2, "research.sharded", *line)
    one, two = read_results(tmp_path / "1"), read_results(tmp_path / "2")
    torch.testing.assert_close(two["loss"]["prefix"]["loss"], one["loss"]["prefix"]["loss"], atol=1e-4, rtol=0)
    assert two["before"] == one["before"] and two["base"] == one["base"]
    done = command("research.sharded", *line)
    assert done.code == 2 and "torchrun" in done.err.splitlines()[-1]
    assert "a base that one GPU does not hold" in command("research.sharded", "--help").out


HALVES = """
import torch
from run import processes
from model import GPT, GPTConfig
from prefix import HybridPrefix
from research.sharded import shard
def held():  # weights of blocks that this process has now: a block that is not split has plain tensors
    n = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.h.parameters())
    print(processes.gather([n], 2))
processes.start("cpu")
model = shard(GPT(GPTConfig(64, 64, 2, 2, 16)).freeze(), "cpu")
tokens, answer, prompt = torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.bool), HybridPrefix(model, 4)
held()
with torch.no_grad():
    model(tokens)
held()
loss = prompt.loss(model, tokens, tokens, answer)
held()
loss.backward()
held()
processes.leave()
"""


def test_each_process_holds_a_half_of_a_split_block(tmp_path, monkeypatch):
    """Before and after a forward pass, between forward and backward, and after backward."""
    (tmp_path / "halves.py").write_text(HALVES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{test_processes.ROOT}")
    out = test_processes.run(2, "halves")
    assert out.splitlines() == ["[3280, 3280]"] * 4  # of 2 * (12 * 16**2 + 13 * 16) weights
