"""pretrain.py: its optimizer against an exact decomposition, and a small run stopped and resumed."""

import math
import os
import random
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from data.tokenizer import Tokenizer
from files.safe import write_json
from files.weights import load_model
from methods import muon
from model import GPT
from prefix import Scratch
from research import documents, pretrain
from run import resume


def test_kshot_accuracy_counts_what_greedy_decoding_would_write(tokenizer):
    """Against decoding itself, on documents and a model that is right now and then: one of constant answers."""
    torch.manual_seed(0)
    model = GPT(pretrain.GPTConfig(1024, 512, 1, 2, 16)).freeze()
    scores = pretrain.kshot_accuracy(model, tokenizer, model.config.block_size, n=3)
    assert set(scores) == set(documents.SKILLS)
    for skill in ("one letter", "compare"):
        rng, right = random.Random(f"ladder {skill}"), []
        for _ in range(3):
            _, heading, examples = documents.document(rng, skill)
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
    words = [w for group in documents.BY_LETTERS.values() for w in group]
    for i in range(3):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=4000)))
    return folder


SMALL = ["--vocab-size", 300, "--block-size", 64, "--n-layer", 1, "--n-head", 2, "--n-embd", 16]
SMALL += ["--batch-tokens", 256, "--device", "cpu", "--decay-frac", 1]


def test_a_stopped_run_goes_on_to_the_same_weights(monkeypatch, command, prose, tmp_path):
    def pretrain_to(out, *more, expected=0):
        args = ["--text", prose, "--out", tmp_path / out, "--tokens", 2560, "--eval-interval", 5, *SMALL]
        done = command("pretrain.py", *args, *more)
        assert done.code == expected, done.err
        return done

    monkeypatch.setattr(random, "sample", None)  # nothing may draw from the shared generator
    pretrain_to("whole")
    # the same run, interrupted in its eighth step, which it finishes and saves
    original = torch.Tensor.isfinite
    calls = []

    def interrupted_in_step_8(self):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(torch.Tensor, "isfinite", interrupted_in_step_8)
    done = pretrain_to("stopped", expected=130)  # as a shell reports an interrupt
    assert "stopped; the same command with --resume goes on" in done.err
    monkeypatch.setattr(torch.Tensor, "isfinite", original)
    assert resume.load(tmp_path / "stopped").state["step"] == 8
    assert "already in use: give another --out, or --resume" in pretrain_to("stopped", expected=2).err
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    pretrain_to("stopped", "--resume")
    assert "stopped is finished: nothing is left to do" in pretrain_to("stopped", "--resume").out
    whole, stopped = load_model(tmp_path / "whole"), load_model(tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters()))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "| seed | 0 |" in card and "321" not in card.split("## What it has not seen")[0]
    assert (
        Tokenizer.load(tmp_path / "whole", 300).decode(Tokenizer.load(tmp_path / "whole", 300).encode("a house 12"))
        == "a house 12"
    )


def test_bad_input(command, tmp_path):
    for args, message in (
        ([], "name a folder of .txt files with --text"),
        (["--text", tmp_path, "--out", tmp_path / "o"], "no .txt file in"),
        (["--text", tmp_path, "--lr", 0], "--lr: 0: give a number above 0"),
        (["--text", tmp_path, "--prose", 2], "--prose: 2: give a number from 0 to 1"),
        (["--text", tmp_path, "--decay-frac", 2], "--decay-frac 2.0: give a number above 0 and up to 1"),
        (["--text", tmp_path, "--batch-tokens", 16], "--batch-tokens 16: give at least --block-size 512"),
        (["--text", tmp_path, "--tokens", 100], "--tokens 100: give at least --batch-tokens 4096"),
    ):
        done = command("pretrain.py", *args)
        assert done.code == 2
        assert message in done.err and done.err.count("\n") == 1


def test_another_run_s_folder_is_refused(command, prose, tmp_path):
    args = ["--text", prose, "--out", tmp_path / "o", "--tokens", 512, "--eval-interval", 2, *SMALL]
    assert command("pretrain.py", *args).code == 0
    done = command("pretrain.py", *args, "--seed", 1, "--resume")
    assert done.code == 2
    assert "holds a run with another --seed" in done.err


def test_show_documents(command):
    done = command("pretrain.py", "--show-documents", 4)
    assert done.code == 0
    assert done.out.count("---- ") >= 4


def test_the_progress_bar_holds_no_state(monkeypatch):
    """Preparation ended by a count in the bar, which a disabled bar does not keep."""
    monkeypatch.setattr(pretrain, "tqdm", partial(tqdm, disable=True))  # tqdm reads TQDM_DISABLE when it is imported
    stream = (([i] * 7, [0] * 7) for i in range(1000))  # not endless: a failure should not fill the memory
    assert pretrain.first_tokens(stream, 20).shape == (2, 20)
    assert next(stream)[0][0] == 3  # three were enough


