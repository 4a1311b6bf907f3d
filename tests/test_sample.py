"""sample.py: rows of one batch behind prompts of their own, and the command line."""

import io
import sys

import pytest
import torch
from conftest import randomize

from data.tokenizer import Tokenizer
from files.weights import load_model
from prefix import DeepPrefix, HybridPrefix
from run.prompts import METHODS, load_prefix, save_prefix


@pytest.fixture(scope="module")
def base(tmp_path_factory, little_base):
    """A base, and prompts for it: two that are caches, and three with a network of their own."""
    folder = little_base(tmp_path_factory.mktemp("models") / "large", n_layer=2, n_embd=32, std=0.3)
    model, tokenizer = load_model(folder), Tokenizer.load(folder, 1024)
    (folder / "adding").mkdir()
    rows = HybridPrefix(model, n_random=4, seed=1)
    save_prefix(rows, folder / "adding" / "prefix.safetensors", model, tokenizer, "addition", stop="$")
    for name, own in (("adapter", {}), ("warp", {"labels": [[3, 4]]}), ("ptuning", {"position": "after"})):
        prompt = randomize(METHODS[name](model, n_random=3, trigger=[5], **own), std=0.5)
        save_prefix(prompt, folder / f"{name}.safetensors", model, tokenizer, "addition", stop="$")
    tokenizer.tokenize = "bpe"
    deep = DeepPrefix(model, n_random=6, seed=2)
    save_prefix(deep, folder / "asking.safetensors", model, tokenizer, "trec", question_format="{}\nAnswer:", stop="\n")
    return folder


@pytest.fixture
def run(monkeypatch, command, base):
    def run(*args, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        return command("sample.py", "--model", base, "--dtype", "float32", *args)

    return run


def test_what_does_not_fit_together_is_refused(run, base):
    """The question as bytes fits behind the 4 rows of its prompt, but not behind the 6 of the other one."""
    adding, asking = base / "adding" / "prefix.safetensors", base / "asking.safetensors"
    how = "--max-new-tokens", 4, "--prompt", "a" * (load_model(base).config.block_size - 4 - 4)
    assert run("--prefix", adding, *how).code == 0
    done = run("--prefix", adding, asking, *how)
    assert done.code == 2 and "adding, asking: " in done.err


def test_every_prompt_and_the_base_answer_in_their_own_form(run, base):
    """Against each question alone behind its prompt, by the specification of decoding."""
    files = {"adding": base / "adding" / "prefix.safetensors"}
    files |= {name: base / f"{name}.safetensors" for name in ("asking", "adapter", "warp", "ptuning")}
    done = run("--prefix", *files.values(), "--compare", "--prompt", "1+2=", "--max-new-tokens", 8).ok()
    model, tokenizer, want = load_model(base), Tokenizer.load(base, 1024), ""
    for name, path in files.items():
        is_bpe = name == "asking"
        tokenizer.tokenize, question, stop = ("bpe", "1+2=\nAnswer:", "\n") if is_bpe else ("bytes", "1+2=", "$")
        prompt, _ = load_prefix(path, model, tokenizer)
        tokens, end = tokenizer.encode_task(question), tokenizer.encode_task(stop)[-1]
        for label, network, past, asked in (
            (name, prompt.network(model), prompt.past(model), prompt.insert_rows(tokens)),
            (f"{name}, base alone", model, None, tokens),
        ):
            with torch.no_grad():
                new = network.generate(torch.tensor([asked]), 8, past)[0].tolist()
            want += f"{label}: {tokenizer.decode(new[: new.index(end)] if end in new else new)}\n"
    assert done.out == want


def test_every_line_of_stdin_is_a_question(run):
    """Whatever a line ends with; a blank one gets a blank one, and so does what is too long, which is told."""
    one, two = (run("--max-new-tokens", 5, "--prompt", word).out for word in ("one", "two"))
    for stdin, want in (
        (b"one\r\ntwo\r\n", one + two),
        (b"\xef\xbb\xbfone\rtwo", one + two),
        (b"one\n\n  \ntwo\n\n", f"{one}\n\n{two}"),
    ):
        assert run("--max-new-tokens", 5, stdin=stdin).ok().out == want
    done = run("--max-new-tokens", 5, stdin=b"one\n" + b"%@" * 300 + b"\ntwo\n")
    assert (done.code, done.out) == (2, f"{one}\n{two}") and "question 2: large" in done.err.splitlines()[0]
    assert run("--max-new-tokens", 5, "--tokenize", "bytes", stdin=b"\xff\n").code == 0  # no UTF-8
    done = run("--max-new-tokens", 5, stdin=b"one\n" + bytes(100_000))  # as /dev/zero: a line that does not end
    assert (done.code, done.out, done.err.count("\n")) == (2, one, 1) and "break it" in done.err


def test_sampling_repeats_with_its_seed(run):
    how = ("--prompt", "a", "--temperature", 1, "--top-k", 50, "--max-new-tokens", 20)
    one, again, other = run(*how), run(*how), run(*how, "--seed", 1)
    assert one.out == again.out != other.out


@pytest.mark.parametrize(
    "args, complaint",
    [
        ("--prompt=", "the question is empty: write one"),
        (f"--prompt {'a' * 300} --tokenize bytes", "do not fit into block_size 256"),
        ("--prefix none.safetensors --prompt a", "none.safetensors is no regular file"),
        ("--top-k 0 --prompt a", "--top-k: 0: give a number from 1"),
    ],
)
def test_bad_input_gets_one_line(run, args, complaint):
    run(*args.split()).refused(complaint)
