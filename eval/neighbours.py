"""Reading a tuned prompt: the vocabulary's nearest tokens to each of its rows, by cosine."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def nearest(model, tokenizer, prefix, k=3):
    """For every row a dict: what it began as, the k tokens nearest to it now with their cosines,
    and the cosine between its start and now. Lester et al. (2021), section 7, "Interpretability".
    """
    table = F.normalize(model.wte.weight.float(), dim=-1)  # (vocab_size, C)
    now, start = F.normalize(prefix.embeddings().float(), dim=-1), F.normalize(prefix.start.float(), dim=-1)  # (P, C)
    cosines, tokens = (now @ table.T).topk(k)  # (P, k)
    rows = []
    for i in range(len(now)):
        rows.append(
            {
                "began": None if i < prefix.n_random else tokenizer.decode([(start[i] @ table.T).argmax().item()]),
                "nearest": [
                    [tokenizer.decode([t]), round(c, 3)] for t, c in zip(tokens[i].tolist(), cosines[i].tolist())
                ],
                "moved": round((now[i] @ start[i]).item(), 3),
            }
        )
    return rows
