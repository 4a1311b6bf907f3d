"""train_task.py from the command line, and its loop, on a tiny base of random weights."""

import json
import math
from functools import partial

import pytest
import torch
from conftest import results_of
from torch import nn
from tqdm import tqdm

import model
import tasks
import train_task
from data.batches import encode
from eval.accuracy import generate_answers, score
from eval.validation import Validation
from files.errors import run_main
from files.safe import read_tensors
from methods.weights import Scratch
from prefix import HybridPrefix, Method
from run import resume
from train_task import train

ALONE = "--beside", "none"


@pytest.mark.parametrize("task", ["last_letter", "memory"])
def test_a_task_runs_to_the_end(run, tmp_path, task):
    done = run("--task", task, "--out", tmp_path, "--test-examples", 4).ok()
    results, ranges = results_of(tmp_path), list(tasks.load(task).ranges)
    contenders = ["text", "one-shot", "few-shot", "hybrid", "scratch"]
    assert list(results["accuracy"]) == contenders and list(results["before"]) == contenders[3:]
    for by_range in (*results["accuracy"].values(), *results["before"].values()):
        assert list(by_range) == ranges and all(a["n"] == 4 for a in by_range.values())
    assert {p.name for p in tmp_path.iterdir()} - {resume.LOCK} == {
        *("accuracy_by_length.png", "details.json", "loss.png", "prefix.safetensors", "report.html", "results.json")
    }
    assert "hybrid prefix" in done.out and results["nearest_tokens"]


@pytest.fixture
def of_words(run, tmp_path):
    """Reverse words behind a prompt alone: the same as `run`, in a folder of that name."""
    return lambda name, *flags: run("--task", "word_reversal", *ALONE, *flags, "--out", tmp_path / name)


def test_without_baselines_the_table_has_before_and_after_and_no_best_context(of_words, tmp_path):
    done = of_words("run", "--tokenize", "bpe").ok()
    for line in ("before tuning", "  tuned  ", "tuning adds to its start"):
        assert line in done.out
    assert "best context" not in done.out and not (tmp_path / "run" / "report.html").exists()
    results = results_of(tmp_path / "run")
    assert list(results["before"]) == list(results["accuracy"]) == ["hybrid"]
    header, _ = read_tensors(tmp_path / "run" / "prefix.safetensors")
    assert header["tokenize"] == "bpe"


