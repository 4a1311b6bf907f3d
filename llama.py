"""The Llama family: what differs from GPT-2 and nothing else. The rest is inherited from model.py.

Llama 2 and 3, SmolLM2, TinyLlama, Mistral within its window, Qwen2.5 (biases on q, k, v), Qwen3 (norms on q and k).
Touvron et al. (2023), "Llama 2"; Grattafiori et al. (2024), "The Llama 3 Herd of Models". Five things differ: RMSNorm,
rotary positions, fewer heads for keys and values than for queries, SwiGLU, a head with its own table.
The keys in a cache are rotated already.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model


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
    bos_token: int = 0  # stands in front of every text
    eos_token: int = 0  # ends a text


def rotation(config, position):
    """Positions (T) or (B, T) -> cosines and sines of their angles, (1 or B, 1, T, D / 2) each.

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


class Attention(model.Attention):
    """Grouped-query attention: Ainslie et al. (2023), "GQA", section 2.2."""

    def __init__(self, config):
        nn.Module.__init__(self)  # GPT-2's layers are others
        C, D = config.n_embd, config.head_dim
        self.q_proj = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=False)
        self.q_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()
        self.head_dim = D

    def qkv(self, x, rope=None):
        """x (B, T, C) -> queries (B, n_head, T, D), keys and values (B, n_kv_head, T, D) each. rope: what `rotation`
        returns for their positions; without it they stand at position 0."""
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))  # (B, heads, T, D) each
        return (q, k, v) if rope is None else (rotate(q, *rope), rotate(k, *rope), v)

    def out(self, y):
        return self.o_proj(y.transpose(1, 2).flatten(2))


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


class Llama(model.GPT):
    """The parameters carry the hub's names within a block; `wte`, `h` and `attn` are called as in model.py."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.config = config
        assert config.n_head % config.n_kv_head == 0, f"{config.n_head=} is no multiple of {config.n_kv_head=}"
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    def add_positions(self, x, position):
        return x, rotation(self.config, position)  # the embeddings hold no positions

    def final_norm(self, x):
        return self.norm(x)

    def head(self):
        return self.wte.weight if self.lm_head is None else self.lm_head.weight
