"""What several files share: a tiny random GPT-2 and a tokenizer for it, commands, and models of transformers."""

import importlib
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import undrawn  # noqa: E402

from data.tokenizer import Tokenizer  # noqa: E402
from eval import plots  # noqa: E402
from files.errors import run_main  # noqa: E402
from files.weights import save_model  # noqa: E402
from llama import Llama, LlamaConfig  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

VOCAB = 1024  # nano-2's encoding, so that every byte is in it


def some_tokens(*shape, seed=5, vocab_size=VOCAB):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got, want, within=1e-4):
    torch.testing.assert_close(got, want, atol=within, rtol=within)


def randomize(module, std=0.3):
    """The module with random numbers for all that it learns, as if it had been trained."""
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name), std=std)
    return module


def greedy(theirs, tokens, n):
    """What a model of transformers or PEFT writes behind tokens (B, T)."""
    how = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return theirs.generate(input_ids=tokens, max_new_tokens=n, **how)[:, -n:].tolist()


@torch.no_grad()
def assert_same_logits(ours, theirs):
    """Of a network of ours and a model of transformers."""
    tokens = some_tokens(3, 40, vocab_size=ours.config.vocab_size)
    assert_close(ours.logits(ours(tokens)), theirs(tokens).logits)


def their_gpt2(folder, **sizes):
    """A GPT-2 of transformers, saved."""
    import transformers  # imported here, since it takes seconds and not every file needs it

    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 32} | sizes
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    theirs = randomize(transformers.GPT2LMHeadModel(config), std=0.2).eval()
    theirs.save_pretrained(folder)
    return theirs


def in_transformers(model, folder, config=None):
    """A network of ours in transformers, frozen behind an untrained prompt of peft if its config is given."""
    import peft
    import transformers

    save_model(model, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (peft.get_peft_model(theirs, config) if config else theirs).eval()


@pytest.fixture
def tiny():
    """Two layers of random weights, large enough ones that attention is not uniform."""
    torch.manual_seed(1)
    return randomize(GPT(GPTConfig(VOCAB, block_size=96, n_layer=2, n_head=2, n_embd=16))).freeze()


@pytest.fixture
def tiny_llama():
    """As `tiny`, with heads that share keys and values, of a width of their own, and an untied head."""
    torch.manual_seed(1)
    shape = {"block_size": 96, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}
    return randomize(Llama(LlamaConfig(VOCAB, **shape, head_dim=6, n_inner=20, tied=False))).freeze()


@pytest.fixture(params=["tiny", "tiny_llama"])
def either(request):
    """A network of each family."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.load(ROOT / "data" / "nano-2", VOCAB)


@pytest.fixture(scope="session")
def little_base():
    """Write a base of random weights with nano-2's encoding into a folder, as --model takes it. With a `std` they are
    large enough that it writes other answers to other questions."""

    def write(folder, n_layer, n_embd, std=None):
        torch.manual_seed(0)
        model = GPT(GPTConfig(VOCAB, block_size=256, n_layer=n_layer, n_head=2, n_embd=n_embd))
        save_model(randomize(model, std) if std else model, folder)
        shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", folder)
        return folder

    return write


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures are written and not drawn."""
    monkeypatch.setattr(plots, "write", undrawn.write)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def ok(self):
        assert self.code == 0, self.err
        return self

    def refused(self, words):
        assert (self.code, self.err.count("\n")) == (2, 1) and words in self.err, self.err


@pytest.fixture
def command(capsys, no_drawing):
    """Call a program of ours as a command, with pictures that are not drawn. Returns a Done."""

    def command(program, *args):
        main, code = importlib.import_module(program.removesuffix(".py")).main, 0
        try:
            run_main(main, program, [str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        return Done(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def base(tmp_path_factory, little_base):
    """A checkpoint folder as --model takes it."""
    return little_base(tmp_path_factory.mktemp("models") / "little", n_layer=2, n_embd=32)


@pytest.fixture
def run(command, base):
    """Call train_task.py as a command."""

    def run(*args):
        few = "--examples", 64, "--test-examples", 12, "--epochs", 1
        return command("train_task.py", "--model", base, *few, *args)

    return run


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def results_of(folder):
    """What a run measured, without what differs from one run to the next."""
    results = read_results(folder)
    return {k: v for k, v in results.items() if k not in ("seconds", "record", "command")}


def copy_source(folder):
    """Copy all of our programs, without the bases."""
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for name in ("tasks", "data", "eval", "files", "run", "methods", "research"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("nano*", "__pycache__"))


@pytest.fixture
def study_args(tmp_path, little_base):
    """What compare.py's functions take, with a base of one layer."""
    return SimpleNamespace(
        model=str(little_base(tmp_path / "little", n_layer=1, n_embd=32)),
        **{"tasks": None, "seeds": 2, "examples": 32, "questions": 5, "jobs": 2, "device": "cpu", "slurm": None},
    )
