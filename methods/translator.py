"""Worked examples made into a prompt in one pass. research/translate.py trains the network that does it."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from files import schemas
from files.errors import UserError
from files.safe import read_tensors, write_tensors
from files.weights import fingerprint
from methods.weights import LoRA
from prefix import DeepPrefix, Method, rows_of

TRANSLATOR = "translator.safetensors"  # beside the weights of the base that it belongs to


class Translator(DeepPrefix):
    """Keys and values in every layer, made from worked examples in one pass: nothing is tuned.

    The network that makes them was trained once, on the formats of pretraining: after Phang et al. (2023),
    "HyperTuning: Toward Adapting Large Language Models without Back-propagation", and Mu et al. (2023), "Learning to
    Compress Prompts with Gist Tokens". Its weights lie beside the base's.

    trigger: the examples' tokens. Without them it has n_random rows of zeros, into which a file of it is loaded.
    """

    name, label, takes_n_random = "translator", "translator", False
    needs_trigger, default_trigger, reads_examples = True, "examples:8", True

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        if trigger:
            with torch.no_grad():
                rows = rows_of(load_translator(model)(model, [list(trigger)]))
        else:
            rows = torch.zeros(n_random, 2 * model.config.n_layer * model.config.n_kv_head * model.config.head_dim)
        Method.__init__(self)
        self.init_kwargs |= {"n_random": len(rows), "trigger": []}
        self.register_buffer("rows", rows)


class TranslatorNetwork(nn.Module):
    """Worked examples in, keys and values of P positions in every layer out.

    The frozen base reads the examples. Their last P tokens are then read again, alone and at the first positions, where
    a prompt stands, by the base's blocks with low-rank updates (LoRA). In front of each block these positions look at
    the final hidden states of all examples, through an attention of `width`. All that is learned puts out nothing at
    first, so that the prompt begins as those last tokens would as text.

    x = x + softmax(x W_q (h W_k)') h W_v W_o, h the base's hidden states of the examples
    """

    heads = 4

    def __init__(self, model, n_rows=16, rank=16, width=64, seed=0):
        super().__init__()
        L, C, rng = model.config.n_layer, model.config.n_embd, torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(torch.zeros(n_rows, C))  # added to the tokens
        self.slots = nn.Parameter(torch.randn(n_rows, width, generator=rng))  # so that no two positions ask the same
        self.W_q, self.W_k, self.W_v = (
            nn.Parameter(torch.randn(L, C, width, generator=rng) * C**-0.5) for _ in range(3)
        )
        self.W_o = nn.Parameter(torch.zeros(L, width, C))
        self.lora = LoRA(model, rank=rank, alpha=rank, seed=seed)
        twin = self.lora.network(model)
        for i, block in enumerate(twin.h):
            block.register_forward_pre_hook(partial(self.look, i))
        self.twin = [twin]  # in a list, so that the base's weights are no parameters of this network

    def forward(self, model, texts):
        """D lists of tokens -> a cache of batch D and P positions. No text may be shorter than P."""
        P, weight, S = len(self.rows), model.wte.weight, max(map(len, texts))
        assert min(map(len, texts)) >= P, f"the translator reads at least {P} tokens"
        tokens = torch.zeros(len(texts), S, dtype=torch.long, device=weight.device)  # (D, S)
        mask = torch.zeros(len(texts), 1, 1, S, dtype=weight.dtype, device=weight.device)  # (D, 1, 1, S)
        for i, text in enumerate(texts):  # padding stands behind the text, where it changes nothing before it
            tokens[i, : len(text)] = torch.tensor(text)
            mask[i, ..., len(text) :] = -torch.inf
        with torch.no_grad():
            self.examples = model(tokens), mask  # (D, S, C); `look` reads them in front of each block
            tail = model.wte(torch.tensor([text[-P:] for text in texts], device=weight.device))  # (D, P, C)
        return self.twin[0].prefill(tail + self.rows.to(tail.dtype))

    def look(self, layer, block, args):
        """In front of a block: its input x (D, P, C) with what the rows read off the examples."""
        x, *others = args
        h, mask = self.examples
        W_q, W_k, W_v, W_o = (W[layer].to(x.dtype) for W in (self.W_q, self.W_k, self.W_v, self.W_o))
        q = F.layer_norm(x, x.shape[-1:]) @ W_q + self.slots.to(x.dtype)  # (D, P, width)
        # (D, heads, P or S, width / heads) each
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, h @ W_k, h @ W_v))
        y = (q @ k.mT * q.size(-1) ** -0.5 + mask).softmax(-1) @ v
        return x + y.transpose(1, 2).flatten(2) @ W_o, *others


def save_translator(translator, path, model):
    """Write a TranslatorNetwork, in bfloat16."""
    header = {"format": "nanoprompt translator", "base": model.name, "base_fingerprint": fingerprint(model)}
    write_tensors(path, {n: t.to(torch.bfloat16) for n, t in translator.state_dict().items()}, header)


def load_translator(model, path=None):
    """The TranslatorNetwork of a file, by default of the one beside the base. Raises UserError where there is none, or
    where it is broken or belongs to another base."""
    path = Path(path or Path(getattr(model, "folder", "")) / TRANSLATOR)
    if not path.is_file():
        raise UserError(f"{model.name} has no {path.name}: use nano-2, or train one with python -m research.translate")
    header, tensors = read_tensors(path)
    header = schemas.decode(header, schemas.TranslatorHeader, path, "train it again")
    try:
        assert header["base_fingerprint"] == fingerprint(model)
        sizes = {"n_rows": len(tensors["rows"]), "rank": len(tensors["lora.A.0"]), "width": tensors["W_o"].size(1)}
        translator = TranslatorNetwork(model, **sizes)
        translator.load_state_dict(tensors)
    except (AssertionError, LookupError, TypeError, RuntimeError):
        raise UserError(f"{path} is no complete translator of {model.name}'s weights: train it again") from None
    return translator.to(model.wte.weight.device)
