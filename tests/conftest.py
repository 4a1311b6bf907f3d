"""Fixtures that several files share: a tiny random GPT-2 and a tokenizer for it."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def tiny():
    """Two layers of random weights, large enough ones that attention is not uniform."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=VOCAB, block_size=96, n_layer=2, n_head=2, n_embd=16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


@pytest.fixture
def tiny_llama():
    """As `tiny`, with heads that share keys and values, of a width of their own, and an untied head."""
    torch.manual_seed(1)
    shape = {"vocab_size": VOCAB, "block_size": 96, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}
    model = Llama(LlamaConfig(**shape, head_dim=6, n_inner=20, tied=False))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


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
        for p in model.parameters() if std else ():
            torch.nn.init.normal_(p, std=std)
        save_model(model, folder)
        shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", folder)
        return folder

    return write


@pytest.fixture
def no_drawing(monkeypatch):
    """Figures are written and not drawn."""
    monkeypatch.setattr(plots, "write", undrawn.write)


@pytest.fixture
def command(capsys, no_drawing):
    """Call a program of ours as a command, with pictures that are not drawn: exit code, stdout, stderr."""

    def command(program, *args):
        main, code = importlib.import_module(program.removesuffix(".py")).main, 0
        try:
            run_main(main, program, [str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        text = capsys.readouterr()
        return SimpleNamespace(code=code, out=text.out, err=text.err)

    return command


@pytest.fixture(scope="session")
def base(tmp_path_factory, little_base):
    """A checkpoint folder as --model takes it."""
    return little_base(tmp_path_factory.mktemp("models") / "little", n_layer=2, n_embd=32)


@pytest.fixture
def run(command, base):
    """Call train_task.py as a command: exit code, stdout, stderr."""

    def run(*args, small=True):
        few = ["--examples", 64, "--test-examples", 12, "--epochs", 1] if small else []
        return command("train_task.py", "--model", base, *few, *args)

    return run


def results_of(folder):
    """What a run measured, without what differs from one run to the next."""
    results = json.loads((folder / "results.json").read_text())
    return {k: v for k, v in results.items() if k not in ("seconds", "record", "command")}


@pytest.fixture
def study_args(tmp_path, little_base):
    """What compare.py's functions take, with a base of one layer."""
    return SimpleNamespace(
        model=str(little_base(tmp_path / "little", n_layer=1, n_embd=32)),
        **{"tasks": None, "seeds": 2, "examples": 32, "questions": 5, "jobs": 2, "device": "cpu", "slurm": None},
    )
