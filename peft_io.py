"""Soft prompts to PEFT's files and back.

python peft_io.py export out/addition-nano DIR     a run's prefix as a PEFT adapter
python peft_io.py import DIR prefix.safetensors    a PEFT adapter as a prefix, for sample.py and train_task.py --load
"""

import json
from pathlib import Path

import torch

from checkpoint import (
    BUNDLED,
    HUB,
    load_model,
    load_prefix,
    read_tensors,
    save_prefix,
    write_json,
    write_tensors,
)
from cli import Parser, run
from data.tokenizer import Tokenizer
from prefix import DeepPrefix, HybridPrefix, PrefixTuning, PromptTuning, PTuning


@torch.no_grad()
def export_peft(prefix, model, folder):
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel.from_pretrained takes:
    PROMPT_TUNING for rows at the input, PREFIX_TUNING for keys and values, an MLP folded into either."""
    if type(prefix) not in (HybridPrefix, PromptTuning, PTuning, DeepPrefix, PrefixTuning):
        raise ValueError(f"PEFT has no adapter for {prefix.name}")
    folder, c, rows = Path(folder), model.config, prefix.embeddings()
    deep = isinstance(prefix, DeepPrefix)
    if getattr(prefix, "position", "before") != "before":
        raise ValueError(f"rows {prefix.position} the question: PEFT puts them before it")
    if deep and prefix.layers < c.n_layer:
        raise ValueError(f"a prefix in the top {prefix.layers} of {c.n_layer} layers: PEFT knows none but in all")
    if prefix.shots is not None:
        raise ValueError("a prompt with worked examples behind it (--shots): PEFT's adapter would lose them")
    if "head" in prefix.init_kwargs:
        raise ValueError("a prefix with a classification head: PEFT's adapter would lose it")
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
    _, tensors = read_tensors(weights)
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


def base_of(source):
    """The --model that a run was tuned on, from its results.json or its prompt's header."""
    file = source / "prefix.safetensors" if source.is_dir() else source
    if (file.parent / "results.json").is_file():
        return json.loads((file.parent / "results.json").read_text())["args"]["model"]
    header, _ = read_tensors(file)
    name = header.get("base", "")
    if name not in (*BUNDLED, *HUB):
        raise ValueError(f"{source} was tuned on the base {name!r}: name its folder with --model")
    return name


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("what", choices=["export", "import"], help="from a run to PEFT's files, or from those to a prompt")
    p.add_argument("source", help="export: a run's folder or its prefix.safetensors; import: a PEFT adapter's folder")
    p.add_argument("target", help="export: the adapter's folder; import: the prompt's file. Must not exist yet")
    p.add_argument("--model", help="the base (default: export: what the run was tuned on; import: nano)")
    args = p.parse_args(argv)
    if Path(args.target).exists():
        raise ValueError(f"{args.target} exists already: name another, or remove it")
    source = Path(args.source)
    model = load_model(args.model or (base_of(source) if args.what == "export" else "nano")).freeze()
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    if args.what == "export":
        method, _ = load_prefix(source / "prefix.safetensors" if source.is_dir() else source, model, tokenizer)
        export_peft(method, model, args.target)
    else:
        method = import_peft(args.source, model)
        tokenizer.tokenize = "bpe"  # PEFT knows no other text than BPE
        save_prefix(method, args.target, model, tokenizer)
    print(f"wrote {method.n_rows()} rows to {args.target}")


if __name__ == "__main__":
    run(main, "peft_io.py")