def test_the_tokenizer_is_a_byte_level_bpe(tmp_path):
    """Against a merge by hand, and the same text twice."""
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


def test_positions_start_as_sinusoids():
    """By the formula of Vaswani et al. (2017), at some positions and columns."""
    model = GPT(pretrain.GPTConfig(300, 32, 1, 2, 16))
    before = {n: p.clone() for n, p in model.named_parameters()}
    muon.sinusoidal_positions(model)
    for position, column in ((0, 0), (5, 4), (31, 15)):
        angle = position / 10000 ** (column // 2 * 2 / 16)
        want = 0.02 * 2**0.5 * (math.sin(angle) if column % 2 == 0 else math.cos(angle))
        assert math.isclose(model.wpe.weight[position, column].item(), want, abs_tol=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n != "wpe.weight")


def test_initial_models_differ_from_a_plain_gpt_in_their_positions_alone():
    """Bit for bit, as when GPT.__init__ wrote the sinusoids: the bundled bases began so."""
    args = pretrain.parse_args(["--text", "x", "--seed", "3"])
    for model, seed in ((pretrain.initial_model(args), 3), (Scratch(seed=0, block_size=64).net, 0)):
        torch.manual_seed(seed)
        plain = GPT(model.config)
        c = model.config
        angle = torch.arange(c.block_size)[:, None] / 10000 ** (torch.arange(0, c.n_embd, 2) / c.n_embd)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        assert torch.equal(model.wpe.weight, waves * 0.02 * 2**0.5)
        others = dict(plain.named_parameters())
        assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n != "wpe.weight")


def test_a_run_of_the_earlier_version_is_refused_in_one_line(command, prose, tmp_path):
    """It called k-shot accuracy a ladder, and --short-context-frac --short."""
    args = ["--text", prose, "--out", tmp_path / "o", "--tokens", 512, "--eval-interval", 2, *SMALL]
    assert command("pretrain.py", *args).code == 0
    file = tmp_path / "o" / "args.json"
    file.write_text(file.read_text().replace("short_context_frac", "short"))
    done = command("pretrain.py", *args, "--resume")
    assert done.code == 2
    assert "earlier version of pretrain.py" in done.err and done.err.count("\n") == 1


def test_losses_at_other_positions_are_those_behind_a_past_of_that_length():
    """Rows 0, 1, ... of the table: what the model itself does. Shifted rows: a table whose rows are shifted."""
    torch.manual_seed(0)
    model = GPT(pretrain.GPTConfig(300, 64, 2, 2, 16))
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


def test_documents_are_the_same_however_many_processes_draw_them(monkeypatch, tokenizer):
    monkeypatch.setattr(pretrain, "PIECE", 1500)
    of, seed = (Path("data/nano-2"), 1024), "a test"
    with tqdm(disable=True) as bar:
        drawn = pretrain.draw_documents(of, seed, 4000, bar)
    assert drawn.shape == (2, 4000)
    for i, start in enumerate((0, 1500, 3000)):  # written out: documents from a seed for each piece
        rng, tokens, asked = random.Random(f"{seed} {i}"), [], []
        while len(tokens) < 1500:
            t, a = pretrain.document_tokens(tokenizer, documents.document(rng))
            tokens, asked = tokens + t, asked + a
        piece = drawn[:, start : start + 1500]
        assert piece.tolist() == [tokens[: piece.shape[1]], asked[: piece.shape[1]]]


def test_what_shows_a_format_or_steps_is_counted(tokenizer):
    plain = ("copy", "Copy.\n", [("lamp:", "lamp", "#")])
    steps = ("addition", "", [("12 and 3 -> ", "2305;1001", " is 15\n"), ("1 and 1 -> ", "1102", " is 2\n")])
    letters = ("list letters", "", [("last of dog,cat: ", "g;t", ".\n")])
    task = ("reverse", "Backwards. ", [("reverse(dog)=", "god", "!\n")])
    question = ("sort", "", [("3;1;2=", "1 2 3", "\n")])  # a semicolon in a question is no step
    parts = [pretrain.document_tokens(tokenizer, d) for d in (plain, steps, letters, plain, task, question)]
    prose = [pretrain.prose_tokens(tokenizer, text) for text in ("In 1405; she left.", "He wrote 1405;2 and x;y.")]
    data = np.concatenate([np.array(p, dtype=np.uint16) for p in parts], axis=1)
    assert pretrain.count_held_out(tokenizer, data) == 3
    data = np.concatenate([np.array(p, dtype=np.uint16) for p in prose], axis=1)
    assert pretrain.count_held_out(tokenizer, data) == 1
