"""GPT-2: the network and nothing else. generate.py decodes with it, checkpoint.py reads and writes its weights.

Everything that stands before a question reaches it only through the keys and values it leaves in each layer, so
`forward` takes them as `past`, and `prefill` is how anything makes them.
Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".

Shapes: B batch, T new tokens, P cached positions, S = P + T, C = n_embd, D = head_dim = C / n_head.
A cache is a list with one (keys, values) pair per layer, each (B or 1, n_head, P, D).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

    @property
    def n_kv_head(self):
        return self.n_head  # every head has keys and values of its own

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    @property
    def bos_token(self):
        return self.vocab_size - 1  # <|endoftext|>, the last of GPT-2's tokens and nano's; a text begins behind it


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def qkv(self, x):
        """x (B, T, C) -> queries, keys and values, (B, n_head, T, D) each."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, n_head, D)
        return qkv.permute(2, 0, 3, 1, 4)

    def attend(self, q, k, v, mask, past=None, kv_cache=None, cache_len=0):
        """What q, k, v of T positions read, (B, n_head, T, D).

        A position attends to what stands in `past`, then to the first `cache_len` positions of `kv_cache`, then to
        the T new ones up to itself. past: (keys, values), (1 or B, n_head, P, D) each. kv_cache: the same of batch B,
        allocated for a whole text, into which the T new ones are written. mask: added to the scores, (T, S) or
        (B, 1, T, S), -inf where a position may not look.
        """
        if past is None and kv_cache is None and (q.is_cuda or q.dtype == torch.float32):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if q.is_cuda and kv_cache is None and mask.dim() == 2 and past[0].size(2):  # no empty positions
            return SplitAttention.apply(q, *past, k, v)
        if kv_cache is not None:
            T = q.size(2)
            kv_cache[0][:, :, cache_len : cache_len + T] = k
            kv_cache[1][:, :, cache_len : cache_len + T] = v
            k, v = kv_cache  # whole, since a part of it would be copied; the mask hides what is not written yet
        pairs = [(k, v)] if past is None else [past, (k, v)]
        scores = torch.cat([matmul_shared(q, keys.mT) for keys, _ in pairs], dim=-1)  # (B, n_head, T, S)
        mask = mask[..., -scores.size(-1) :].to(q.dtype)  # a layer whose past is shorter sees the end of the mask
        weights = (scores / math.sqrt(q.size(-1)) + mask).softmax(-1)
        parts = weights.split([values.size(2) for _, values in pairs], -1)
        return sum(matmul_shared(w, values) for w, (_, values) in zip(parts, pairs))

    def out(self, y):
        """y (B, n_head, T, D) -> (B, T, C)."""
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0):
        """x (B, T, C) -> y (B, T, C), and the keys and values of these T positions, (B, n_head, T, D) each."""
        q, k, v = self.qkv(x)
        return self.out(self.attend(q, k, v, mask, past, kv_cache, cache_len)), (k, v)


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
    """The parameters carry the hub's names; the head is tied to `wte` and has none of its own."""

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.config = config
        self.name = "untrained"  # where the weights came from, for the files that depend on them
        self.checkpoint_activations = False  # see run_block
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # each block adds to the stream twice: keep its variance (section 2.3)
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def run(self, x, past=None, kv_cache=None, cache_len=0, past_pad=None, left_pad=None):
        """The one path through the network: tokens (B, T) or embeddings (B, T, C) -> final hidden states (B, T, C),
        and the new keys and values of each layer.

        past: a cache of P positions, batch 1 or B. kv_cache: a cache of batch B for a whole text, of which `cache_len`
        positions are written; the T new ones follow. Positions count on from both. For rows of different lengths,
        past_pad (n_layer, B) says how many positions at the beginning of each row's past are empty, and left_pad (B)
        how many at the beginning of its text. Raises ValueError past block_size.
        """
        if not x.is_floating_point():
            x = self.wte(x)  # (B, T, C)
        P, T = past[-1][0].size(2) if past else 0, x.size(1)  # the lower layers may have less of a past
        start = P + cache_len
        if start + T > self.config.block_size:
            raise ValueError(
                f"{start} prompt rows and {T} tokens exceed block_size {self.config.block_size}: shorten one"
            )
        S = P + (kv_cache[0][0].size(2) if kv_cache else T)
        position = torch.arange(start, start + T, device=x.device)  # (T)
        mask = x.new_full((T, S), -torch.inf).triu(start + 1)  # a position sees all before it, and itself
        masks = [mask] * len(self.h)
        if past_pad is not None or left_pad is not None:
            past_pad = torch.zeros(len(self.h), 1, dtype=torch.long, device=x.device) if past_pad is None else past_pad
            left_pad = torch.zeros(1, dtype=torch.long, device=x.device) if left_pad is None else left_pad
            position = (position - (past_pad.amin(0) + left_pad)[:, None]).clamp_min(0)  # (B, T)
            s = torch.arange(S, device=x.device)
            empty = (s < past_pad[:, :, None]) | ((s >= P) & (s < P + left_pad[:, None]))  # (n_layer, B, S)
            # not -inf: an empty position, which sees empty ones alone, would become NaN
            masks = mask.masked_fill(empty[:, :, None, None] & (mask == 0), torch.finfo(x.dtype).min)
        x = x + self.wpe(position)
        new_cache = []
        for i, block in enumerate(self.h):  # masks[i]: (T, S) or (B, 1, T, S)
            args = x, masks[i], past[i] if past else None, kv_cache[i] if kv_cache else None, cache_len
            x, new_kv = run_block(self, block, *args)
            new_cache.append(new_kv)
        return self.ln_f(x), new_cache

    def forward(self, tokens, past=None):
        """Tokens (B, T), cache of P positions or None -> hidden states (B, T, C)."""
        return self.run(tokens, past)[0]

    def prefill(self, x, past=None):
        """Tokens (B, T) or embeddings (B, T, C) -> the cache of their T positions, behind `past` where given."""
        cache = self.run(x, past)[1]
        if past:
            B = x.size(0)
            cache = [
                tuple(torch.cat([p.expand(B, -1, -1, -1), o], dim=2) for p, o in zip(*pair))
                for pair in zip(past, cache)
            ]
        return cache

    def head(self):
        """(vocab_size, C): a row for each token that can be written, which are those of the embedding table."""
        return self.wte.weight

    def logits(self, hidden):
        """Hidden states (..., C) -> logits (..., vocab_size). Call it at the positions that matter only."""
        return hidden @ self.head().T

    def loss(self, hidden, targets):
        """Mean cross-entropy, in nats, of the targets (N) after hidden states (N, C)."""
        table = self.head()
        if table.requires_grad or table.dtype == torch.float32:
            return F.cross_entropy(self.logits(hidden).float(), targets)
        return CrossEntropy.apply(hidden, table, targets)  # the same for frozen bfloat16, faster there (docs/speed.md)

    @torch.no_grad()
    def generate(self, tokens, max_new_tokens, past=None, temperature=0.0, top_k=None, seed=0):
        """Continue tokens (B, T) behind a prompt's cache; returns the new tokens, (B, max_new_tokens).

        The whole text goes through the network again for each token. This is the specification of generate.py,
        which keeps keys and values and does the same many times faster.
        """
        rng = torch.Generator(tokens.device).manual_seed(seed)
        text = tokens
        for _ in range(max_new_tokens):
            logits = self.logits(self(text, past)[:, -1])  # (B, vocab_size)
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)  # (B, 1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)
            text = torch.cat([text, token], dim=1)
        return text[:, tokens.size(1) :]

    def freeze(self):
        return self.requires_grad_(False)


