"""research/speedrun.py: PEFT's side is PEFT's own step, ours is Muon's, and the rules by hand."""

import itertools
import math
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import tasks
from data.batches import encode, training_batches
from files.weights import load_model
from research import speedrun

DIGITS, FIVE = "in-distribution", "5 digits"  # the two ranges of addition


@pytest.fixture
def base(base, tokenizer):
    task = tasks.load("addition")
    return SimpleNamespace(
        model=load_model(base).freeze(), tokenizer=tokenizer, task=task, dtype=torch.float32, device="cpu"
    )


def a_batch(base, n=5):
    return next(training_batches(encode(base.tokenizer, base.task.examples(n, split="train")), n, speedrun.random))


def test_the_first_steps_are_those_of_peft(base):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    lr, betas, batch = 0.02, (0.7, 0.9), a_batch(base)
    c = speedrun.Contender("", True, "none", lr, n_random=5, warmup=2, betas=betas)
    step, tuned = speedrun.runner(base, c, seed=0)

    # the reference: transformers and peft written out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = transformers.GPT2LMHeadModel.from_pretrained(base.model.folder).eval()
        torch.manual_seed(0)
        model = peft.get_peft_model(plain, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    weight = model.prompt_encoder.default.embedding.weight
    optimizer = torch.optim.AdamW([weight], betas=betas, weight_decay=0)
    texts, labels = [], []
    for tokens, targets, answer in zip(*batch):
        texts.append([tokens[0].item(), *targets.tolist()])
        labels.append([-100] + [t if a else -100 for t, a in zip(targets.tolist(), answer.tolist())])
    for i, rate in enumerate((lr / 2, lr)):
        optimizer.param_groups[0]["lr"] = rate
        loss = model(input_ids=torch.tensor(texts), labels=torch.tensor(labels)).loss
        loss.backward()
        weight.grad *= min(1, 1 / weight.grad.norm())
        optimizer.step()
        optimizer.zero_grad()
        assert step(batch, i) == pytest.approx(loss.item(), abs=1e-4)
        torch.testing.assert_close(tuned().rows, weight, atol=1e-4, rtol=1e-4)


def test_muon_moves_keys_and_values_of_each_layer_by_a_rate_that_follows_the_loss(base):
    """The update of each (P, width) has singular values near 1, times the rate. It is full at first, and afterwards as
    small a share of it as the last batch's loss is of `full_loss`."""
    config, full_loss, rate, loss = base.model.config, 50.0, 0.5, math.inf
    c = speedrun.Contender("", False, "none", 0.5, n_random=5, warmup=1, momentum=0.8, full_loss=full_loss)
    (step, tuned), batch = speedrun.runner(base, c, seed=0), a_batch(base)
    for i in range(2):
        before = tuned().rows.detach().clone()
        loss = step(batch, i, loss)
        updates = (before - tuned().rows.detach()).view(5, -1, config.n_embd).transpose(0, 1) / rate
        singular = torch.linalg.svdvals(updates)  # (2 a layer, P)
        assert len(updates) == 2 * config.n_layer and 0.6 < singular.median() and singular.max() < 1.3, singular
        assert 0 < loss < full_loss
        rate = 0.5 * loss / full_loss


def test_batches_mix_lengths_and_repeat_with_their_seed(base):
    encoded = encode(base.tokenizer, base.task.examples(20, split="train"))
    one, two = ([b[0] for b in itertools.islice(speedrun.mixed_batches(encoded, 8, seed=3), 6)] for _ in range(2))
    assert [len(b) for b in one] == [8, 8, 4] * 2
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert sorted(row[:3].tolist() for b in one[:3] for row in b) == sorted(q[:3] for q, _ in encoded)


def check(step, seconds, digits, five):
    return {"step": step, "examples": 4 * step, "seconds": seconds, "exact": {DIGITS: digits, FIVE: five}}


def test_runs_are_measured_ever_more_rarely_and_the_record_is_the_first_measurement_that_holds():
    measured_after = [0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]
    assert [speedrun.next_check(step) for step in measured_after[:-1]] == measured_after[1:]
    checks = [check(0, 0, 0.985, 0.2), check(1, 0.5, 0.99, 0.3), check(2, 1.0, 0.9, 0.96), check(3, 1.5, 1, 0.9)]
    assert speedrun.records(checks) == {DIGITS: checks[1], FIVE: checks[2]}
    assert speedrun.records(checks[:2]) == {DIGITS: checks[1], FIVE: None}


def test_the_cells_of_a_line():
    won, later, never = [check(2, 1.5, 1, 0.5)], [check(0, 0, 0, 0), check(3, 2.5, 1, 0.5)], [check(9, 60.2, 0.9, 0.25)]
    assert speedrun.cell([won], DIGITS, 60) == "1.50 s, 8"
    assert speedrun.cell([won, later, never], DIGITS, 60) == "2.50 [1.50, over 60] s, 12 [8, more]"
    assert speedrun.cell([won, never, never], DIGITS, 60) == "not within 60 s (1 of 3), ends at 90.0 [90.0, 100.0]%"
    assert speedrun.cell([won, later, never], FIVE, 60) == "not within 60 s (0 of 3), ends at 50.0 [25.0, 50.0]%"


def test_a_run_of_both_sides_on_a_task_with_its_own_ranges(base, command, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(speedrun, "QUESTIONS", 3)
    base.task = tasks.load("last_letter")
    for c in speedrun.CONTENDERS[1], speedrun.CONTENDERS[4]:
        first, last = speedrun.one_run(base, c, 0, 0.001, Mock())
        assert (first["examples"], last["examples"]) == (0, 4) and 0 < last["seconds"] < math.inf
        assert list(first["exact"]) == list(last["exact"]) == [DIGITS, "5 words"]
    monkeypatch.setattr(speedrun, "one_run", lambda *_: [first, last])
    done = command("research.speedrun", "--model", base.model.folder, "--task", "last_letter", "--quick")
    assert done.code == 0 and done.out.count(" | not within 20 s (0 of 1), ends at 0.0% |") == 5, done.err
