"""Soft prompts: whatever makes the keys and values that stand before a question.

Each is a module whose forward takes the frozen model and returns a KV cache of batch 1
(model.py's `prefill`), which the model broadcasts over the batch. Trained ones travel to PEFT and back:

    python prefix.py export out/addition-nano DIR     a run's prefix as a PEFT adapter
    python prefix.py import DIR prefix.safetensors    a PEFT adapter as a prefix, for sample.py and train_task.py --load
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from cli import Parser, run
from data.tokenizer import Tokenizer
from model import GPT, HUB, write_json, write_tensors


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

    method = "hybrid"

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
        self.mlp = zero_mlp(C, C, rng) if mlp else None

    def embeddings(self):
        """(P, C): what the model sees in place of token embeddings."""
        return self.rows if self.mlp is None else self.rows + self.mlp(self.rows)

    def forward(self, model):
        return model.prefill(self.embeddings()[None].to(model.wte.weight.dtype))


class DeepPrefix(nn.Module):
    """P keys and values in every layer, and nothing at the input: Li & Liang (2021), "Prefix-Tuning",
    section 4.2; without `mlp` P-tuning v2, Liu et al. (2022), "P-Tuning v2", section 3.

    With `layers` only the top ones have them, and those below run as without a prefix, and without gradients.
    rows (P, layers * 2 * C), per layer its keys, then its values: PEFT's layout. They begin as what the
    base computes of the trigger's words (Li & Liang, section 7.4), behind n_random rows drawn with
    the spread of those. With `mlp` an MLP of a code (P, C), which starts at zero, is added to them
    (Li & Liang, section 4.3, as a residual). Arguments as for HybridPrefix.
    """

    method = "prefix"

    def __init__(self, model, n_random, trigger=(), mlp=False, seed=0, layers=None):
        super().__init__()
        c = model.config
        if n_random + len(trigger) == 0:
            raise ValueError("a prefix of no rows: raise --n-random or give a --trigger")
        if layers is not None and not 1 <= layers <= c.n_layer:
            raise ValueError(f"--layers {layers}: {model.name} has 1 to {c.n_layer}")
        self.layers = layers or c.n_layer
        rng = torch.Generator().manual_seed(seed)
        any_words = torch.randint(c.vocab_size, (n_random,), generator=rng)
        words = torch.cat([any_words, torch.tensor(trigger, dtype=torch.long)])[None]  # (1, P)
        with torch.no_grad():
            cache = model.prefill(words.to(model.wte.weight.device))[-self.layers :]
        rows = torch.stack([torch.stack(pair) for pair in cache])  # (layers, 2, 1, n_head, P, D)
        rows = rows[:, :, 0].permute(3, 0, 1, 2, 4).flatten(1).float().cpu()  # (P, layers * 2 * C)
        if n_random:
            rows[:n_random] = torch.randn(n_random, rows.size(1), generator=rng) * rows.std()
        self.n_random = n_random
        self.rows = nn.Parameter(rows)
        self.mlp = None
        if mlp:
            self.code = nn.Parameter(torch.randn(len(rows), c.n_embd, generator=rng))  # (P, C)
            self.mlp = zero_mlp(c.n_embd, rows.size(1), rng)

    def embeddings(self):
        """(P, layers * 2 * C): all keys and values of each row."""
        return self.rows if self.mlp is None else self.rows + self.mlp(self.code)

    def forward(self, model):
        c = model.config
        rows = self.embeddings().to(model.wte.weight.dtype)
        top = rows.view(len(rows), self.layers, 2, 1, c.n_head, -1).permute(1, 2, 3, 4, 0, 5)
        nothing = rows.new_zeros(2, 1, c.n_head, 0, top.size(-1))
        # per layer keys and values, (1, n_head, P, D) each, with P = 0 in the lower ones
        return [tuple(pair) for pair in (*[nothing] * (c.n_layer - self.layers), *top)]


def zero_mlp(n_in, n_out, rng):
    """A hidden layer of n_in units; what it puts out starts at zero."""
    mlp = nn.Sequential(nn.Linear(n_in, n_in), nn.Tanh(), nn.Linear(n_in, n_out))
    nn.init.normal_(mlp[0].weight, std=n_in**-0.5, generator=rng)
    for zero in (mlp[0].bias, mlp[2].weight, mlp[2].bias):
        nn.init.zeros_(zero)
    return mlp


METHODS = {"hybrid": HybridPrefix, "prefix": DeepPrefix}


def save(prefix, path, model, tokenizer, task="", trigger="", form="{}", stop=""):
    """Write a trained prefix. The header says which base, tokenizer, task and trigger it belongs to, how
    a question is put (`form`, with {} for it) and what ends its answer ('': the end-of-text token)."""
    header = {
        "format": "nanoprompt prefix",
        "method": prefix.method,
        "base": model.name,
        "base_fingerprint": model.fingerprint(),
        "tokenizer": tokenizer.name,
        "tokenise": "letters" if tokenizer.letters else "bpe",
        "task": task,
        "trigger": trigger,
        "form": form,
        "stop": stop,
        "n_random": str(prefix.n_random),
        "n_rows": str(len(prefix.rows)),
        "mlp": str(prefix.mlp is not None).lower(),
    }
    if prefix.method == "prefix":
        header["layers"] = str(prefix.layers)
    write_tensors(path, prefix.state_dict(), header)


def load(path, model, tokenizer):
    """(prefix, header) from a file. Raises ValueError where it is broken or for another base or tokenizer.

    Whether the text of its task is spelled or BPE, header["tokenise"], is for the caller to follow.
    """
    if not Path(path).is_file():
        raise ValueError(f"no prefix file {path}: train_task.py writes prefix.safetensors into its run's folder")
    header, tensors = read(path)
    if header.get("format") != "nanoprompt prefix":
        raise ValueError(f"{path} is no prefix: name the prefix.safetensors of a run")
    if header["base_fingerprint"] != model.fingerprint():
        tuned_on = f"{header['base']!r} ({header['base_fingerprint']})"
        raise ValueError(f"{path} was tuned on the base {tuned_on}, not on {model.name!r} ({model.fingerprint()})")
    if header["tokenizer"] != tokenizer.name:
        raise ValueError(f"{path} was tuned with the tokenizer {header['tokenizer']}, not with {tokenizer.name}")
    n_rows, n_random = int(header["n_rows"]), int(header["n_random"])
    layers = {"layers": int(header["layers"])} if "layers" in header else {}
    prefix = METHODS[header["method"]](model, n_random, [0] * (n_rows - n_random), header["mlp"] == "true", **layers)
    prefix.load_state_dict(tensors)
    return prefix.to(model.wte.weight.device), header


def read(path):
    """(header, {name: tensor}) of a safetensors file. Raises ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is no safetensors file, or it was cut off") from None


