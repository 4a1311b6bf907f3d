"""Where answers look: the attention that each head of a frozen network pays to the rows of a prompt."""

import math
import random

import torch

from data.batches import encode, training_batches
from model import Attention


@torch.no_grad()
def attention_weights(network, tokens, past=None):
    """Yield the attention weights of each layer, (B, n_head, T, P + T) in float32, as the network reads tokens (B, T)
    behind a cache of P positions.

    Hooks note what each Attention is given, and its own queries and keys are made of that.
    """
    seen = []
    modules = [m for m in network.modules() if isinstance(m, Attention)]
    hooks = [m.register_forward_pre_hook(lambda module, args: seen.append((module, args))) for m in modules]
    network(tokens, past)
    for hook in hooks:
        hook.remove()
    for attention, (x, mask, pair, _, _, rope) in seen:  # x (B, T, C); pair: the past's keys and values in this layer
        q, k, _ = attention.qkv(x, rope)  # (B, n_head, T, D), (B, n_kv_head, T, D)
        if pair is not None:
            k = torch.cat([pair[0].expand(len(k), -1, -1, -1), k], dim=2)  # (B, n_kv_head, P + T, D)
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (B, n_head, P + T, D): heads may share keys
        scores = (q @ k.mT).float() / math.sqrt(q.size(-1))  # (B, n_head, T, P + T)
        yield (scores + mask).softmax(-1)


@torch.no_grad()
def attention_to_rows(method, frozen, tokenizer, examples):
    """The attention of true answers to a prompt's rows while each of their tokens is predicted, on average over all of
    them. Returns a dict, or None where the method has no rows before the question that share a softmax with it.

    questions  how many
    rows       [layer][head][row]: the share that each row of the prompt gets, from 0 to 1
    shares     [layer]: the share of all rows together, the mean of the layer's heads
    """
    network = method.network(frozen)
    past, S = method.past(network), 0 if method.shots is None else method.shots.size(1)
    if past is None or past[0][0].size(2) == S:
        return None
    device, P = past[0][0].device, past[0][0].size(2) - S
    rows, n = torch.zeros(len(past), frozen.config.n_head, P), 0  # (n_layer, n_head, P)
    for tokens, _, answer in training_batches(encode(method.tokenizer(tokenizer), examples), 32, random.Random(0)):
        n += answer.sum().item()
        for i, weights in enumerate(attention_weights(network, tokens.to(device), past)):
            rows[i] += weights.transpose(1, 2)[..., :P][answer.to(device)].sum(0).cpu()
    rows /= n
    return {
        "questions": len(examples),
        "rows": [[[round(w, 4) for w in head] for head in layer] for layer in rows.tolist()],
        "shares": [round(share, 4) for share in rows.sum(2).mean(1).tolist()],
    }
