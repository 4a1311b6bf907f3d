"""Reading a tuned prompt: the vocabulary's nearest tokens to each of its rows, by cosine."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def nearest_tokens(model, tokenizer, method, k=3):
    """For every row at the input a dict: what it began as, the k tokens nearest to it at its start and now, each with
    its cosine, and the cosine between its start and now. Lester et al. (2021), section 7, "Interpretability".
    """
    rows = method.input_rows()
    if rows is None:
        return []
    table = F.normalize(model.wte.weight.float(), dim=-1)  # (vocab_size, C)
    now, start = F.normalize(rows.float(), dim=-1), F.normalize(method.start.float(), dim=-1)  # (P, C)
    found = []
    at_start, at_end = closest(table, start, tokenizer, k), closest(table, now, tokenizer, k)
    for i, (init_nearest, nearest) in enumerate(zip(at_start, at_end)):
        found.append(
            {
                "init_token": None if i < method.n_random else init_nearest[0][0],
                "init_nearest": init_nearest,
                "nearest": nearest,
                "cosine_to_init": round((now[i] @ start[i]).item(), 3),
            }
        )
    return found


def closest(table, rows, tokenizer, k):
    """The k tokens of greatest cosine to each of the rows (P, C), as [token, cosine], the greatest first."""
    cosines, tokens = (rows @ table.T).topk(k)  # (P, k) each
    pairs = zip(tokens.tolist(), cosines.tolist())
    return [[[tokenizer.decode([t]), round(c, 3)] for t, c in zip(*of_row)] for of_row in pairs]


def init_words(method, tokenizer):
    """What each row of a prompt began as: a token's text, or None where it began at random."""
    trigger = method.init_kwargs.get("trigger", [])[: method.n_rows() - method.n_random]
    return [None] * method.n_random + [tokenizer.decode([t]) for t in trigger]
