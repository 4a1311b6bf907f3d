"""Reading a tuned prompt: the vocabulary's nearest tokens to each of its rows, by cosine."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def nearest_tokens(model, tokenizer, method, k=3):
    """For every row at the input a dict: what it began as, the k tokens nearest to it now with their cosines,
    and the cosine between its start and now. Lester et al. (2021), section 7, "Interpretability".
    """
    rows = method.input_rows()
    if rows is None:
        return []
    table = F.normalize(model.wte.weight.float(), dim=-1)  # (vocab_size, C)
    now, start = F.normalize(rows.float(), dim=-1), F.normalize(method.start.float(), dim=-1)  # (P, C)
    cosines, tokens = (now @ table.T).topk(k)  # (P, k)
    found = []
    for i in range(len(now)):
        found.append(
            {
                "init_token": None if i < method.n_random else tokenizer.decode([(start[i] @ table.T).argmax().item()]),
                "nearest": [
                    [tokenizer.decode([t]), round(c, 3)] for t, c in zip(tokens[i].tolist(), cosines[i].tolist())
                ],
                "cosine_to_init": round((now[i] @ start[i]).item(), 3),
            }
        )
    return found
