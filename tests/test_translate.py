"""research/translate.py and methods/translator.py: the network against a loop written out by hand, its files, the
method on the command line, and the program that trains it."""

import json
import math
import shutil

import pytest
import torch
from conftest import assert_close, randomize, read_results
from torch.nn import functional as F

from data.tokenizer import Tokenizer
from files.errors import UserError
from files.safe import read_tensors, write_tensors
from files.weights import load_model, save_model
from methods.translator import TRANSLATOR, Translator, TranslatorNetwork, load_translator, save_translator
from model import GPT, GPTConfig
from research import documents, translate
from run.prompts import load_prefix, save_prefix

TEXTS = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23]]


def trained(model, **sizes):
    return randomize(TranslatorNetwork(model, **sizes))


def test_at_first_the_prompt_is_the_last_tokens_as_text(tiny):
    got = TranslatorNetwork(tiny, n_rows=3, rank=2, width=8)(tiny, TEXTS)
    torch.testing.assert_close(got, tiny.prefill(torch.tensor([text[-3:] for text in TEXTS])))


def test_a_prompt_equals_a_loop_written_out(tiny):
    """Each text alone, each head and position alone, behind weights into which the updates are merged."""
    P, width, heads = 3, 8, TranslatorNetwork.heads
    network = trained(tiny, n_rows=P, rank=2, width=width)
    merged, got = network.lora.merged(tiny), network(tiny, TEXTS)
    for d, text in enumerate(TEXTS):
        h = tiny(torch.tensor([text]))[0]  # (S, C)
        x = tiny.wte.weight[text[-P:]] + network.rows + tiny.wpe.weight[:P]  # (P, C)
        for i, block in enumerate(merged.h):
            read = []
            for p in range(P):
                q = F.layer_norm(x[p], x[p].shape) @ network.W_q[i] + network.slots[p]  # (width)
                parts = []
                for part in torch.arange(width).chunk(heads):
                    keys, values = (h @ network.W_k[i])[:, part], (h @ network.W_v[i])[:, part]  # (S, width / heads)
                    parts.append((keys @ q[part] / math.sqrt(len(part))).softmax(0) @ values)
                read.append(torch.cat(parts) @ network.W_o[i])
            x = x + torch.stack(read)
            y, (k, v) = block(x[None], torch.full((P, P), -torch.inf).triu(1))
            x = y[0]
            assert_close(got[i][0][d], k[0])
            assert_close(got[i][1][d], v[0])


def test_gradients_reach_the_translator_and_nothing_else(tiny):
    network = trained(tiny, n_rows=3, rank=2, width=8)
    batch = [(TEXTS[0], [([5, 6], [7, 8]), ([5], [9])]), (TEXTS[1], [([1, 2, 3], [4])])]
    loss, on_answers = translate.loss_of(network, tiny, batch)
    loss.backward()
    assert all(p.grad is None for p in tiny.parameters())
    # what the top block does behind its keys and values reaches nothing
    unused = {f"lora.{matrix}.{i}" for matrix in "AB" for i in (5, 6, 7)}
    assert {name for name, p in network.named_parameters() if p.grad is None} == unused
    assert all(p.grad.abs().sum() > 0 for p in network.parameters() if p.grad is not None)
    # the same loss, question by question
    answers, questions = [], []
    for text, asked in batch:
        past = network(tiny, [text])
        for question, answer in asked:
            tokens = torch.tensor([question + answer])
            losses = F.cross_entropy(tiny.logits(tiny(tokens, past))[0, :-1], tokens[0, 1:], reduction="none")
            questions += losses[: len(question) - 1].tolist()
            answers += losses[len(question) - 1 :].tolist()
    mean = sum(answers) / len(answers)
    assert on_answers.item() == pytest.approx(mean, rel=1e-4)
    assert loss.item() == pytest.approx(mean + 0.1 * sum(questions) / len(questions), rel=1e-4)


