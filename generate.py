"""Cached decoding of a batch: the one decoder of the project. Evaluation, votes and sample.py call it.

`GPT.generate` is its specification: the same text, one question at a time and without a cache.
"""

import torch
import torch.nn.functional as F

from model import next_token


@torch.no_grad()
def generate(
    network, questions, max_new_tokens, past=None, past_pad=None, stop=None, temperature=0.0, top_k=None, seed=0
):
    """Continue a batch of questions and return the new tokens of each, a list of B lists of token numbers.

    questions: B lists of token numbers, at least one number each; their lengths may differ.
    past: the KV cache that stands before the questions. Its batch is 1 (one prompt for all) or B (a prompt for each).
    past_pad: (B), how many positions at the beginning of each row's past are empty; see stack_caches.
    stop: (1 or B, E) tokens, -1 for none. A row ends with the first of them that it writes, or after max_new_tokens.
    temperature: 0 takes the likeliest token; above it tokens are sampled from the `top_k` likeliest, or from all.
    """
    device, B = network.wte.weight.device, len(questions)
    x, left_pad = pad_left(questions, device)  # (B, T), (B)
    kv_cache = empty_cache(network, B, x.size(1) + max_new_tokens)
    cache_len = 0
    rng = torch.Generator(device).manual_seed(seed)
    stop = torch.as_tensor([[-1]] if stop is None else stop, device=device).expand(B, -1)  # (B, E)
    out = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device)
    lengths = torch.full((B,), max_new_tokens, device=device)
    rows = torch.arange(B, device=device)  # the question of each row, since finished rows leave the batch
    done = torch.zeros(B, dtype=torch.bool, device=device)
    for n in range(max_new_tokens):
        hidden, _ = network.run(x, past, kv_cache, cache_len, past_pad, left_pad)  # (B, T, C), then (B, 1, C)
        cache_len += x.size(1)
        x = next_token(network.logits(hidden[:, -1]), temperature, top_k, rng)  # (B, 1)
        out[rows, n] = x[:, 0]
        ends = ~done & (x == stop).any(1)
        lengths[rows[ends]] = n + 1
        done = done | ends
        if done.all():
            break
        if 2 * done.sum() >= len(done):  # finished rows leave the batch when they are half of it
            past, past_pad, kv_cache, left_pad = drop_finished(done, past, past_pad, kv_cache, left_pad)
            rows, x, stop, done = (y[~done] for y in (rows, x, stop, done))
    # what a row wrote after its stop token, before it left the batch, is cut off
    return [row[:length] for row, length in zip(out.tolist(), lengths.tolist())]


def pad_left(questions, device):
    """Questions of any lengths -> tokens (B, T) that end at the same column, so that the last column predicts the next
    token of every row, and left_pad (B), or None where all have the same length, which is faster."""
    T = max(map(len, questions))
    tokens = torch.tensor([[0] * (T - len(q)) + q for q in questions], device=device)
    left_pad = torch.tensor([T - len(q) for q in questions], device=device)
    return tokens, (left_pad if min(map(len, questions)) < T else None)  # known without waiting for a GPU


def drop_finished(done, past, past_pad, kv_cache, left_pad):
    """The caches of a batch, and how many positions are empty in them, without the rows that are `done` (B)."""
    kv_cache = [(keys[~done], values[~done]) for keys, values in kv_cache]
    if past and past[0][0].size(0) == len(done):  # a prompt for each row, not one for all
        past = [(keys[~done], values[~done]) for keys, values in past]
    past_pad, left_pad = (None if pad is None else pad[~done] for pad in (past_pad, left_pad))
    return past, past_pad, kv_cache, left_pad


def stack_caches(caches):
    """Caches of batch 1 and different lengths -> one cache of their batch, and past_pad (B): how many positions each
    leaves empty at its beginning."""
    longest = max(cache[0][0].size(2) for cache in caches)
    past_pad = torch.tensor([longest - cache[0][0].size(2) for cache in caches])
    stacked = []
    for pairs in zip(*caches):  # the (keys, values) of one layer, a pair for each cache
        padded = [[F.pad(x, (0, 0, longest - x.size(2), 0)) for x in xs] for xs in zip(*pairs)]
        stacked.append(tuple(torch.cat(xs) for xs in padded))  # (B, n_kv_head, longest, D) each
    return stacked, past_pad.to(caches[0][0][0].device)


def empty_cache(network, B=1, S=0):
    """A cache of S positions that nothing is written in. One of no positions stands for no prompt."""
    c, weight = network.config, network.wte.weight
    shape = B, c.n_kv_head, S, c.head_dim
    return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(c.n_layer)]
