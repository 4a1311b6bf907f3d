"""Exact-match accuracy by greedy decoding, with 95% Wilson intervals."""

import math

import torch

from data.batches import question_batches
from model import stack


def wilson(correct, n, z=1.959964):
    """The 95% interval (low, high) of a proportion: Wilson (1927). (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def answers(model, past, tokenizer, task, encoded, batch_size=250):
    """What the model writes after each question, greedily, up to the task's stop: [text].

    `past` is a prompt's cache or None, `encoded` what data.batches.encode makes of examples. The budget is
    the longest true answer, for every question.
    """
    longest = max((len(worked) for _, worked in encoded), default=0)
    stop = tokenizer.encode_task(task.stop)[-1]
    texts = [""] * len(encoded)
    for rows, tokens in question_batches(encoded, batch_size):
        new = model.generate(tokens.to(model.wte.weight.device), longest, past, stop)  # (B, at most longest)
        for i, row in zip(rows, new.tolist()):
            text, end, _ = tokenizer.decode(row).partition(task.stop)
            texts[i] = text + end
    return texts


def vote(model, pasts, tokenizer, task, encoded, batch_size=250):
    """What most of several prompts write, by the final answer: [text]; of a tie, the first prompt's among the most.

    All caches stand in one batch, each before every question: Lester et al. (2021), section 6, prompt ensembling.
    """
    longest = max((len(worked) for _, worked in encoded), default=0)
    stop, n, texts = tokenizer.encode_task(task.stop)[-1], len(pasts), [""] * len(encoded)
    cache, pad = stack(pasts)  # (n, n_head, P, D) a layer, (n_layer, n)
    for rows, tokens in question_batches(encoded, max(1, batch_size // n)):
        B = len(rows)
        many = [tuple(x.repeat(B, 1, 1, 1) for x in pair) for pair in cache]  # (B * n, n_head, P, D)
        asked = tokens.to(model.wte.weight.device).repeat_interleave(n, 0)  # (B * n, T)
        new = [
            tokenizer.decode(row) for row in model.generate(asked, longest, many, stop, pad=pad.repeat(1, B)).tolist()
        ]
        for i, row in enumerate(rows):
            written = ["".join(t.partition(task.stop)[:2]) for t in new[i * n : (i + 1) * n]]
            finals = [task.final_answer(text) for text in written]
            texts[row] = written[max(range(n), key=lambda j: (finals.count(finals[j]), -j))]  # noqa: B023
    return texts


def score(task, examples, texts):
    """Counts of right final answers, overall and by length, and of answers right in every step."""
    right = [task.final_answer(text) == task.final_answer(e.answer) for e, text in zip(examples, texts)]
    low, high = wilson(sum(right), len(right))
    by_length = {}
    for e, ok in zip(examples, right):
        correct, n = by_length.get(e.length, (0, 0))
        by_length[e.length] = (correct + ok, n + 1)
    return {
        "correct": sum(right),
        "n": len(right),
        "low": low,
        "high": high,
        "exact_match": sum(text == e.answer for e, text in zip(examples, texts)),
        "by_length": {str(k): {"correct": c, "n": n} for k, (c, n) in sorted(by_length.items())},
    }


@torch.no_grad()
def rank_choices(model, past, tokenizer, task, encoded, batch_size=250):
    """For each question the index of the one of task.classes that is likeliest as its whole answer."""
    labels = [tokenizer.encode_task(task.answer_line(answer)) for answer in task.classes]
    chosen = [0] * len(encoded)
    for rows, tokens in question_batches(encoded, batch_size):
        tokens = tokens.to(model.wte.weight.device)
        cache = model.prefill(tokens[:, :-1], past)  # the question once, whatever the number of classes
        scores = []
        for label in labels:
            label = torch.tensor(label, device=tokens.device).expand(len(rows), -1)  # (B, A)
            hidden = model(torch.cat([tokens[:, -1:], label[:, :-1]], dim=1), cache)  # (B, A, C)
            log_p = model.logits(hidden).float().log_softmax(-1)  # (B, A, vocab_size)
            scores.append(log_p.gather(2, label[:, :, None]).sum((1, 2)))  # (B)
        for i, best in zip(rows, torch.stack(scores, 1).argmax(1).tolist()):
            chosen[i] = best
    return chosen


def classification(task, examples, chosen):
    """Accuracy with its interval, macro-F1 and confusion[true][chosen], all of the likeliest answers."""
    k = len(task.classes)
    confusion = [[0] * k for _ in range(k)]
    for e, i in zip(examples, chosen):
        confusion[task.classes.index(task.final_answer(e.answer))][i] += 1
    correct, n = sum(confusion[i][i] for i in range(k)), len(examples)
    low, high = wilson(correct, n)
    # F1 = 2 TP / (true + chosen), of the classes that occur in the test
    f1 = [
        2 * confusion[i][i] / (sum(confusion[i]) + sum(row[i] for row in confusion))
        for i in range(k)
        if any(confusion[i])
    ]
    return {"correct": correct, "n": n, "low": low, "high": high, "macro_f1": sum(f1) / len(f1), "confusion": confusion}