# ---------------------------------------------------------------- fast paths, each with the slow line it equals


def matmul_shared(a, b):
    """a @ b, for a (B, n_head, T, X) and b (B or 1, n_head, X, Y): a b that all rows share is multiplied once."""
    return by_row(by_key_head(a, b) @ b, a)  # (B, n_head, T, Y)


def run_block(network, block, *args):
    """block(*args). With `network.checkpoint_activations`, what is inside the block is not kept for the backward pass,
    which computes it again: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost", section 3."""
    if not network.checkpoint_activations:
        return block(*args)
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


class SplitAttention(torch.autograd.Function):
    """What T new positions read from a past and from each other, without a matrix of scores: q (B, n_head, T, D), keys
    and values of the past (1 or B, n_kv_head, P, D) each, new ones k, v (B, n_head, T, D) -> (B, n_head, T, D).

    Two fused kernels read the two parts, and their log-sum-exp says how much of the whole each is: Juravsky et al.
    (2024), "Hydragen" (2402.05099), section 3.1. A past that all rows share is read by all of them at once. A kernel's
    backward pass needs the output and log-sum-exp of the whole attention alone, so that each part gets those.
    """

    @staticmethod
    def forward(ctx, q, past_k, past_v, k, v):
        past_y, past_lse = fused(by_key_head(q, past_k), past_k, past_v, is_causal=False)
        past_y, past_lse = by_row(past_y, q), by_row(past_lse, q)  # (B, n_head, T, D), (B, n_head, T, 1)
        own_y, own_lse = fused(q, k, v, is_causal=True)
        lse = torch.logaddexp(past_lse, own_lse)
        y = (past_y * (past_lse - lse).exp() + own_y * (own_lse - lse).exp()).to(q.dtype)
        ctx.save_for_backward(q, past_k, past_v, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, past_k, past_v, k, v, y, lse = ctx.saved_tensors
        own_q, own_k, own_v = fused_backward(grad, q, k, v, y, lse, is_causal=True)
        grad, past_q, y, lse = (by_key_head(x, past_k) for x in (grad, q, y, lse))
        past_q, past_k, past_v = fused_backward(grad, past_q, past_k, past_v, y, lse, is_causal=False)
        return by_row(past_q, q) + own_q, past_k, past_v, own_k, own_v


def by_key_head(x, keys):
    """x (B, n_head, T, X) -> (1 or B, n_kv_head, N, X): below each other the N rows that read the same keys."""
    (B, n_head, T, X), n_kv_head = x.shape, keys.size(1)
    N = n_head // n_kv_head * T  # sizes are named, since a past of no positions leaves nothing to infer them from
    x = x.reshape(B, n_kv_head, N, X)
    return x if len(keys) == B else x.transpose(0, 1).reshape(1, n_kv_head, B * N, X)


def by_row(y, q):
    """The way back: y (1 or B, n_kv_head, N, X) -> (B, n_head, T, X), B, n_head and T as in q."""
    (B, n_head, T, _), (_, n_kv_head, N, X) = q.shape, y.shape
    if len(y) != B:
        y = y.view(n_kv_head, B, N // B, X).transpose(0, 1)
    return y.reshape(B, n_head, T, X)


def fused(q, k, v, is_causal):
    """PyTorch's fused attention, and of each row of scores the log-sum-exp, (B, n_head, T, 1) in float32."""
    if q.is_cuda:
        y, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, is_causal)
        return y, lse[:, :, : q.size(2), None]  # it comes padded to a multiple of 32
    y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
    return y, lse[..., None]


def fused_backward(grad, q, k, v, y, lse, is_causal):
    """The gradients of q, k and v, where y and lse may be those of an attention that reads more than k and v."""
    if q.is_cuda:
        lse, seed = F.pad(lse[..., 0], (0, -q.size(2) % 32), value=torch.inf), torch.zeros((), dtype=torch.long)
        args = grad, q, k, v, None, y, lse.contiguous(), seed, seed, 0.0, [True, True, True, False], is_causal
        return torch.ops.aten._scaled_dot_product_efficient_attention_backward(*args)[:3]
    args = grad, q, k, v, y, lse[..., 0], 0.0, is_causal
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*args)


class CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of frozen logits: hidden (N, C), table (vocab_size, C), targets (N) -> ().

    The gradient is made beside the loss, some rows at a time, in float32: all logits of 50,257 words at
    once, and copies of them, would take as long as their products and most of the memory of a step.
    """

    @staticmethod
    def forward(ctx, hidden, table, targets):
        n = max(1, 2**22 // len(table))  # rows whose logits stay in a CPU's cache
        grad, loss = torch.empty_like(hidden), 0.0
        for h, t, g in zip(hidden.split(n), targets[:, None].split(n), grad.split(n)):
            p = (h @ table.T).softmax(-1, dtype=torch.float32)  # (n, vocab_size)
            right = p.gather(1, t)  # (n, 1)
            loss -= right.clamp_min(torch.finfo().tiny).log().sum() / len(hidden)
            g.copy_(p.scatter_(1, t, right - 1).div_(len(hidden)).to(table.dtype) @ table)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None
