"""GPT-2: the network and nothing else. generate.py decodes with it, files/weights.py reads and writes its weights.

Everything that stands before a question reaches it only through the keys and values it leaves in each layer, so
`forward` takes them as `past`, and `prefill` is how anything makes them.
Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".

Shapes: B batch, T new tokens, P past positions, S = P + T, C = n_embd, D = head_dim = C / n_head.
A cache is a list with one (keys, values) pair per layer, each (1 or B, n_kv_head, P, D); batch 1 is shared by all rows.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import kernels


@dataclass
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

    @property
    def n_kv_head(self):
        return self.n_head  # each head of queries has a head of keys and values

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    @property
    def bos_token(self):
        return self.vocab_size - 1  # <|endoftext|>, the last token of GPT-2 and of nano-2, begins a text


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0, rope=None):
        """x (B, T, C) -> y (B, T, C), and the keys and values of these T positions, (B, n_kv_head, T, D) each."""
        q, k, v = self.qkv(x, rope)
        return self.out(self.attend(q, k, v, mask, past, kv_cache, cache_len)), (k, v)

    def qkv(self, x, rope=None):
        """x (B, T, C) -> queries, keys and values, (B, n_head, T, D) each. rope: the Llama family's, None here."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, n_head, D)
        return qkv.permute(2, 0, 3, 1, 4)

    def attend(self, q, k, v, mask, past=None, kv_cache=None, cache_len=0):
        """Attention output of the T new positions, (B, n_head, T, D).

        mask: (T, S) or (B, 1, T, S), see build_mask. past, kv_cache: (keys, values) of this layer. k and v are written
        into kv_cache, which is allocated for a whole text, after its first `cache_len` positions.
        """
        if kv_cache is not None:
            for cached, new in zip(kv_cache, (k, v)):
                cached[:, :, cache_len : cache_len + new.size(2)] = new
            k, v = kv_cache  # whole, since a part of it would be copied; the mask hides what is not written yet
        if not kernels.can_fuse(q, mask, past, kv_cache):
            keys, values = ([k], [v]) if past is None else ([past[0], k], [past[1], v])
            scores = kernels.matmul_parts(q, keys) / math.sqrt(q.size(-1))  # q @ keys.mT / sqrt(D): (B, n_head, T, S)
            weights = (scores + mask.to(q.dtype)).softmax(-1)  # (B, n_head, T, S)
            return kernels.sum_parts(weights, values)  # weights @ values: (B, n_head, T, D)
        return kernels.fused_attention(q, k, v, past)  # the same

    def out(self, y):
        """y (B, n_head, T, D) -> (B, T, C)."""
        return self.c_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, *args):
        """x (B, T, C) -> (B, T, C), and the new keys and values; args are those of Attention."""
        y, new_kv = self.attn(self.ln_1(x), *args)
        x = x + y
        return x + self.mlp(self.ln_2(x)), new_kv


