"""Final-answer accuracy and exact match, with 95% Wilson intervals."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from data.batches import by_length, pad
from generate import empty_cache, generate, pad_left

MOST_TOKENS = 4096  # of a batch, padding included: a base of 135M holds 200 MB of keys and values for them
THREADS = torch.get_num_threads()  # as torch begins: the cores, or OMP_NUM_THREADS


def wilson(correct, n, z=1.959964):
    """The 95% interval (low, high) of a proportion: Wilson (1927)."""
    p = correct / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))


def generate_answers(network, past, tokenizer, task, encoded, limits=None, progress=lambda n: None):
    """The texts that greedy decoding writes after each question, up to the task's stop.

    past is a KV cache of batch 1, or None; encoded comes from data.batches.encode. limits: the most tokens of each
    answer, by default as many as the longest true one has. progress is told how many questions are done.

    A true answer that `exact_answers` finds is not decoded. It sums in another order than decoding does, so that an
    answer may change where two tokens are the likeliest up to rounding: of nano-2's none in float32, and 2 of 3,750 in
    bfloat16.
    """
    limits = limits or [max((len(answer) for _, answer in encoded), default=0)] * len(encoded)
    texts = [tokenizer.cut(answer, task.stop) for _, answer in encoded]  # the true ones, until another is written
    left = set(range(len(encoded)))
    for exact, rows, _ in exact_answers(network, past, encoded):
        left.difference_update(i for i, right in zip(rows, exact.tolist()) if right)
        if 3 * exact.sum() < 2 * len(exact):
            break  # it is cheaper to decode the others at once
    left, stop = sorted(left), [tokenizer.stops(task.stop)]
    progress(len(encoded) - len(left))

    def decode(rows):
        rows = [left[j] for j in rows]
        longest = max(limits[i] for i in rows)
        return rows, generate(network, [encoded[i][0] for i in rows], longest, past, stop=stop)

    lengths = [len(encoded[i][0]) + limits[i] for i in left]
    most = min(2 * MOST_TOKENS, sum(lengths) // 2 + max(limits, default=0))  # at least two batches, for two threads
    for rows, answers in in_threads(decode, by_length(lengths, most)):
        for i, tokens in zip(rows, answers):
            texts[i] = tokenizer.cut(tokens[: limits[i]], task.stop)
        progress(len(rows))
    return texts


def in_threads(function, batches):
    """Yields function(batch) for each batch. Where torch computes on one of several threads, as for a small base on a
    CPU, each thread has a batch of its own: products so small take as long on two threads as on one."""
    if torch.get_num_threads() > 1 or THREADS == 1:
        yield from map(function, batches)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(function, batches)


def exact_answers(network, past, encoded):
    """Which true answers greedy decoding would write exactly, without decoding: an answer is exact if each of its
    tokens is the likeliest after those before it.

    Yields for each batch: exact (B), the indices of its questions, and the losses of their answer tokens (N), in nats.
    """
    device = network.wte.weight.device

    @torch.no_grad()
    def exact_rows(rows):
        tokens, targets, answer = (t.to(device) for t in pad([encoded[i] for i in rows]))  # (B, T) each
        hidden, targets = network(tokens, past)[answer], targets[answer]  # (N, C), (N)
        found = []
        for some, target in zip(hidden.split(256), targets.split(256)):  # the logits of all would fill the memory
            logits = network.logits(some).float()  # (256, vocab_size)
            found.append((logits.argmax(-1) == target, F.cross_entropy(logits, target, reduction="none")))
        likeliest, losses = map(torch.cat, zip(*found))
        wrong = torch.zeros_like(answer)
        wrong[answer] = ~likeliest
        return ~wrong.any(1), rows, losses

    return in_threads(exact_rows, by_length([len(q) + len(a) for q, a in encoded], MOST_TOKENS // 2))


def count_exact(network, past, encoded):
    """How many true answers greedy decoding would write exactly, and their mean loss in nats per token."""
    exact, _, losses = zip(*exact_answers(network, past, encoded))
    return torch.cat(exact).sum().item(), torch.cat(losses).mean().item()


def score(task, examples, texts):
    """Counts of right final answers, over all with their 95% interval and by length, of exact matches (every step
    right), and of each kind of error, which include wrong steps before a right final answer. Of classes also
    confusion[true][chosen]."""
    pairs = [(task.final_answer(e.answer), task.final_answer(text)) for e, text in zip(examples, texts)]
    right = [true == chosen for true, chosen in pairs]
    errors = Counter(task.kind_of_error(e.answer, text) for e, text in zip(examples, texts) if text != e.answer)
    of_length = {}  # {length: [whether right]}
    for e, ok in sorted(zip(examples, right), key=lambda pair: pair[0].length):
        of_length.setdefault(str(e.length), []).append(ok)
    low, high = wilson(sum(right), len(right))
    found = {
        "correct": sum(right),
        "n": len(right),
        "low": low,
        "high": high,
        "exact_match": sum(text == e.answer for e, text in zip(examples, texts)),
        "errors": dict(errors.most_common()),
        "by_length": {length: {"correct": sum(ok), "n": len(ok)} for length, ok in of_length.items()},
    }
    if task.classes:
        times = Counter(pairs)
        found["confusion"] = [[times[true, chosen] for chosen in task.classes] for true in task.classes]
    return found


@torch.no_grad()
def rank_choices(network, past, tokenizer, task, encoded, progress=lambda n: None):
    """For each question the index of the class with the highest likelihood as its whole answer.

    Each token of a label makes it less likely. So the label with the likeliest first token is read to its end, behind
    the question's cache, and of the others only those whose first token alone is as likely as that.
    """
    device, chosen = network.wte.weight.device, [0] * len(encoded)
    labels = [tokenizer.encode_task(task.answer_line(a)) for a in task.classes]
    A = max(2, *map(len, labels))  # at least 2: run reads A - 1 tokens of a label
    padded = torch.tensor([label + [-1] * (A - len(label)) for label in labels], device=device)  # (K, A)
    for batch in by_length([len(question) + A for question, _ in encoded], MOST_TOKENS):
        x, left_pad = pad_left([encoded[i][0] for i in batch], device)  # (B, T), (B)
        kv_cache = empty_cache(network, len(batch), x.size(1) + A - 1)
        hidden, _ = network.run(x, past, kv_cache, 0, None, left_pad)  # (B, T, C)
        first = network.logits(hidden[:, -1]).float().log_softmax(-1)[:, padded[:, 0]]  # (B, K)
        whole, bound = torch.full_like(first, -torch.inf), first.amax(1, keepdim=True)  # (B, K), (B, 1)
        for _ in range(2):
            likely = ((first >= bound) & (whole == -torch.inf)).nonzero()
            for rows, k in [some.T for some in likely.split(len(batch)) if len(some)]:  # (N) each
                cache = [(keys[rows], values[rows]) for keys, values in kv_cache]
                empty = None if left_pad is None else left_pad[rows]  # (N)
                read = padded[k, :-1].clamp_min(0)  # (N, A - 1)
                hidden, _ = network.run(read, past, cache, x.size(1), None, empty)  # (N, A - 1, C)
                log_p, rest = network.logits(hidden).float().log_softmax(-1), padded[k, 1:]  # (N, A - 1, vocab_size)
                log_p = log_p.gather(2, rest.clamp_min(0)[..., None])[..., 0]  # (N, A - 1)
                whole[rows, k] = first[rows, k] + log_p.masked_fill(rest < 0, 0).sum(1)
            bound = whole.amax(1, keepdim=True)
        for i, k in zip(batch, whole.argmax(1).tolist()):
            chosen[i] = k
        progress(len(batch))
    return chosen