# ---------------------------------------------------------------- PEFT


@torch.no_grad()
def export_peft(prefix, model, folder):
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel.from_pretrained takes:
    PROMPT_TUNING for rows at the input, PREFIX_TUNING for keys and values, an MLP folded into either."""
    folder, c, rows = Path(folder), model.config, prefix.embeddings()
    deep = isinstance(prefix, DeepPrefix)
    if deep and prefix.layers < c.n_layer:
        raise ValueError(f"a prefix in the top {prefix.layers} of {c.n_layer} layers: PEFT knows none but in all")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "PREFIX_TUNING" if deep else "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": HUB[model.name][0] if model.name in HUB else model.name,
        "inference_mode": True,
        "num_virtual_tokens": len(rows),
        "num_transformer_submodules": 1,
        "num_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "token_dim": c.n_embd,
    }
    config |= {"prefix_projection": False} if deep else {"prompt_tuning_init": "RANDOM"}
    write_tensors(folder / "adapter_model.safetensors", {"prompt_embeddings": rows}, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def import_peft(folder, model):
    """The prefix in a PEFT adapter of type PROMPT_TUNING, P_TUNING, PREFIX_TUNING or CARTRIDGE. PEFT
    writes an encoder's output, not the encoder, so that all of them are rows. Raises ValueError."""
    config, weights = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise ValueError(f"no {file.name} in {folder}: name a folder that PEFT's save_pretrained wrote")
    try:
        kind = json.loads(config.read_text())["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} is no PEFT configuration ({error!r})") from None
    kinds = {
        "PROMPT_TUNING": HybridPrefix,
        "P_TUNING": HybridPrefix,
        "PREFIX_TUNING": DeepPrefix,
        "CARTRIDGE": DeepPrefix,
    }
    if kind not in kinds:
        raise ValueError(f"{folder} is a {kind} adapter: only {', '.join(kinds)} are soft prompts")
    _, tensors = read(weights)
    if list(tensors) != ["prompt_embeddings"]:
        extra = next((name for name in tensors if name != "prompt_embeddings"), "nothing")
        raise ValueError(
            f"{weights} holds {extra!r}, not prompt_embeddings alone: only causal language models' prompts"
        )
    rows, c = tensors["prompt_embeddings"].float(), model.config
    width = c.n_embd * (2 * c.n_layer if kinds[kind] is DeepPrefix else 1)
    if rows.dim() != 2 or rows.size(1) != width:
        raise ValueError(
            f"{weights}: prompt_embeddings is {tuple(rows.shape)}, a {kind} prompt for {model.name} is {width} wide: "
            "give the --model it was tuned on"
        )
    prefix = kinds[kind](model, len(rows))
    prefix.load_state_dict({name: rows for name in prefix.state_dict()})  # rows, and where they began
    return prefix.to(model.wte.weight.device)


def main():
    p = Parser(__doc__)
    p.add_argument("what", choices=["export", "import"])
    p.add_argument("source", help="export: a run's folder or its prefix.safetensors; import: a PEFT adapter's folder")
    p.add_argument("target", help="export: the adapter's folder; import: the prefix file. Must not exist yet")
    p.add_base()
    args = p.parse_args()
    if Path(args.target).exists():
        raise ValueError(f"{args.target} exists already: name another, or remove it")
    model = GPT.load(args.model).freeze()
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    if args.what == "export":
        source = Path(args.source)
        prefix, _ = load(source / "prefix.safetensors" if source.is_dir() else source, model, tokenizer)
        export_peft(prefix, model, args.target)
    else:
        prefix = import_peft(args.source, model)
        tokenizer.letters = False  # PEFT knows no other text than BPE
        save(prefix, args.target, model, tokenizer)
    print(f"wrote {len(prefix.rows)} rows to {args.target}")


if __name__ == "__main__":
    run(main, "prefix.py")
