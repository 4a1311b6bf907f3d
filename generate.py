"""Cached decoding of a batch: the one decoder of the project. Evaluation, votes and sample.py call it.

`generate` in model.py and llama.py is its specification: the same text, one question at a time and without a cache.
"""

import torch
import torch.nn.functional as F


@torch.no_grad()
def generate(
    network,
    questions,
    max_new_tokens,
    past=None,
    past_pad=None,
    stop=None,
    temperature=0.0,
    top_k=None,
    seed=0,
):
    """Continue a batch of questions and return the new tokens of each, a list of B lists of token numbers.

    questions: B lists of token numbers, at least one number each; their lengths may differ.
    past: the KV cache that stands before the questions. Its batch is 1 (one prompt for all) or B (a prompt for each).
    past_pad: (n_layer, B), how many positions at the beginning of each row's past are empty. `stack_caches` makes it.
    stop: a token number, or (B) of them. A row ends with its stop token; without one it gets max_new_tokens.
    temperature: 0 takes the likeliest token; above it tokens are sampled from the `top_k` likeliest, or from all.

    Raises ValueError where the prompt, the question and the new tokens exceed block_size.
    """
    c, weight = network.config, network.wte.weight
    device, B, T = weight.device, len(questions), max(map(len, questions))
    # questions end at the same column, so that the next token of every row is in the last one
    tokens = torch.tensor([[0] * (T - len(q)) + q for q in questions], device=device)  # (B, T)
    # (B), or None where all questions have the same length, which is faster
    left_pad = torch.tensor([T - len(q) for q in questions], device=device) if min(map(len, questions)) < T else None
    # one cache for the whole length, so that no step copies what came before
    shape = (B, c.n_kv_head, T + max_new_tokens, c.head_dim)
    kv_cache = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(c.n_layer)]
    rng = torch.Generator(device).manual_seed(seed)
    rows, done = torch.arange(B, device=device), torch.zeros(B, dtype=torch.bool, device=device)
    stop = torch.as_tensor(-1 if stop is None else stop, device=device).expand(B)  # no token has the number -1
    ends, out = stop.tolist(), stop[:, None].repeat(1, max_new_tokens)  # (B, max_new_tokens)
    x, cache_len = tokens, 0
    for n in range(max_new_tokens):
        hidden, _ = network.run(x, past, kv_cache, cache_len, past_pad, left_pad)
        cache_len += x.size(1)
        x = next_token(network.logits(hidden[:, -1]), temperature, top_k, rng)  # (B, 1)
        x = torch.where(done[:, None], stop[:, None], x)
        done = done | (x[:, 0] == stop)
        out[rows, n] = x[:, 0]
        if done.all():
            break
        if 2 * done.sum() >= len(done):  # finished rows leave the batch when they are half of it
            going = ~done
            kv_cache = [(keys[going], values[going]) for keys, values in kv_cache]
            if past and past[0][0].size(0) == len(going):
                past = [(keys[going], values[going]) for keys, values in past]
            past_pad = None if past_pad is None else past_pad[:, going]
            left_pad = None if left_pad is None else left_pad[going]
            rows, x, done, stop = rows[going], x[going], done[going], stop[going]
    # a row that ended early is filled up with its stop token: cut it behind the first
    return [row[: row.index(end) + 1] if end in row else row for row, end in zip(out.tolist(), ends)]


def next_token(logits, temperature, top_k, rng):
    """The next token of each row, (B, 1), from logits (B, vocab_size)."""
    if temperature == 0:
        return logits.max(-1, keepdim=True).indices  # argmax takes three times as long in bfloat16 on a CPU
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)


def stack_caches(caches):
    """Caches of batch 1 and different lengths -> one cache of their batch, and past_pad (n_layer, B): how many
    positions each leaves empty at its beginning, in each layer (a prefix may stand in the upper layers only)."""
    longest = max(keys.size(2) for cache in caches for keys, _ in cache)
    past_pad = torch.tensor([[longest - keys.size(2) for keys, _ in cache] for cache in caches]).T
    stacked = []
    for pairs in zip(*caches):  # the (keys, values) of one layer, a pair for each cache
        keys, values = zip(*pairs)
        padded = [[F.pad(x, (0, 0, longest - x.size(2), 0)) for x in xs] for xs in (keys, values)]
        stacked.append(tuple(torch.cat(xs) for xs in padded))  # (B, n_kv_head, longest, D) each
    return stacked, past_pad.to(caches[0][0][0].device)


def empty_cache(network):
    """The cache of no positions, which stands before a question where there is no prompt."""
    c, weight = network.config, network.wte.weight
    return [(weight.new_zeros(1, c.n_kv_head, 0, c.head_dim),) * 2 for _ in range(c.n_layer)]
