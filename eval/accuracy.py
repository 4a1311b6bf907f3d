"""Exact-match accuracy by greedy decoding, with 95% Wilson intervals."""

import math

from data.batches import encode, question_batches


def wilson(correct, n, z=1.959964):
    """The 95% interval (low, high) of a proportion: Wilson (1927). (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def answers(model, past, tokenizer, task, examples, batch_size=250):
    """What the model writes after each question, greedily, up to the task's stop: [text].

    `past` is a prompt's cache or None. The budget is the longest true answer, for every question.
    """
    encoded = encode(tokenizer, examples)
    longest = max((len(worked) for _, worked in encoded), default=0)
    stop = tokenizer.spell(task.stop)[-1]
    texts = [""] * len(examples)
    for rows, tokens in question_batches(encoded, batch_size):
        new = model.generate(tokens.to(model.wte.weight.device), longest, past, stop)  # (B, at most longest)
        for i, row in zip(rows, new.tolist()):
            text, end, _ = tokenizer.decode(row).partition(task.stop)
            texts[i] = text + end
    return texts


def score(task, examples, texts):
    """Counts of right final answers, overall and by length, and of answers right in every step."""
    right = [task.final(text) == task.final(e.worked) for e, text in zip(examples, texts)]
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
        "worked_correct": sum(text == e.worked for e, text in zip(examples, texts)),
        "by_length": {str(k): {"correct": c, "n": n} for k, (c, n) in sorted(by_length.items())},
    }
