"""Where answers look: the attention that each head of a frozen network pays to the rows of a prompt."""

import math
import random

import torch
import torch.nn.functional as F

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
    for attention, (x, mask, pair, _, _, turn) in seen:  # x (B, T, C); pair: the past's keys and values in this layer
        q, k, _ = attention.qkv(x, turn)  # (B, n_head, T, D), (B, n_kv_head, T, D); turn: a Llama's positions
        if pair is not None:
            k = torch.cat([pair[0].expand(len(k), -1, -1, -1), k], dim=2)  # (B, n_kv_head, P + T, D)
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (B, n_head, P + T, D): heads may share keys
        scores = (q @ k.mT).float() / math.sqrt(q.size(-1))  # (B, n_head, T, P + T)
        yield (scores + mask[..., -scores.size(-1) :]).softmax(-1)


def attention_to_rows(method, frozen, tokenizer, examples):
    """What the tokens of true answers attend to while each is predicted, on average over all of them: a dict, or None
    where the method has no rows before the question that share a softmax with it.

    questions  how many
    rows       [layer][head][row]: the share that each row of the prompt gets, from 0 to 1
    shares     a dict for each layer, the mean of its heads: rows, shots, question and answer so far, which sum to 1

    A layer that has no rows gives them nothing.
    """
    network = method.network(frozen)
    with torch.no_grad():
        past = method.past(network)
    S = 0 if method.shots is None else method.shots.size(1)
    if past is None or past[-1][0].size(2) == S:
        return None
    encoded = encode(method.tokenizer(tokenizer), examples)
    device, P = past[-1][0].device, past[-1][0].size(2) - S
    rows = torch.zeros(len(past), frozen.config.n_head, P)  # (n_layer, n_head, P)
    shares, n = torch.zeros(len(past), 4), 0
    for tokens, _, answer in training_batches(encoded, 32, random.Random(0)):  # (B, T) each
        tokens, answer = tokens.to(device), answer.to(device)
        so_far = F.pad(answer[:, :-1], (1, 0))  # (B, T), True for tokens of the answer: each follows a predicting one
        n += answer.sum().item()
        for i, weights in enumerate(attention_weights(network, tokens, past)):
            T = tokens.size(1)
            own = weights.size(3) - S - T  # rows of this layer: a prefix may stand in the upper ones only
            to = weights.transpose(1, 2)  # (B, T, n_head, own + S + T)
            if own:
                rows[i] += to[..., :own][answer].sum(0).cpu()
            text, before = to[..., -T:], to.mean(2)[answer]  # (B, T, n_head, T), (N, own + S + T)
            to_answer = (text * so_far[:, None, None]).sum(3).mean(2)[answer].sum()
            to_text = before[:, own + S :].sum()
            shares[i] += torch.stack(
                [before[:, :own].sum(), before[:, own : own + S].sum(), to_text - to_answer, to_answer]
            ).cpu()
    names = "rows", "shots", "question", "answer so far"
    return {
        "questions": len(examples),
        "rows": [[[round(w, 4) for w in head] for head in layer] for layer in (rows / n).tolist()],
        "shares": [dict(zip(names, (round(s, 4) for s in layer))) for layer in (shares / n).tolist()],
    }
