"""GPT-2 in one file: the model, its KV cache, generation, and its weights on disk.

Everything that stands before a question reaches it only through the keys and values it leaves
in each layer, so `forward` takes them as `past`, and `prefill` is how anything makes them.
Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".

Shapes: B batch, T new tokens, P cached positions, C = n_embd, D = head_dim = C / n_head.
A cache is a list with one (keys, values) pair per layer, each (B or 1, n_head, P, D).
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0):
        """x (B, T, C) -> y (B, T, C), and the keys and values of these T positions, (B, n_head, T, D) each.

        A position attends to what stands in `past`, then to the first `cache_len` positions of `kv_cache`, then to
        the T new ones up to itself. past: (keys, values), (1 or B, n_head, P, D) each. kv_cache: the same of batch B,
        allocated for a whole text, into which the T new ones are written. mask: added to the scores, (T, S) or
        (B, 1, T, S), -inf where a position may not look.
        """
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, n_head, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, n_head, T, D) each
        new_kv = k, v
        if past is None and kv_cache is None and (q.is_cuda or q.dtype == torch.float32):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, n_head, T, D)
        else:
            if kv_cache is not None:
                kv_cache[0][:, :, cache_len : cache_len + T] = k
                kv_cache[1][:, :, cache_len : cache_len + T] = v
                k, v = kv_cache  # whole, since a part of it would be copied; the mask hides what is not written yet
            pairs = [(k, v)] if past is None else [past, (k, v)]
            scores = torch.cat([matmul_shared(q, keys.mT) for keys, _ in pairs], dim=-1)  # (B, n_head, T, S)
            mask = mask[..., -scores.size(-1) :].to(q.dtype)  # a layer whose past is shorter sees the end of the mask
            weights = (scores / math.sqrt(q.size(-1)) + mask).softmax(-1)
            parts = weights.split([values.size(2) for _, values in pairs], -1)
            y = sum(matmul_shared(w, values) for w, (_, values) in zip(parts, pairs))  # (B, n_head, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C)), new_kv


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
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, p in self.named_parameters():
            if name.endswith(
                "c_proj.weight"
            ):  # each block adds to the stream twice: keep its variance at 1 (GPT-2, section 2.3)
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        # positions start as sinusoids (Vaswani et al. 2017, section 3.5) of the same size as the random rows of GPT-2:
        # "one to the left" is then the same turn everywhere, and training need not find it anew at each position
        angle = torch.arange(config.block_size)[:, None] / 10000 ** (torch.arange(0, config.n_embd, 2) / config.n_embd)
        with torch.no_grad():
            self.wpe.weight.copy_(
                torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, : config.n_embd] * 0.02 * 2**0.5
            )

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
            x, new_kv = block(x, masks[i], past[i] if past else None, kv_cache[i] if kv_cache else None, cache_len)
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

    def logits(self, hidden):
        """Hidden states (..., C) -> logits (..., vocab_size). Call it at the positions that matter only."""
        return hidden @ self.wte.weight.T

    def loss(self, hidden, targets):
        """Mean cross-entropy, in nats, of the targets (N) after hidden states (N, C)."""
        if self.wte.weight.requires_grad:
            return F.cross_entropy(self.logits(hidden).float(), targets)
        return CrossEntropy.apply(hidden, self.wte.weight, targets)

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

    def fingerprint(self):
        """Sixteen hex digits of the weights, the same in float32 and bfloat16."""
        digest = hashlib.sha256()
        for name, p in sorted(self.named_parameters()):
            digest.update(name.encode())
            digest.update(p.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy())
        return digest.hexdigest()[:16]

    def freeze(self):
        return self.requires_grad_(False)

    def save(self, folder, dtype=torch.float32):
        """Write config.json and model.safetensors in the hub's GPT-2 layout, which transformers reads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: (p.T if transposed(n) else p).to(dtype) for n, p in self.named_parameters()}
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        c = self.config
        write_json(
            folder / "config.json",
            {
                "model_type": "gpt2",
                "architectures": ["GPT2LMHeadModel"],
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "n_positions": c.block_size,
                "vocab_size": c.vocab_size,
                "n_layer": c.n_layer,
                "n_head": c.n_head,
                "n_embd": c.n_embd,
            },
        )

    @classmethod
    def load(cls, source, device="cpu", dtype=torch.float32):
        """Read a GPT-2 checkpoint: nano, a name of HUB, a folder as the hub and transformers write it,
        or one .safetensors file. `model.folder` is where its tokenizer would lie.

        Tensors are read one by one, the largest first, and cast at once: what is held in memory never
        exceeds the loaded model by more than one small tensor. Raises ValueError that names what is
        missing, broken, wrong-shaped or left over.
        """
        config_file, index = find(source)
        config = read_config(config_file, index)
        with torch.device("meta"):
            model = cls(config)
        wanted = dict(model.named_parameters())
        tensors, head = {}, None
        for key, (file, shape) in sorted(index.items(), key=lambda item: -math.prod(item[1][1])):
            name = key.removeprefix("transformer.")
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # the causal mask, which old checkpoints store
            if name not in wanted and name != "lm_head.weight":
                raise ValueError(f"{file} holds {key!r}, which GPT-2 does not have: it is another model")
            with safe_open(file, framework="pt") as opened:  # memory-mapped, and unmapped again before the next
                t = opened.get_tensor(key)
            if name == "lm_head.weight":
                head = t[:: max(1, len(t) // 512)].clone(), file
                continue
            t = t.T if transposed(name) else t
            if t.shape != wanted[name].shape:
                raise ValueError(
                    f"{file}: {key!r} is {tuple(shape)}, {config_file.name} asks for "
                    f"{tuple(wanted[name].shape[:: -1 if transposed(name) else 1])}"
                )
            tensors[name] = torch.empty(t.shape, dtype=dtype, device=device).copy_(t)
        if missing := sorted(wanted.keys() - tensors.keys()):
            raise ValueError(f"{source} lacks {len(missing)} tensors, first {missing[0]!r}: fetch it again")
        model.load_state_dict(tensors, assign=True)
        if head is not None:  # stored beside the table by some: it has to be the same
            rows = model.wte.weight[:: max(1, config.vocab_size // 512)]
            if not torch.equal(rows, head[0].to(rows)):
                raise ValueError(f"{head[1]} has a head that is not its embedding table: only tied heads are supported")
        model.folder = config_file.parent
        model.name = source if source in HUB else model.folder.resolve().name
        return model


# ---------------------------------------------------------------- fast paths, each with the slow line it equals


def matmul_shared(a, b):
    """a @ b, for a (B, n_head, T, X) and b (B or 1, n_head, X, Y): a b that all rows share is multiplied once."""
    B, n_head, T, X = a.shape
    if b.size(0) == B:
        return a @ b
    rows = a.transpose(0, 1).reshape(n_head, B * T, X)  # the rows of the whole batch, head by head
    return (rows @ b[0]).view(n_head, B, T, b.size(-1)).transpose(0, 1)  # (B, n_head, T, Y)


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


BUNDLED = ("nano", "nano-1m", "nano-11m")  # in data/, each with its card
HUB = {  # name -> repository and revision, so that the same name is the same weights tomorrow
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}


def find(source):
    """The config.json of a checkpoint, and {stored name: (file, shape)} over its weight files."""
    folder, name = Path(source), "model.safetensors"
    if source in BUNDLED:
        folder = Path(__file__).parent / "data" / source
    elif source in HUB and not folder.exists():
        repository, revision = HUB[source]
        logging.set_verbosity_error()  # its retries would bury the one line below
        try:
            for file in ("config.json", name):
                folder = Path(hf_hub_download(repository, file, revision=revision)).parent
        except (OSError, HfHubHTTPError) as error:
            raise ValueError(
                f"cannot fetch {source} ({type(error).__name__}): go online once, or put config.json and {name} "
                f"of the hub's {repository} into a folder and name that with --model"
            ) from None
    elif folder.suffix == ".safetensors":
        folder, name = folder.parent, folder.name
    elif not folder.is_dir():
        names = ", ".join([*BUNDLED, *HUB])
        raise ValueError(f"no model {str(source)!r}: give {names}, a checkpoint's folder or its .safetensors file")
    parts = [folder / name]
    shards = folder / "model.safetensors.index.json"
    if not parts[0].is_file() and shards.is_file():
        try:
            parts = [folder / file for file in sorted(set(json.loads(shards.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{shards} is no index of shards ({error!r}): fetch it again") from None
    index = {}
    for part in parts:
        if not part.is_file():
            raise ValueError(f"no {part.name} in {folder}: a model is a folder with config.json and {name}")
        try:
            with safe_open(part, framework="pt") as file:
                index |= {key: (part, tuple(file.get_slice(key).get_shape())) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{part} cannot be read ({error}): fetch it again") from None
    return folder / "config.json", index


def read_config(path, index):
    """GPTConfig of a config.json, or, where there is none, of the tensors' shapes."""
    shapes = {key.removeprefix("transformer."): shape for key, (_, shape) in index.items()}
    if not path.is_file():
        try:
            (vocab_size, n_embd), block_size = shapes["wte.weight"], shapes["wpe.weight"][0]
        except (KeyError, ValueError):
            raise ValueError(
                f"no config.json in {path.parent}, and its weights are not GPT-2's: name another"
            ) from None
        if n_embd % 64:
            raise ValueError(f"no config.json in {path.parent}: it says how many heads share {n_embd} columns")
        n_layer = len({key.split(".")[1] for key in shapes if key.startswith("h.")})
        return GPTConfig(vocab_size, block_size, n_layer, n_embd // 64, n_embd)  # a head of GPT-2 is 64 wide
    try:
        c = json.loads(path.read_text())
        config = GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch the checkpoint again") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no {error}: only GPT-2 checkpoints can be loaded") from None
    # settings under which the same weights would mean another network
    for key, same in {
        "activation_function": ("gelu_new",),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * config.n_embd),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }.items():
        if c.get(key, same[0]) not in same:
            raise ValueError(f"{path} says {key} = {c[key]!r}: only GPT-2's own {same[0]!r} is supported")
    return config


def best_dtype(device):
    """bfloat16 where the device multiplies matrices faster in it, else float32."""
    if str(device).startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("amx_bf16") or capable.get("avx512_bf16") else torch.float32


def transposed(name):
    """The hub stores a block's matrices as (in, out), nn.Linear holds (out, in)."""
    return name.startswith("h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def write_tensors(path, tensors, metadata):
    """Write safetensors, {name: tensor} and {name: text}, under a temporary name and rename."""
    path = Path(path)
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    save_file(tensors, path.with_name(path.name + ".tmp"), metadata=metadata)
    os.replace(path.with_name(path.name + ".tmp"), path)


def write_json(path, value):
    """Write JSON under a temporary name and rename, so that no reader sees half a file."""
    path = Path(path)
    path.with_name(path.name + ".tmp").write_text(json.dumps(value, indent=2) + "\n")
    os.replace(path.with_name(path.name + ".tmp"), path)
