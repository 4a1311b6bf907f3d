"""eval/validation.py: what is held out, how it is measured, and which checkpoint tuning keeps."""

import random

import pytest
import torch
from conftest import results_of

import tasks
import train_task
from data.batches import encode, training_batches
from eval.contexts import as_text
from eval.validation import Validation, answers_right, hold_back
from files.weights import load_model
from generate import generate
from prefix import HybridPrefix
from tasks import Example


def test_what_is_held_out_by_hand():
    """The longest that no prompt shows, each once, and all that ask the same are left out of what is tuned on."""
    lengths = {"a": 4, "b": 4, "c": 2, "d": 3, "e": 1, "f": 1}
    examples = [Example(q, q, lengths[q]) for q in "abcbdefefefefef"]
    tuned_on, held_out = hold_back(tasks.load("addition"), examples, 128, shown=[examples[0]])
    assert [e.question for e in held_out] == ["b", "d", "c"]  # a fifth of 15
    assert [e.question for e in tuned_on] == list("aefefefefef")
    assert hold_back(tasks.load("addition"), examples, 0, []) == (examples, [])


def test_right_answers_are_those_that_greedy_decoding_writes(tiny):
    prompt = HybridPrefix(tiny, n_random=3, trigger=[40])
    questions = [[50 + i, *range(60, 62 + i % 3)] for i in range(12)]
    written = generate(tiny, questions, 5, prompt.past(tiny))
    answers = [[*w[:-1], w[-1] + (i < 5)] for i, w in enumerate(written)]  # five are wrong in their last token
    encoded = list(zip(questions, answers))
    exact, loss = answers_right(prompt, tiny, encoded)
    (batch,) = training_batches(encoded, len(encoded), random.Random(0))
    assert exact == 7 and loss == pytest.approx(prompt.loss(tiny, *batch).item(), rel=1e-5)


@pytest.mark.parametrize(
    "right, kept",
    [
        ([50, 84, 90, 88, 87], 4),  # of a hundred; a standard error of 90 is 3
        ([50, 84, 90, 86, 86], 2),
        ([91, 92, 90, 90, 90], 1),  # within one of the best, but below the start
        ([0, 0, 0, 0, 0], 4),
        ([100, 100, 99, 99, 99], 1),
    ],
)
def test_the_last_that_is_as_good_as_the_best_and_the_start_is_kept(tiny, right, kept):
    prompt, record, best = HybridPrefix(tiny, n_random=3), {}, {}
    for step, exact in enumerate(right):
        prompt.rows.data.fill_(step)
        validation = Validation([([40], [41])] * 100, record, best)  # made again after each stop of a run
        validation.check(prompt, tiny, step, first=lambda _, exact=exact: (exact, 1.0))
    validation.put_back(prompt)
    assert record["kept_step"] == kept and (prompt.rows == kept).all()
    assert record["steps"] == [0, 1, 2, 3, 4] and record["exact_match"] == right


def test_it_is_due_at_the_start_four_times_and_at_the_end_and_never_again():
    validation = Validation([], {}, {})
    assert [step for step in range(14) if validation.due(step, 13)] == [0, 4, 8, 12, 13]
    validation.record["steps"] += [0, 4]  # a run that was stopped after step 4
    assert [step for step in range(4, 14) if validation.due(step, 13)] == [8, 12, 13]


def test_a_start_that_tuning_ruins_is_what_it_ends_as(tokenizer):
    """nano-2 answers after one worked example; a rate of 100 throws its rows far away."""
    nano, task = load_model("data/nano-2").freeze(), tasks.load("word_reversal")
    tuned_on, held_out = hold_back(task, task.examples(15, split="train"), 3, [])
    prompt = HybridPrefix(nano, trigger=tokenizer.encode_task(as_text(tuned_on[:1])))
    validation = Validation(encode(tokenizer, held_out), {}, {})
    settings = 1, 4, 100.0, torch.bfloat16, 0
    train_task.train(prompt, nano, encode(tokenizer, tuned_on), *settings, validation=validation)
    assert validation.record["steps"] == [0, 1, 2, 3] and validation.record["kept_step"] == 0
    assert validation.record["loss"][0] < 1 < validation.record["loss"][-1]
    assert torch.equal(prompt.rows, prompt.start)
    measured = validation.record["exact_match"][0], validation.record["loss"][0]
    assert measured == answers_right(prompt, nano, validation.encoded)  # in float32, as a run measures, not autocast


def test_nothing_held_out_is_tuned_on_tested_or_shown(base, tokenizer, monkeypatch, tmp_path):
    original, seen = train_task.train, []

    def train(method, model, encoded, *args):
        seen.extend([encoded, args[-1].encoded, tokenizer.decode(method.shots[0].tolist())])
        return original(method, model, encoded, *args)

    monkeypatch.setattr(train_task, "train", train)
    few = f"--task word_reversal --model {base} --examples 64 --test-examples 20 --beside none".split()
    train_task.main([*few, "--shots", "2", "--trigger", "examples:3", "--out", str(tmp_path / "run")])
    tuned_on, held_out = ({tokenizer.decode(question) for question, _ in some} for some in seen[:2])
    task = tasks.load("word_reversal")
    tested = {e.question for r in task.ranges for e in task.examples(20, r)}
    lines = (results_of(tmp_path / "run")["prompt"]["trigger"] + seen[2]).splitlines()
    shown = {line.partition("=")[0] + "=" for line in lines}
    assert len(held_out) == 12 and len(lines) == 5 and not held_out & (tuned_on | tested | shown)
