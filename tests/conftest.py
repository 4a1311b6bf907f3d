"""Fixtures that several rooms share: a tiny random GPT-2 and a tokenizer for it."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

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
