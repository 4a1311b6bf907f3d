"""Soft prompts: whatever makes the keys and values that stand before a question.

Each is a module whose forward takes the frozen model and returns a KV cache of batch 1
(model.py's `prefill`), which the model broadcasts over the batch.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model import write_tensors


class TextPrompt(nn.Module):
    """Words instead of vectors: an instruction or worked examples in the context. Nothing to train.

    tokens: a list of P token numbers.
    """

    def __init__(self, tokens):
        super().__init__()
        self.register_buffer("tokens", torch.tensor(tokens))  # (P)

    def forward(self, model):
        return model.prefill(self.tokens[None])


class HybridPrefix(nn.Module):
    """P rows at the input: n_random random ones, then one for each token of the trigger.

    rows (P, C) stand where token embeddings would: Lester et al. (2021), "The Power of Scale for
    Parameter-Efficient Prompt Tuning", section 2; words to start from help in low-data settings:
    Li & Liang (2021), "Prefix-Tuning", section 7.4. With `mlp` the model sees rows + MLP(rows),
    the reparameterisation of Li & Liang (section 4.3) as a residual, which starts at zero so that
    trigger rows start as words: Razdaibiedina et al. (2023), "Residual Prompt Tuning".

    trigger: a list of token numbers, empty for random rows only. n_random = 0 is trigger only.
    Random rows are drawn with the embedding table's own standard deviation.
    """

    def __init__(self, model, n_random, trigger=(), mlp=False, seed=0):
        super().__init__()
        table = model.wte.weight.detach().float().cpu()  # (vocab_size, C)
        if n_random + len(trigger) == 0:
            raise ValueError("a prefix of no rows: raise --n-random or give a --trigger")
        rng = torch.Generator().manual_seed(seed)
        C = table.size(1)
        random_rows = torch.randn(n_random, C, generator=rng) * table.std()  # (n_random, C)
        rows = torch.cat([random_rows, table[torch.tensor(trigger, dtype=torch.long)]])  # (P, C)
        self.n_random = n_random
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())  # to see later how far each row went
        self.mlp = None
        if mlp:
            self.mlp = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Linear(C, C))
            nn.init.normal_(self.mlp[0].weight, std=C**-0.5, generator=rng)
            for zero in (self.mlp[0].bias, self.mlp[2].weight, self.mlp[2].bias):
                nn.init.zeros_(zero)

    def embeddings(self):
        """(P, C): what the model sees in place of token embeddings."""
        return self.rows if self.mlp is None else self.rows + self.mlp(self.rows)

    def forward(self, model):
        return model.prefill(self.embeddings()[None].to(model.wte.weight.dtype))


def save(prefix, path, model, tokenizer, task, trigger):
    """Write a HybridPrefix; the header says which base, tokenizer, task and trigger it belongs to."""
    header = {
        "format": "nanoprompt hybrid prefix",
        "base": model.name,
        "base_fingerprint": model.fingerprint(),
        "tokenizer": tokenizer.name,
        "tokenise": "letters" if tokenizer.letters else "bpe",
        "task": task,
        "trigger": trigger,
        "n_random": str(prefix.n_random),
        "n_rows": str(len(prefix.rows)),
        "mlp": str(prefix.mlp is not None).lower(),
    }
    write_tensors(path, prefix.state_dict(), header)


def load(path, model, tokenizer):
    """(HybridPrefix, header) from a file. Raises ValueError where it is broken or for another base or tokenizer."""
    if not Path(path).is_file():
        raise ValueError(f"no prefix file {path}: train_task.py writes prefix.safetensors into its run's folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is no prefix, or it was cut off") from None
    if header.get("format") != "nanoprompt hybrid prefix":
        raise ValueError(f"{path} is no prefix: name the prefix.safetensors of a run")
    if header["base_fingerprint"] != model.fingerprint():
        tuned_on = f"{header['base']!r} ({header['base_fingerprint']})"
        raise ValueError(f"{path} was tuned on the base {tuned_on}, not on {model.name!r} ({model.fingerprint()})")
    tuned_with = f"{header['tokenizer']} --tokenise {header['tokenise']}"
    this = f"{tokenizer.name} --tokenise {'letters' if tokenizer.letters else 'bpe'}"
    if tuned_with != this:
        raise ValueError(f"{path} was tuned with {tuned_with}, not with {this}")
    n_rows, n_random = int(header["n_rows"]), int(header["n_random"])
    prefix = HybridPrefix(model, n_random, [0] * (n_rows - n_random), header["mlp"] == "true")
    prefix.load_state_dict(tensors)
    return prefix.to(model.wte.weight.device), header
