"""sample.py: rows of one batch behind prefixes of their own, and the command line."""

import io
import shutil
import sys

import pytest
import torch

import prefix
from data.tokenizer import Tokenizer
from files.prompts import load_prefix, save_prefix
from files.weights import load_model, save_model
from model import GPT, GPTConfig


@pytest.mark.parametrize(
    "method, own", [("adapter", {}), ("warp", {"labels": [[3, 4]]}), ("ptuning", {"position": "after"})]
)
def test_methods_with_a_network_of_their_own_answer_beside_the_others(base, command, method, own):
    model, tokenizer = load_model(base), Tokenizer.load(base, 1024)
    prompt = prefix.METHODS[method](model, n_random=3, **own)
    for p in prompt.parameters():
        torch.nn.init.normal_(p, std=0.5)
    path = base / f"{method}.safetensors"
    save_prefix(prompt, path, model, tokenizer, "addition", stop="$")
    args = "--model", base, "--prompt", "12+3=", "--max-new-tokens", 20
    done = command("sample.py", *args, "--prefix", base / "asking.safetensors", path, "--dtype", "float32")
    assert done.code == 0, done.err
    question = torch.tensor([prompt.insert_rows(tokenizer.encode_task("12+3="))])
    with torch.no_grad():
        new = prompt.network(model).generate(question, 20, prompt.past(model))[0].tolist()
    assert f"{method}: {tokenizer.decode(new).partition('$')[0]}" in done.out


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base of random weights, and two prefixes for it."""
    folder = tmp_path_factory.mktemp("models") / "little"
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=1024, block_size=64, n_layer=2, n_head=2, n_embd=32))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_model(model, folder)
    shutil.copy("data/nano-2/encoding.json", folder)
    model, tokenizer = load_model(folder), Tokenizer.load(folder, 1024)
    (folder / "adding").mkdir()
    rows = prefix.HybridPrefix(model, 4, seed=1)
    save_prefix(rows, folder / "adding" / "prefix.safetensors", model, tokenizer, "addition", stop="$")
    tokenizer.tokenize = "bpe"
    deep = prefix.DeepPrefix(model, 6, seed=2)
    save_prefix(deep, folder / "asking.safetensors", model, tokenizer, "trec", question_format="{}\nAnswer:", stop="\n")
    return folder


@pytest.fixture
def run(monkeypatch, command, base):
    def run(*args, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        return command("sample.py", "--model", base, *args)

    return run


def test_every_prefix_and_the_base_answer_in_their_own_form(run, base):
    both = [base / "adding" / "prefix.safetensors", base / "asking.safetensors"]
    done = run("--prefix", *both, "--compare", "--prompt", "1+2=", "--max-new-tokens", 8)
    assert done.code == 0, done.err
    model, tokenizer = load_model(base), Tokenizer.load(base, 1024)
    want = ""
    for name, path, tokenize, question, stop in (
        ("adding", both[0], "bytes", "1+2=", "$"),
        ("asking", both[1], "bpe", "1+2=\nAnswer:", "\n"),
    ):
        tokenizer.tokenize = tokenize
        prompt, _ = load_prefix(path, model, tokenizer)
        for label, past in ((name, prompt.past(model)), (f"{name}, base alone", None)):
            new = model.generate(torch.tensor([tokenizer.encode_task(question)]), 8, past)[0].tolist()
            end = tokenizer.encode_task(stop)[-1]
            want += f"{label}: {tokenizer.decode(new[: new.index(end)] if end in new else new)}\n"
    assert done.out == want


def test_every_line_of_stdin_is_a_question(run):
    done = run("--max-new-tokens", 5, stdin="one\ntwo\n")
    assert done.code == 0, done.err
    one, two = run("--max-new-tokens", 5, "--prompt", "one"), run("--max-new-tokens", 5, "--prompt", "two")
    assert done.out == one.out + two.out


def test_sampling_repeats_with_its_seed(run):
    how = ("--prompt", "a", "--temperature", 1, "--top-k", 50, "--max-new-tokens", 20)
    one, again, other = run(*how), run(*how), run(*how, "--seed", 1)
    assert one.out == again.out != other.out


@pytest.mark.parametrize(
    "args, complaint",
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a" * 100, "--tokenize", "bytes"], "exceed block_size 64"),
        (["--prefix", "none.safetensors", "--prompt", "a"], "no prefix file"),
        (["--top-k", "0", "--prompt", "a"], "--top-k: 0: give at least 1"),
        (["--tokens", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input_gets_one_line(run, args, complaint):
    done = run(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert complaint in done.err
