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
    now, start = (F.normalize(x.float(), dim=-1) for x in (rows, method.start))  # (P, C) each
    table = F.normalize(model.wte.weight.float(), dim=-1)  # (vocab_size, C)

    def closest(rows):
        cosines, tokens = (rows @ table.T).topk(k)  # (P, k) each
        pairs = zip(tokens.tolist(), cosines.tolist())
        return [[[tokenizer.decode([t]), round(c, 3)] for t, c in zip(*of_row)] for of_row in pairs]

    return [
        {
            "init_token": word,
            "init_nearest": before,
            "nearest": after,
            "cosine_to_init": round((now[i] @ start[i]).item(), 3),
        }
        for i, (word, before, after) in enumerate(zip(init_words(method, tokenizer), closest(start), closest(now)))
    ]


def init_words(method, tokenizer):
    """The token that each row of a prompt began as, None for random rows."""
    n = method.n_rows() - method.n_random
    tokens = (list(method.init_kwargs.get("trigger", ())) * n)[:n]  # prompt tuning repeats its trigger
    return [None] * (method.n_rows() - len(tokens)) + [tokenizer.decode([t]) for t in tokens]
