"""The Llama family: the network and nothing else. It has the methods of model.py's GPT, with the same arguments.

Llama 2 and 3, SmolLM2, TinyLlama, Mistral within its window, Qwen2.5 (biases on q, k, v), Qwen3 (norms on q and k).
Touvron et al. (2023), "Llama 2"; Grattafiori et al. (2024), "The Llama 3 Herd of Models". Five things differ from
GPT-2: RMSNorm, rotary positions, fewer heads for keys and values than for queries, SwiGLU, a head with its own table.

Shapes: B batch, T new tokens, P cached positions, S = P + T, C = n_embd, D = head_dim, G = n_head / n_kv_head.
A cache is a list with one (keys, values) pair per layer, each (B or 1, n_kv_head, P, D). Its keys are rotated already.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import CrossEntropy, SplitAttention, matmul_shared, run_block  # matmul_shared(a, b) equals a @ b


@dataclass
class LlamaConfig:  # the defaults are SmolLM2-135M's
    vocab_size: int = 49152
    block_size: int = 8192  # the longest text; no tensor has this size
    n_layer: int = 30
    n_head: int = 9
    n_kv_head: int = 3  # G = 3 heads of queries share one head of keys and values
    n_embd: int = 576
    head_dim: int = 64
    n_inner: int = 1536  # the width of the MLP
    rope_theta: float = 100000.0
    rope_scaling: tuple = ()  # Llama 3.1's (factor, low_freq_factor, high_freq_factor, original block size)
    norm_eps: float = 1e-5
    tied: bool = True  # whether the head is the embedding table
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    bos_token: int = 0  # what a text begins behind, and what ends it
    eos_token: int = 0


def rotation(config, position):
    """Positions (T) or (B, T) -> cosines and sines of the angles by which they turn, (1 or B, 1, T, D / 2) each.

    Each pair of numbers of a query or key turns by an angle for each position, so that the product of the two depends
    on their distance alone: Su et al. (2021), "RoFormer", section 3.2.
    """
    pairs = torch.arange(0, config.head_dim, 2, device=position.device) / config.head_dim
    angle = 1 / config.rope_theta**pairs  # (D / 2), radians a position
    if config.rope_scaling:  # for longer texts than in pretraining, pairs that turn slowly turn more slowly still
        factor, low, high, original = config.rope_scaling
        turns = original * angle / (2 * math.pi)  # (D / 2), in the longest text of pretraining
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        angle = angle * (kept + (1 - kept) / factor)
    angle = position[..., None, :, None] * angle  # (1 or B, 1, T, D / 2), the 1 for all heads
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """x (B, heads, T, D) turned. A pair is a number of the first half and its counterpart in the second."""
    a, b = x.chunk(2, -1)  # (B, heads, T, D / 2) each
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Grouped-query attention: Ainslie et al. (2023), "GQA", section 2.2."""

    def __init__(self, config):
        super().__init__()
        C, D = config.n_embd, config.head_dim
        self.q_proj = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=False)
        self.q_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()
        self.head_dim = D

    def qkv(self, x, turn=None):
        """x (B, T, C) -> queries (B, n_head, T, D), keys and values (B, n_kv_head, T, D) each.

        turn: what `rotation` makes of their positions; without it they stand at position 0.
        """
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))  # (B, heads, T, D) each
        return (q, k, v) if turn is None else (rotate(q, *turn), rotate(k, *turn), v)

    def attend(self, q, k, v, mask, past=None, kv_cache=None, cache_len=0):
        """What the T new positions read, (B, n_head, T, D): from `past`, from the first `cache_len` positions of
        `kv_cache`, into which their own keys and values are written behind those, and from themselves.

        past, kv_cache: this layer's (keys, values). mask: (T, S) or (B, 1, T, S), -inf where a position may not look.
        """
        B, n_head, T, D = q.shape
        if past is None and kv_cache is None and (q.is_cuda or q.dtype == torch.float32):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if q.is_cuda and kv_cache is None and mask.dim() == 2 and past[0].size(2):  # no empty positions
            k, v = (x.repeat_interleave(n_head // x.size(1), 1) for x in (k, v))  # (B, n_head, T, D) each
            return SplitAttention.apply(q, *past, k, v)
        if kv_cache is not None:
            kv_cache[0][:, :, cache_len : cache_len + T] = k
            kv_cache[1][:, :, cache_len : cache_len + T] = v
            k, v = kv_cache  # whole, since a part of it would be copied; the mask hides what is not written yet
        pairs = [(k, v)] if past is None else [past, (k, v)]
        grouped = B, k.size(1), n_head // k.size(1) * T, -1  # heads that share keys stand below each other
        q = q.reshape(grouped)  # (B, n_kv_head, G * T, D)
        scores = torch.cat([matmul_shared(q, keys.mT) for keys, _ in pairs], dim=-1)  # (B, n_kv_head, G * T, S)
        mask = mask[..., -scores.size(-1) :].to(q.dtype)  # a layer whose past is shorter sees the end of the mask
        weights = (scores.view(B, n_head, T, -1) / math.sqrt(D) + mask).softmax(-1).view(grouped)
        parts = weights.split([values.size(2) for _, values in pairs], -1)
        y = sum(matmul_shared(w, values) for w, (_, values) in zip(parts, pairs))  # (B, n_kv_head, G * T, D)
        return y.reshape(B, n_head, T, D)

    def out(self, y):
        """y (B, n_head, T, D) -> (B, T, C)."""
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0, turn=None):
        """x (B, T, C) -> y (B, T, C), and the keys and values of these T positions, (B, n_kv_head, T, D) each."""
        q, k, v = self.qkv(x, turn)
        return self.out(self.attend(q, k, v, mask, past, kv_cache, cache_len)), (k, v)


class MLP(nn.Module):
    """SwiGLU: Shazeer (2020), "GLU Variants Improve Transformer"."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *args):
        """x (B, T, C) -> (B, T, C), and the new keys and values; args are those of Attention."""
        y, new_kv = self.attn(self.input_layernorm(x), *args)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), new_kv


class Llama(nn.Module):
    """The parameters carry the hub's names within a block; `wte`, `h` and `attn` are called as in model.py."""

    def __init__(self, config):
        super().__init__()
        if config.n_head % config.n_kv_head:
            raise ValueError(f"n_head {config.n_head} is not a multiple of n_kv_head {config.n_kv_head}")
        self.config = config
        self.name, self.checkpoint_activations = "untrained", False  # where the weights came from; see run_block
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def run(self, x, past=None, kv_cache=None, cache_len=0, past_pad=None, left_pad=None):
        """The one path through the network: tokens (B, T) or embeddings (B, T, C) -> final hidden states (B, T, C),
        and the new keys and values of each layer.

        past: a cache of P positions, batch 1 or B. kv_cache: of batch B for a whole text, of which cache_len positions
        are written; the T new ones follow. Positions count on from both. past_pad (n_layer, B) and left_pad (B): how
        many positions are empty at the beginning of each row's past, and of its text. ValueError past block_size.
        """
        if not x.is_floating_point():
            x = self.wte(x)  # (B, T, C)
        P, T = past[-1][0].size(2) if past else 0, x.size(1)  # the lower layers may have less of a past
        start = P + cache_len
        if start + T > self.config.block_size:
            raise ValueError(f"{start} rows and {T} tokens exceed block_size {self.config.block_size}: shorten one")
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
        turn = rotation(self.config, position)
        new_cache = []
        for i, block in enumerate(self.h):  # masks[i]: (T, S) or (B, 1, T, S)
            own = past[i] if past else None, kv_cache[i] if kv_cache else None
            x, new_kv = run_block(self, block, x, masks[i], *own, cache_len, turn)
            new_cache.append(new_kv)
        return self.norm(x), new_cache

    def forward(self, tokens, past=None):
        """Tokens (B, T), cache of P positions or None -> hidden states (B, T, C)."""
        return self.run(tokens, past)[0]

    def prefill(self, x, past=None):
        """Tokens (B, T) or embeddings (B, T, C) -> the cache of their T positions, behind `past` where given."""
        cache = self.run(x, past)[1]
        if past:
            both = [zip(*pair) for pair in zip(past, cache)]  # in each layer: both keys, both values
            cache = [tuple(torch.cat([p.expand(len(x), -1, -1, -1), o], dim=2) for p, o in pairs) for pairs in both]
        return cache

    def head(self):
        """(vocab_size, C): a row for each token that can be written."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

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
        """Continue tokens (B, T) behind a prompt's cache by (B, max_new_tokens): the specification of generate.py."""
        rng = torch.Generator(tokens.device).manual_seed(seed)
        text = tokens
        for _ in range(max_new_tokens):
            logits = self.logits(self(text, past)[:, -1])  # (B, vocab_size)
            if top_k:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)  # (B, 1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)
            text = torch.cat([text, token], dim=1)
        return text[:, tokens.size(1) :]

    def freeze(self):
        return self.requires_grad_(False)