class GPT(nn.Module):
    """The parameters carry the hub's names. The head is tied to `wte` and has no weights of its own."""

    name = "untrained"  # where the weights came from, for the files that depend on them
    checkpoint_activations = False  # see kernels.run_block

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0, f"n_embd {config.n_embd} is no multiple of n_head {config.n_head}"
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.init_weights()

    def init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # each block adds to the stream twice: keep its variance (section 2.3)
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def freeze(self):
        return self.requires_grad_(False)

    def forward(self, tokens, past=None):
        """Tokens (B, T), a cache of P positions or None -> hidden states (B, T, C)."""
        return self.run(tokens, past)[0]

    def run(self, x, past=None, kv_cache=None, cache_len=0, past_pad=None, left_pad=None):
        """The one path through the network: tokens (B, T) or embeddings (B, T, C) -> final hidden states (B, T, C),
        and the new keys and values of each layer.

        past: a cache of P positions. kv_cache: a cache of batch B for a whole text, of which `cache_len` positions are
        written; the T new ones follow. Positions count on from both. past_pad, left_pad: how many positions at the
        beginning of each row's past and of its text are empty, (B) each, where lengths differ.
        """
        if not x.is_floating_point():
            x = self.wte(x)  # (B, T, C)
        T = x.size(1)
        P = past[0][0].size(2) if past else 0
        S = P + (kv_cache[0][0].size(2) if kv_cache else T)
        n, limit = cache_len + T, self.config.block_size  # n: tokens of the text so far
        assert P + n <= limit, f"{P} prompt rows and {n} tokens exceed block_size {limit}: shorten one"
        mask, position = build_mask(x, P, S, cache_len, past_pad, left_pad)
        x, rope = self.add_positions(x, position)
        new_cache = []
        for i, block in enumerate(self.h):
            args = x, mask, past[i] if past else None, kv_cache[i] if kv_cache else None, cache_len, rope
            x, new_kv = kernels.run_block(block, args, self.checkpoint_activations)
            new_cache.append(new_kv)
        return self.final_norm(x), new_cache

    def add_positions(self, x, position):
        """x (B, T, C) plus the embeddings of its positions, (T) or (B, T); and `rope`, which GPT-2 has not: None."""
        return x + self.wpe(position), None

    def final_norm(self, x):
        return self.ln_f(x)

    def prefill(self, x, past=None):
        """Tokens (B, T) or embeddings (B, T, C) -> the cache of their T positions, after `past`, a cache of batch B."""
        cache = self.run(x, past)[1]
        if past:
            cache = [tuple(torch.cat(parts, dim=2) for parts in zip(*pairs)) for pairs in zip(past, cache)]
        return cache

    def head(self):
        """(vocab_size, C): one row for each token that can be written."""
        return self.wte.weight

    def logits(self, hidden):
        """Hidden states (..., C) -> logits (..., vocab_size). Call it at the positions that matter only."""
        return hidden @ self.head().T

    def loss(self, hidden, targets):
        """Mean cross-entropy, in nats, of the targets (N) after hidden states (N, C)."""
        table = self.head()
        if table.requires_grad or table.dtype == torch.float32:
            return F.cross_entropy(self.logits(hidden).float(), targets)
        return kernels.CrossEntropy.apply(hidden, table, targets)  # the same, faster in frozen bfloat16 (docs/speed.md)

    @torch.no_grad()
    def generate(self, tokens, max_new_tokens, past=None, temperature=0.0, top_k=None, seed=0):
        """Continue tokens (B, T) by (B, max_new_tokens): the specification of generate.py, which does the same faster.
        The whole text goes through the network again for each token."""
        rng = torch.Generator(tokens.device).manual_seed(seed)
        text = tokens
        for _ in range(max_new_tokens):
            logits = self.logits(self(text, past)[:, -1])  # (B, vocab_size)
            text = torch.cat([text, next_token(logits, temperature, top_k, rng)], dim=1)
        return text[:, tokens.size(1) :]


def build_mask(x, P, S, cache_len=0, past_pad=None, left_pad=None):
    """A mask for the scores of the T new positions of x (B, T, C), (T, S) or (B, 1, T, S), and the numbers of these
    positions, (T) or (B, T). A batch row "abc" with past_pad 1 and left_pad 1 behind P = 3 past positions:

                   past     text
        position   _ 0 1   _ 2 3 4
               _   _ x x   _ . . .     x  seen: 0 is added
               a   _ x x   _ x . .     .  comes later: -inf
               b   _ x x   _ x x .     _  empty: the lowest finite number, since -inf in all of a row would give NaN
               c   _ x x   _ x x x
    """
    T, start = x.size(1), P + cache_len
    position = torch.arange(start, start + T, device=x.device)  # (T)
    mask = x.new_full((T, S), -torch.inf).triu(start + 1)  # a position sees all before it, and itself
    if past_pad is None and left_pad is None:
        return mask, position
    past_pad, left_pad = (position.new_zeros(1) if pad is None else pad for pad in (past_pad, left_pad))  # (B or 1)
    s = torch.arange(S, device=x.device)
    empty = (s < past_pad[:, None]) | ((s >= P) & (s < P + left_pad[:, None]))  # (B, S)
    lowest = max(torch.finfo(dtype).min for dtype in (x.dtype, torch.bfloat16))  # finite in autocast's bfloat16 as well
    mask = mask.masked_fill(empty[:, None, None] & (mask == 0), lowest)  # (B, 1, T, S)
    return mask, (position - (past_pad + left_pad)[:, None]).clamp_min(0)  # (B, T)


def next_token(logits, temperature, top_k, rng):
    """The next token of each row, (B, 1), from logits (B, vocab_size): the likeliest at temperature 0, else one that is
    drawn from the `top_k` likeliest, or from all where top_k is None."""
    assert top_k is None or top_k > 0, f"top_k {top_k}: take at least 1, or None for all tokens"
    if temperature == 0:
        return logits.max(-1, keepdim=True).indices  # argmax takes three times as long in bfloat16 on a CPU
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)
