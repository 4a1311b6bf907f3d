"""Reading a tuned prompt: the vocabulary's nearest tokens to each of its rows, by cosine."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def nearest_tokens(model, tokenizer, method, k=3):
    """For each row at the input a dict: the token it began as, the k nearest tokens to its start and to it now, each
    with its cosine, and the cosine between start and now. Lester et al. (2021), section 7, "Interpretability".
    """
    rows = method.input_rows()
    if rows is None:
        return []
    table = F.normalize(model.wte.weight.float(), dim=-1)  # (vocab_size, C)
    now, start = F.normalize(rows.float(), dim=-1), F.normalize(method.start.float(), dim=-1)  # (P, C)
    at_start, at_end = closest(table, start, tokenizer, k), closest(table, now, tokenizer, k)
    return [
        {
            "init_token": None if i < method.n_random else at_start[i][0][0],
            "init_nearest": at_start[i],
            "nearest": at_end[i],
            "cosine_to_init": round((now[i] @ start[i]).item(), 3),
        }
        for i in range(len(now))
    ]


def closest(table, rows, tokenizer, k):
    """The k tokens with the greatest cosine to each of the rows (P, C), as [token, cosine]."""
    cosines, tokens = (rows @ table.T).topk(k)  # (P, k) each
    pairs = zip(tokens.tolist(), cosines.tolist())
    return [[[tokenizer.decode([t]), round(c, 3)] for t, c in zip(*of_row)] for of_row in pairs]


def init_words(method, tokenizer):
    """The token that each row of a prompt began as, None for random rows."""
    trigger = method.init_kwargs.get("trigger", [])[: method.n_rows() - method.n_random]
    return [None] * method.n_random + [tokenizer.decode([t]) for t in trigger]