def test_the_same_seed_gives_the_same_results(of_words, tmp_path, monkeypatch):
    """Also where the progress bar counts nothing. tqdm reads TQDM_DISABLE when it is imported: here the bar itself is
    disabled."""
    for name, seed, disable in (("one", 5, False), ("again", 5, True), ("other", 6, False)):
        monkeypatch.setattr(train_task, "tqdm", partial(tqdm, disable=disable))
        of_words(name, "--seed", seed).ok()
    one, again, other = (results_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again and one["loss"] != other["loss"]
    assert one["loss"]["hybrid"]["examples"][-1] == 52  # of 64 a fifth is held out


def some_questions(path, n, answers=("red", "green", "blue")):
    rows = [{"prompt": f"What colour is {i}?", "answer": answers[i % len(answers)]} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_your_own_classes_are_compared_by_likelihood(run, tmp_path):
    train, test = (some_questions(tmp_path / f"{name}.jsonl", n) for name, n in (("train", 90), ("test", 20)))
    # the second would fit by itself, but not the last question behind its answer, and each is asked with each
    odd = {"long " * 300: "red", "x": "what " * 230, "why? " * 40: "red"}
    with open(train, "a") as file:
        file.write("not JSON\n")
        file.writelines(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in odd.items())
    beside = "--beside", "finetune", "scratch"
    done = run("--task", train, test, *beside, "--out", tmp_path / "run", "--test-examples", 20).ok()
    for note in ("1 broken rows left out, line 91", "20 prompts occur in", "the base: left out, lines 92, 93\n"):
        assert note in done.err
    results = results_of(tmp_path / "run")
    assert results["accuracy"]["majority"]["in-distribution"]["correct"] in (6, 7)
    methods = {"text", "one-shot", "few-shot", "hybrid", "finetune", "finetune, 1 shot", "scratch"}
    assert results["accuracy"].keys() - {"majority", "tfidf"} == methods
    assert results["before"].keys() == methods - {"text", "one-shot", "few-shot"}
    for method in methods:
        c = results["accuracy"][method]["in-distribution"]
        assert c["n"] == 20 == sum(map(sum, c["confusion"]))
        assert c["correct"] == sum(c["confusion"][i][i] for i in range(3))
        assert results["labels"][method] in done.out
    assert "always" in done.out and (tmp_path / "run" / "confusion.png").exists()
    assert results["prompt"]["trigger"] == "Answer with one of: blue, green, red.\n"


def tune(method, model, encoded, epochs, batch_size, **more):
    return train(method, model, encoded, epochs, batch_size, method.lr, torch.float32, seed=0, **more)


def test_training_learns_what_it_is_shown(tokenizer):
    """Twelve reversals by heart: loss near zero, and greedy decoding gives every one back."""
    task = tasks.load("word_reversal")
    examples = task.examples(12, split="train")
    method = Scratch(block_size=64)
    letters = method.tokenizer(tokenizer)
    encoded = encode(letters, examples)
    curve = tune(method, method.net, encoded, 60, 4)
    assert curve["loss"][0] > 4 > 0.05 > curve["loss"][-1]
    assert curve["examples"][-1] == 60 * 12
    texts = generate_answers(method.net, None, letters, task, encoded)
    assert score(task, examples, texts)["exact_match"] == 12


class TwoGroups(Method):
    """Two numbers of one optimizer, each in a group with a rate of its own; the loss is 1000 times their sum."""

    def __init__(self, model):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def optimizers(self, lr, dtype):
        return [torch.optim.SGD([{"params": [self.a], "lr": lr}, {"params": [self.b], "lr": lr / 10}])]

    def loss(self, network, tokens, targets, answer):
        return 1000 * (self.a + self.b)


def test_every_group_of_an_optimizer_has_its_rate_and_is_clipped_and_averaged(tiny, monkeypatch):
    """By hand: a tenth of three steps is none, so that their rates are 1, 3/4 and 1/4 of the peaks, as the cosine says;
    the gradient of both, clipped to a length of 1, is 1 / sqrt(2) for each."""
    averaged = []
    monkeypatch.setattr(train_task.processes, "average", lambda p, loss, weights: averaged.append(len(p)) or loss)
    method = TwoGroups(tiny)
    train(method, tiny, [([1], [2])] * 3, 1, 1, 0.5, torch.float32, seed=0)
    assert method.a.item() == pytest.approx(-0.5 * (1 + 3 / 4 + 1 / 4) / 2**0.5, rel=1e-4)
    assert method.b.item() == pytest.approx(method.a.item() / 10, rel=1e-4)
    assert averaged == [2, 2, 2]
    method, steps = TwoGroups(tiny), 40  # the first four of which warm up: 1/4, 1/2 and 3/4 of the peak, then all of it
    train(method, tiny, [([1], [2])] * steps, 1, 1, 0.5, torch.float32, seed=0)
    cosine = [0.5 + 0.5 * math.cos(math.pi * n / steps) for n in range(steps)]
    assert method.a.item() == pytest.approx(-0.5 * (1.5 + sum(cosine[3:])) / 2**0.5, rel=1e-4)


def test_the_best_checkpoint_is_judged_in_the_numerics_that_it_is_measured_in(tiny, tokenizer, monkeypatch):
    """Tuning may multiply in bfloat16; whatever is asked between steps is answered in the base's own type."""
    seen = {"tuning": set(), "judging": set()}
    plain, encoded = tiny.logits, encode(tokenizer, tasks.load("word_reversal").examples(8, split="train"))

    def logits(hidden):
        seen["tuning" if torch.is_grad_enabled() else "judging"].add(plain(hidden).dtype)
        return plain(hidden)

    monkeypatch.setattr(tiny, "logits", logits)
    prompt, record = HybridPrefix(tiny, n_random=4), {}
    train(prompt, tiny, encoded, 1, 4, 0.01, torch.bfloat16, 0, validation=Validation(encoded, record, {}))
    assert record["steps"] == [0, 1, 2]
    assert seen == {"tuning": {torch.bfloat16}, "judging": {torch.float32}}


def test_a_used_folder_is_refused_and_kept(of_words, tmp_path):
    (tmp_path / "results.json").write_text("precious")
    done = of_words("")
    assert done.code == 2 and "already in use: give another --out, --resume to go on, or --overwrite" in done.err
    assert (tmp_path / "results.json").read_text() == "precious"
    of_words("", "--overwrite").ok()
    assert results_of(tmp_path)["task"] == "word_reversal"


def test_a_loss_that_is_not_a_number_ends_the_run_and_loses_nothing(of_words, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("precious")
    done = of_words("out", "--lr", 1e30, "--overwrite")
    assert done.code == 2
    assert "hybrid prefix from the instruction: the loss became nan after 16 examples: lower --lr (1e+30)" in done.err
    assert (tmp_path / "out" / "results.json").read_text() == "precious"


def a_slip(self, x):
    raise ValueError("shapes do not match")


@pytest.mark.parametrize(
    "forward, fault, words",
    [
        (a_slip, ValueError, "shapes do not match"),
        (lambda self, x: x * math.nan, FloatingPointError, "the loss of the first step is nan"),
    ],
)
def test_a_fault_of_the_code_keeps_its_traceback(base, tmp_path, monkeypatch, forward, fault, words):
    monkeypatch.setattr(model.MLP, "forward", forward)
    with pytest.raises(fault, match=words):
        run_main(train_task.main, "train_task.py", ["--model", str(base), "--out", str(tmp_path / "run"), *ALONE])


def test_a_fault_before_anything_is_measured_leaves_a_folder_that_the_next_try_can_have(of_words, monkeypatch):
    with monkeypatch.context() as change:
        change.setattr(model.MLP, "forward", a_slip)
        with pytest.raises(ValueError, match="shapes do not match"):
            of_words("out", "--method", "lora")
    of_words("out", "--method", "lora").ok()