@pytest.fixture(scope="module")
def base(tmp_path_factory, little_base):
    """A base with a translator beside it."""
    folder = little_base(tmp_path_factory.mktemp("models") / "little", 2, 16)
    model = load_model(folder).freeze()
    save_translator(trained(model, n_rows=4, rank=2, width=8), folder / TRANSLATOR, model)
    return folder


def test_a_file_of_a_prompt_needs_no_translator(base, tmp_path):
    model, tokenizer = load_model(base).freeze(), Tokenizer.load(base, 1024)
    method = Translator(model, trigger=TEXTS[0])
    assert method.n_rows() == method.n_positions() == 4 and not method.learns()
    torch.testing.assert_close(method.past(model), load_translator(model)(model, TEXTS[:1]))
    save_prefix(method, tmp_path / "p.safetensors", model, tokenizer)
    model.folder = tmp_path  # where there is none
    again, _ = load_prefix(tmp_path / "p.safetensors", model, tokenizer)
    torch.testing.assert_close(again.past(model), method.past(model), atol=0, rtol=0)


def test_it_answers_on_the_command_line(base, tmp_path, command):
    argv = ["--model", base, "--task", "word_reversal", "--examples", 32, "--test-examples", 3, "--beside", "none"]
    command("train_task.py", *argv, "--method", "translator", "--out", tmp_path / "a").ok()
    results = read_results(tmp_path / "a")
    assert results["labels"]["translator"] == "translator"  # the examples do not stand behind it as text once more
    assert results["loss"] == results["before"] == {} and results["prompt"]["rows"] == 4
    lengths = [len(line) for line in results["prompt"]["trigger"].split()]
    assert len(lengths) == 8 and lengths == sorted(lengths, reverse=True)


def test_a_base_without_one_and_a_broken_one_are_a_line(tiny, base, tmp_path):
    with pytest.raises(UserError, match="untrained has no translator"):
        load_translator(tiny)
    with pytest.raises(UserError, match="no complete translator"):
        load_translator(tiny, base / TRANSLATOR)
    model = load_model(base).freeze()
    header, tensors = read_tensors(base / TRANSLATOR)
    incomplete = {name: t for name, t in tensors.items() if name != "W_q"}
    for wrong, why in ((header | {"format": "x"}, tensors), "format"), ((header, incomplete), "no complete translator"):
        write_tensors(tmp_path / "t", wrong[1], wrong[0])
        with pytest.raises(UserError, match=why):
            load_translator(model, tmp_path / "t")


def test_the_program_trains_measures_and_writes(tmp_path, tokenizer, command, monkeypatch):
    folder, out = tmp_path / "base", tmp_path / "t.safetensors"
    save_model(GPT(GPTConfig(1024, block_size=512, n_layer=1, n_head=2, n_embd=16)), folder)
    shutil.copy("data/nano-2/encoding.json", folder)
    monkeypatch.setattr(translate, "SHOTS", (8,))
    monkeypatch.setattr(documents, "SKILLS", {name: documents.SKILLS[name] for name in ("facts", "copy")})
    argv = "--model", folder, "--test-documents", 1, "--documents", 2
    done = command("research.translate", *argv, "--steps", 2, "--out", out).ok()
    assert "\n| 8 | " in done.out and "| examples | translator | examples as text |" in done.out
    assert len(json.loads(out.with_suffix(".json").read_text())["loss"]) == 2
    again = tmp_path / "again.safetensors"
    command("research.translate", *argv, "--steps", 2, "--out", again).ok()
    assert again.read_bytes() == out.read_bytes()  # the same seed
    more = "--steps", 1, "--seed", 1, "--init-from", out, "--out", tmp_path / "more"
    command("research.translate", *argv, *more).ok()
    refused = command("research.translate", *argv, "--out", out)
    assert refused.code == 2 and refused.err.endswith(f"{out} is already in use: name another, or remove it\n")
    measured = command("research.translate", *argv, "--init-from", out, "--steps", 0).ok()
    assert measured.out == done.out[done.out.index("| examples |") :]
