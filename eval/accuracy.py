"""Final-answer accuracy and exact match, with 95% Wilson intervals."""

import math
import random
from collections import Counter

import torch

from data.batches import question_batches, training_batches
from generate import generate


def wilson(correct, n, z=1.959964):
    """The 95% interval (low, high) of a proportion, (0, 1) if n is 0: Wilson (1927)."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def counts(right):
    """The number of right ones among booleans, and the interval of their share."""
    low, high = wilson(sum(right), len(right))
    return {"correct": sum(right), "n": len(right), "low": low, "high": high}


def longest_answer(encoded):
    """The number of tokens of the longest true answer."""
    return max((len(answer) for _, answer in encoded), default=0)


def generate_answers(network, past, tokenizer, task, encoded, longest=None, batch_size=250):
    """The texts that greedy decoding writes after each question, up to the task's stop.

    past is a KV cache of batch 1, or None; encoded comes from data.batches.encode. Every question gets `longest`
    tokens, by default as many as the longest true answer has.
    """
    longest, stop = longest or longest_answer(encoded), [tokenizer.stops(task.stop)]
    order, texts = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0])), [""] * len(encoded)
    for start in range(0, len(order), batch_size):  # questions of similar length together
        rows = order[start : start + batch_size]
        written = generate(network, [encoded[i][0] for i in rows], longest, past, stop=stop)
        for i, tokens in zip(rows, written):
            texts[i] = tokenizer.cut(tokens, task.stop)
    return texts


def majority_vote(network, pasts, tokenizer, task, encoded):
    """The texts on whose final answer most of several prompts agree; in a tie the earliest prompt's. Prompt
    ensembling: Lester et al. (2021), section 6.
    """
    texts = []
    for votes in zip(*[generate_answers(network, past, tokenizer, task, encoded) for past in pasts]):
        finals = [task.final_answer(text) for text in votes]
        texts.append(votes[finals.index(max(finals, key=finals.count))])  # the first of those with the most votes
    return texts


@torch.no_grad()
def exact_answers(network, past, encoded, batch_size=32):
    """Which true answers greedy decoding would write exactly, without generating: an answer is exact if each of its
    tokens is the likeliest after those before it.

    Yields for each batch: exact (B), and logits (N, vocab_size) and targets (N) of the answers' tokens, for the loss.
    """
    device = network.wte.weight.device
    for batch in training_batches(encoded, batch_size, random.Random(0)):
        tokens, targets, answer = (t.to(device) for t in batch)  # (B, T) each
        logits = network.logits(network(tokens, past)[answer]).float()  # (N, vocab_size)
        wrong = torch.zeros_like(answer)
        wrong[answer] = logits.argmax(-1) != targets[answer]
        yield ~wrong.any(1), logits, targets[answer]


def score(task, examples, texts):
    """Counts of right final answers, over all and by length, of exact matches (every step right), and of each kind of
    error, which include wrong steps before a right final answer."""
    right = [task.final_answer(text) == task.final_answer(e.answer) for e, text in zip(examples, texts)]
    errors = Counter(task.kind_of_error(e.answer, text) for e, text in zip(examples, texts) if text != e.answer)
    by_length = {}
    for e, ok in sorted(zip(examples, right), key=lambda pair: pair[0].length):
        by_length.setdefault(str(e.length), []).append(ok)
    return counts(right) | {
        "exact_match": sum(text == e.answer for e, text in zip(examples, texts)),
        "errors": dict(errors.most_common()),
        "by_length": {length: {"correct": sum(ok), "n": len(ok)} for length, ok in by_length.items()},
    }


@torch.no_grad()
def rank_choices(model, past, tokenizer, task, encoded, batch_size=250):
    """For each question the index of the class with the highest likelihood as its whole answer."""
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
    """Accuracy with its interval, macro-F1 and confusion[true][chosen] of the chosen classes."""
    k = len(task.classes)
    true = [task.classes.index(task.final_answer(e.answer)) for e in examples]
    pairs = Counter(zip(true, chosen))
    confusion = [[pairs[i, j] for j in range(k)] for i in range(k)]
    occur = [i for i in range(k) if any(confusion[i])]  # as a true answer
    f1 = [2 * confusion[i][i] / (sum(confusion[i]) + sum(row[i] for row in confusion)) for i in occur]
    right = [i == j for i, j in zip(true, chosen)]
    return counts(right) | {"macro_f1": sum(f1) / len(f1), "confusion": confusion}
