"""pretrain.py: its optimizer against an exact decomposition, and a small run stopped and resumed."""

import random
import runpy
import sys

import pytest
import torch

import pretrain
from checkpoint import load_model
from data import pages
from data.tokenizer import Tokenizer
from model import GPT


def test_the_ladder_counts_what_greedy_decoding_would_write(tokenizer):
    """Against decoding itself, on a page and a model that is right now and then: one of constant answers."""
    torch.manual_seed(0)
    model = GPT(pretrain.GPTConfig(1024, 512, 1, 2, 16)).freeze()
    scores = pretrain.ladder(model, tokenizer, model.config.block_size, n=3)
    assert set(scores) == set(pages.SKILLS)
    for skill in ("one letter", "compare"):
        rng, right = random.Random(f"ladder {skill}"), []
        for _ in range(3):
            _, heading, examples = pages.page(rng, skill)
            tokens = tokenizer.encode(heading)
            for question, answer, end in examples[:4]:
                tokens += tokenizer.encode_task(question + answer + end)
            question, answer, end = examples[4] if len(examples) > 4 else (None, None, None)
            if question is None:
                continue
            want = tokenizer.encode_task(answer + end[:1])
            new = model.generate(torch.tensor([tokens + tokenizer.encode_task(question)]), len(want))
            right.append(new[0].tolist() == want)
        assert scores[skill].get(4) == (sum(right) / len(right) if right else None)


@pytest.fixture
def prose(tmp_path):
    folder = tmp_path / "prose"
    folder.mkdir()
    rng = random.Random(0)
    words = [w for group in pages.BY_LETTERS.values() for w in group]
    for i in range(3):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=4000)))
    return folder


def command(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, args)])
    code = 0
    try:
        runpy.run_path("pretrain.py", run_name="__main__")
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr()


SMALL = ["--vocab-size", 300, "--block-size", 64, "--n-layer", 1, "--n-head", 2, "--n-embd", 16]
SMALL += ["--batch-tokens", 256, "--device", "cpu", "--decay", 1]


def test_a_stopped_run_carries_on_to_the_same_weights(monkeypatch, capsys, prose, tmp_path):
    def pretrain_to(out, tokens, every, expected=0):
        args = ["--text", prose, "--out", tmp_path / out, "--tokens", tokens, "--every", every, *SMALL]
        code, text = command(monkeypatch, capsys, *args)
        assert code == expected, text.err
        return text.out

    monkeypatch.setattr(random, "sample", None)  # nothing may draw from the shared generator
    pretrain_to("whole", 2560, 5)
    # the same run, killed after its first checkpoint
    original = torch.Tensor.isfinite
    calls = []

    def killed_at_step_8(self):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(torch.Tensor, "isfinite", killed_at_step_8)
    pretrain_to("stopped", 2560, 5, expected=130)  # as a shell reports an interrupt
    monkeypatch.setattr(torch.Tensor, "isfinite", original)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert "carrying on from step 5" in pretrain_to("stopped", 2560, 5)
    whole, stopped = load_model(tmp_path / "whole"), load_model(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters()))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "| seed | 0 |" in card and "321" not in card.split("## What it has not seen")[0]
    assert (
        Tokenizer.load(tmp_path / "whole", 300).decode(Tokenizer.load(tmp_path / "whole", 300).encode("a house 12"))
        == "a house 12"
    )


def test_bad_input(monkeypatch, capsys, tmp_path):
    for args, message in (
        ([], "name a folder of .txt files with --text"),
        (["--text", tmp_path, "--out", tmp_path / "o"], "no .txt file in"),
    ):
        code, text = command(monkeypatch, capsys, *args)
        assert code == 2
        assert message in text.err and text.err.count("\n") == 1


def test_another_run_s_folder_is_refused(monkeypatch, capsys, prose, tmp_path):
    args = ["--text", prose, "--out", tmp_path / "o", "--tokens", 512, "--every", 2, *SMALL]
    assert command(monkeypatch, capsys, *args)[0] == 0
    code, text = command(monkeypatch, capsys, *args, "--seed", 1)
    assert code == 2
    assert "holds a run with another --seed" in text.err


def test_show_pages(monkeypatch, capsys):
    code, text = command(monkeypatch, capsys, "--show-pages", 4)
    assert code == 0
    assert text.out.count("---- ") >= 4
