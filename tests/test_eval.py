"""eval/: intervals by their definition, answers by decoding without a cache."""

import copy
import json
import math
import random

import pytest
import torch
from eval.neighbours import nearest

import tasks
from data.batches import encode
from eval import report
from eval.accuracy import classification, rank_choices, score, wilson
from eval.baselines import few_shot, scratch
from prefix import HybridPrefix, TextPrompt


def test_wilson_from_a_textbook():
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("correct, n", [(0, 20), (1, 20), (7, 20), (20, 20), (990, 1000)])
def test_wilson_bounds_are_where_the_score_test_turns(correct, n):
    """p is inside if |correct/n - p| <= 1.96 standard errors at p: the bounds solve that."""
    for p in wilson(correct, n):
        if 0 < p < 1 - 1e-12:
            assert math.isclose(abs(correct / n - p), 1.959964 * math.sqrt(p * (1 - p) / n), rel_tol=1e-6)
        else:
            assert correct in (0, n)


def test_answers_equal_decoding_one_question_at_a_time_without_a_cache(tiny, tokenizer):
    task = tasks.load("addition")
    examples = task.examples(12)
    before = tokenizer.encode_task("Add: ")
    got = generate_answers(tiny, TextPrompt(tiny, before)(tiny), tokenizer, task, encode(tokenizer, examples), batch_size=3)
    longest = max(len(e.answer) for e in examples)
    stop = tokenizer.encode_task("$")[0]
    for e, text in zip(examples, got):
        tokens = before + tokenizer.encode_task(e.question)
        start = len(tokens)
        while len(tokens) < start + longest and tokens[-1] != stop:
            tokens.append(tiny.logits(tiny(torch.tensor([tokens])))[0, -1].argmax().item())
        assert text == tokenizer.decode(tokens[start:])


def test_score_counts_by_hand():
    task = tasks.load("addition")
    e = [
        tasks.Example("1+2=", "1203;000=3$", 1),
        tasks.Example("9+9=", "9908;001=18$", 1),
        tasks.Example("10+1=", "0101;1001;000=11$", 2),
    ]
    got = score(task, e, ["1203;000=3$", "wrong=18$", "0101;1001;000=11"])  # the last never ended
    assert (got["correct"], got["n"], got["exact_match"]) == (2, 3, 1)
    assert got["by_length"] == {"1": {"correct": 2, "n": 2}, "2": {"correct": 0, "n": 1}}
    assert got["low"] < 2 / 3 < got["high"]


def test_most_prompts_win_a_vote_and_the_first_a_tie(tiny, tokenizer):
    """Three prompts of other lengths in one batch, against each decoded alone and counted."""

    class Short(tasks.Task):
        stop = "e"

        def final_answer(self, answer):
            return answer[:1]

    examples = [tasks.Example(q, "abcde" * 2, 1) for q in ("1+2=", "33+4=", "x", "12", "(", "7*7=", "no", "yes")]
    encoded, task = encode(tokenizer, examples), Short()
    prompts = [HybridPrefix(tiny, n, seed=seed) for n, seed in ((3, 1), (8, 2), (5, 3))]
    with torch.no_grad():
        pasts = [prompt(tiny) for prompt in prompts]
    alone = [generate_answers(tiny, past, tokenizer, task, encoded) for past in pasts]
    got = majority_vote(tiny, pasts, tokenizer, task, encoded, batch_size=7)
    for texts, text in zip(zip(*alone), got):
        finals = [task.final_answer(t) for t in texts]
        counts = [finals.count(f) for f in finals]
        assert text == texts[counts.index(max(counts))]
    assert majority_vote(tiny, [pasts[0]] * 3, tokenizer, task, encoded) == alone[0]


def test_few_shot_is_as_many_examples_of_the_training_split_as_fit(tokenizer):
    task = tasks.load("word_reversal")
    tokens, n = few_shot(tokenizer, task, 8, room=10_000)
    lines = tokenizer.decode(tokens).splitlines()
    assert n == len(lines) == 8
    test = {e.question for r in task.ranges for e in task.examples(1000, r)}
    for line in lines:
        question, reversed_ = line.split("=")
        assert question.split("(")[1][:-1][::-1] + "$" == reversed_
        assert question + "=" not in test
    fewer, n = few_shot(tokenizer, task, 8, room=60)
    assert 1 <= n < 8
    assert len(fewer) <= 60
    assert few_shot(tokenizer, task, 8, room=5) == ([], 0)


