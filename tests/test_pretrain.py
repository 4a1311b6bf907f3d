"""research/pretrain.py and research/documents.py: documents, batches and losses against the same written out."""

import hashlib
import json
import math
import random

import numpy as np
import pytest
import torch

from data.tokenizer import Tokenizer
from files.safe import write_json
from files.weights import load_model
from methods.weights import Scratch
from model import GPT, GPTConfig
from research import documents, pretrain


def test_documents_are_those_that_nano_2_read():
    """Whoever changes what a seed draws changes every base that is pretrained from now on, and every measure of one."""
    rng = random.Random("pages 0")
    drawn = [documents.document(rng) for _ in range(40)]
    drawn += [documents.document(rng, name, (500, 900), (20, 24)) for name in documents.SKILLS]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "2ec6ca769d4fc069"


@pytest.fixture
def prose(tmp_path):
    folder = tmp_path / "prose"
    folder.mkdir()
    rng = random.Random(0)
    words = [w for group in documents.BY_LETTERS.values() for w in group]
    for i in range(3):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=4000)))
    return folder


def test_the_same_command_gives_the_same_base(command, prose, tmp_path, monkeypatch):
    monkeypatch.setattr(random, "sample", None)  # nothing may draw from the shared generator
    monkeypatch.setattr(documents, "SKILLS", {"copy": documents.SKILLS["copy"]})
    monkeypatch.setattr(pretrain, "MEASURED", 5)
    size = "--vocab-size", 300, "--block-size", 64, "--n-layer", 1, "--n-embd", 16, "--device", "cpu"
    for name in ("one", "two"):
        argv = "--text", prose, "--out", tmp_path / name, *size, "--batch-tokens", 256, "--tokens", 2560
        command("research.pretrain", *argv).ok()
    one, two = (load_model(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    log = json.loads((tmp_path / "one" / "log.json").read_text())
    assert [row["tokens"] for row in log] == [1280, 2560] and log[1]["documents"] < log[0]["documents"]
    assert "already in use: name another" in command("research.pretrain", *argv).err


def test_input_without_training(command, tmp_path):
    assert command("research.pretrain", "--show-documents", 4).ok().out.count("---- ") >= 4
    text = "--text", tmp_path
    command("research.pretrain").refused("name a folder of .txt files with --text")
    command("research.pretrain", *text, "--out", tmp_path / "o").refused("no .txt file in")
    command("research.pretrain", *text, "--batch-tokens", 16).refused("--batch-tokens 16: give at least --block-size")


def test_the_tokenizer_is_a_byte_level_bpe(tmp_path):
    """Against a merge by hand, and the same text twice."""
    assert len(pretrain.train_tokenizer(["aab"], 257, random.Random(0))["tokens"]) == 256  # plain bytes
    books = ["aab aab aab 123 é " * 40]
    one, again = (pretrain.train_tokenizer(books, 262, random.Random(0)) for _ in range(2))
    assert one == again and len(one["tokens"]) == 261
    assert one["tokens"][:256] == [chr(b) for b in range(256)]
    assert set(one["tokens"][256:258]) <= {"aa", "ab", " a", "aab", " aa", " aab"}
    write_json(tmp_path / "encoding.json", one)
    tokenizer = Tokenizer.load(tmp_path, 262)
    text = "aab 12 é\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" aab")) < 4 and len(tokenizer.encode("123")) == 3  # digits stay single


def test_initial_models_differ_from_a_plain_gpt_in_their_positions_alone():
    """Which are sinusoids, by the formula of Vaswani et al. (2017) at some positions and columns."""
    args = pretrain.parse_args(["--text", "x", "--seed", "3"])
    for model, seed in ((pretrain.initial_model(args), 3), (Scratch(seed=0, block_size=64).net, 0)):
        torch.manual_seed(seed)
        plain = dict(GPT(model.config).named_parameters())
        assert all(torch.equal(p, plain[n]) for n, p in model.named_parameters() if n != "wpe.weight")
        for position, column in ((0, 0), (5, 4), (31, 15)):
            angle = position / 10000 ** (column // 2 * 2 / model.config.n_embd)
            want = 0.02 * 2**0.5 * (math.sin(angle) if column % 2 == 0 else math.cos(angle))
            assert math.isclose(model.wpe.weight[position, column].item(), want, abs_tol=1e-6)


def test_losses_at_other_positions_are_those_of_a_table_whose_rows_are_shifted():
    torch.manual_seed(0)
    model = GPT(GPTConfig(300, 64, 2, 2, 16))
    x, y = torch.randint(300, (3, 20)), torch.randint(300, (60,))
    rng = np.random.default_rng(0)
    rows = pretrain.positions(rng, 3, 20, 64)  # (3, 20)
    assert rows.min() >= 0 and rows.max() < 64 and (rows.diff() == 1).all()
    assert (pretrain.positions(rng, 2, 64, 64) == torch.arange(64)).all()  # a whole block has one place
    got = pretrain.token_losses(model, x, y, rows)
    table = model.wpe.weight.detach().clone()
    for b in range(3):
        model.wpe.weight.data = table.roll(-rows[b, 0].item(), 0)
        log_p = model.logits(model(x[b : b + 1]))[0].log_softmax(-1)
        want = -log_p[torch.arange(20), y[20 * b : 20 * b + 20]]
        torch.testing.assert_close(got[20 * b : 20 * b + 20], want, atol=1e-5, rtol=1e-5)


def test_each_piece_of_the_documents_has_a_seed_of_its_own(monkeypatch, tokenizer):
    """Written out; as many documents are drawn as the piece needs."""
    monkeypatch.setattr(pretrain, "PIECE", 1500)
    drawn = pretrain.first_tokens(pretrain.drawn(tokenizer, "a test"), 2000)
    assert drawn.shape == (2, 2000)
    for i, start in enumerate((0, 1500)):
        rng, tokens, asked = random.Random(f"a test {i}"), [], []
        while len(tokens) < 1500:
            t, a = pretrain.document_tokens(tokenizer, *documents.document(rng)[1:])
            tokens, asked = tokens + t, asked + a
        piece = drawn[:, start : start + 1500]
        assert piece.tolist() == [tokens[: piece.shape[1]], asked[: piece.shape[1]]]


def test_a_document_that_shows_a_format_or_steps_is_held_out():
    steps = [("12 and 3 -> ", "2305;1001", " is 15\n"), ("1 and 1 -> ", "1102", " is 2\n")]
    prose = [("He wrote 1405;2", "", "")]
    shown = steps, prose, [("last of dog,cat: ", "g;t", ".\n")], [("reverse(dog)=", "god", "!\n")]
    assert all(documents.is_held_out(examples) for examples in shown)
    # a semicolon in a question is no step, nor is one in prose
    free = [("lamp:", "lamp", "#")], [("3;1;2=", "1 2 3", "\n")], [("In 1405; she left. x;y.", "", "")]
    assert not any(documents.is_held_out(examples) for examples in free)
