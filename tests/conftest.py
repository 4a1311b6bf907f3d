"""Fixtures that several files share: a tiny random GPT-2 and a tokenizer for it."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import cli  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

VOCAB = 1024  # nano's encoding, so that every byte is in it


@pytest.fixture
def tiny():
    """Two layers of random weights, large enough ones that attention is not uniform."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=VOCAB, block_size=96, n_layer=2, n_head=2, n_embd=16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.load(ROOT / "data" / "nano", VOCAB)


@pytest.fixture
def command(capsys):
    """Call a program of ours as a command: exit code, stdout, stderr."""

    def command(program, *args):
        main, code = importlib.import_module(program.removesuffix(".py")).main, 0
        try:
            cli.run(main, program, [str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
        text = capsys.readouterr()
        return SimpleNamespace(code=code, out=text.out, err=text.err)

    return command