def test_rows_that_did_not_move_read_as_their_words(tiny, tokenizer):
    trigger = tokenizer.encode("Add the two")
    rows = nearest(tiny, tokenizer, HybridPrefix(tiny, 2, trigger))
    assert [r["began"] for r in rows] == [None, None] + [tokenizer.decode([t]) for t in trigger]
    for r in rows[2:]:
        assert r["nearest"][0] == [r["began"], 1.0]
        assert r["moved"] == 1.0


def test_nearest_is_by_cosine_not_by_length(tiny, tokenizer):
    prompt = HybridPrefix(tiny, 0, [10])
    with torch.no_grad():
        prompt.rows[0] = tiny.wte.weight[65] * 0.01
    row = nearest(tiny, tokenizer, prompt)[0]
    assert row["nearest"][0] == [tokenizer.decode([65]), 1.0]
    a, b = tiny.wte.weight[65].tolist(), tiny.wte.weight[10].tolist()
    cosine = sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    assert math.isclose(row["moved"], cosine, abs_tol=1e-3)


def test_scratch_models_repeat_by_seed_and_spell():
    (one, letters), (again, _), (other, _) = scratch(1, 64), scratch(1, 64), scratch(2, 64)
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert letters.encode_task("12+3") == list(b"12+3")


def some_results():
    task = tasks.load("addition")
    rng = random.Random(0)
    accuracy = {}
    for method in ("zero-shot", "hybrid"):
        accuracy[method] = {}
        for r in task.ranges:
            examples = task.examples(30, r)
            accuracy[method][r] = score(task, examples, [e.answer if rng.random() < 0.5 else "" for e in examples])
    return {
        "task": "addition",
        "unit": "digits",
        "in_distribution_lengths": (1, 4),
        "new_words": (),
        "labels": {"zero-shot": "zero-shot", "hybrid": "hybrid prefix"},
        "accuracy": accuracy,
        "loss": {"hybrid": {"examples": [32, 64, 96], "loss": [3.0, 2.0, 1.0]}},
    }


def test_the_table_shows_every_number(tmp_path):
    results = some_results()
    lines = report.table(results).splitlines()
    a = results["accuracy"]["hybrid"]["5 digits"]
    assert f"{100 * a['correct'] / 30:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]" in lines[2]
    assert lines[2].startswith("hybrid prefix")
    assert len({len(line) for line in lines if "zero-shot" in line or "hybrid" in line}) == 1  # columns stand


def test_plots_are_written_as_png(tmp_path):
    report.plot_loss(some_results(), tmp_path / "loss.png")
    report.plot_lengths(some_results(), tmp_path / "lengths.png")
    for name in ("loss.png", "lengths.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def your_data(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    return tasks.load(str(path))


def test_the_likeliest_answer_by_brute_force(tiny, tokenizer, tmp_path):
    """Every answer written out behind every question, one at a time, its tokens' log probabilities added up."""
    rows = [(f"{i * 7919} is", "abcdefghij"[i % 10]) for i in range(80)]
    task = your_data(tmp_path, rows)
    tiny = copy.deepcopy(tiny)
    tiny.wpe.weight.data[20:] *= 10  # random attention, or every question would get the same answer
    tiny.h[0].attn.c_attn.weight.data *= 10
    examples = task.examples(None, split="train")
    before = tokenizer.encode("Say so: ")
    got = rank_choices(tiny, TextPrompt(tiny, before)(tiny), tokenizer, task, encode(tokenizer, examples), batch_size=4)
    for e, chosen in zip(examples, got):
        totals = []
        for answer in task.classes:
            tokens = before + tokenizer.encode_task(e.question)
            label = tokenizer.encode_task(f" {answer}\n")
            log_p = tiny.logits(tiny(torch.tensor([tokens + label])))[0].log_softmax(-1)
            totals.append(sum(log_p[len(tokens) + i - 1, t].item() for i, t in enumerate(label)))
        assert chosen == totals.index(max(totals))
    assert len(set(got)) > 1


def test_classification_by_hand(tmp_path):
    rows = [(str(i), "abc"[i % 3]) for i in range(30)]
    task = your_data(tmp_path, rows)
    true = ["a", "a", "a", "a", "b", "b", "b"]
    examples = [tasks.Example("", f" {t}\n", 1) for t in true]
    got = classification(task, examples, [0, 0, 0, 1, 1, 2, 0])
    assert got["confusion"] == [[3, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert (got["correct"], got["n"]) == (4, 7)
    # a: precision 3/4, recall 3/4; b: precision 1/2, recall 1/3; nothing was c
    assert math.isclose(got["macro_f1"], (3 / 4 + 2 / 5) / 2)
