"""Which position looks where: the weights of attention, which the network itself never keeps."""

import math

import torch


@torch.no_grad()
def attention_weights(network, tokens, past=None):
    """Tokens (B, T) behind a cache of P positions -> (n_layer, B, n_head, T, P + T): how much each of the T positions
    takes from each position before it, and from itself. Every row of weights adds up to 1.

    The arithmetic is that of model.py's Attention.attend. The network is a GPT.
    """
    (B, T), P, found = tokens.shape, past[0][0].size(2) if past else 0, []
    x = network.wte(tokens) + network.wpe(torch.arange(P, P + T))  # (B, T, C)
    mask = torch.full((T, P + T), -torch.inf).triu(P + 1)  # a position sees all before it, and itself
    for i, block in enumerate(network.h):
        q, keys, _ = block.attn.qkv(block.ln_1(x))  # (B, n_head, T, D) each
        if past:
            keys = torch.cat([past[i][0].expand(B, -1, -1, -1), keys], dim=2)  # (B, n_head, P + T, D)
        found.append((q @ keys.mT / math.sqrt(q.size(-1)) + mask).softmax(-1))  # (B, n_head, T, P + T)
        x, _ = block(x, mask, past[i] if past else None)
    return torch.stack(found)
