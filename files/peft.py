"""Soft prompts and LoRA to PEFT's files and back.

python peft_io.py export out/addition-nano-2 DIR     a run's prefix as a PEFT adapter
python peft_io.py import DIR prefix.safetensors    a PEFT adapter as a prefix, for sample.py and train_task.py --load
python peft_io.py merge out/lora DIR               a run's LoRA in the base's weights, an ordinary checkpoint
"""

import argparse
import shutil
from pathlib import Path

import torch

from data.tokenizer import Tokenizer
from files import schemas
from files.errors import UserError, run_main
from files.prompts import ROWS, load_prefix, save_prefix
from files.safe import read_tensors, write_json, write_tensors
from files.weights import BUNDLED, HUB, hub_name, load_model, save_model
from llama import Llama
from prefix import METHODS, DeepPrefix, HybridPrefix, block_linears


@torch.no_grad()
def export_peft(method, model, folder):
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel.from_pretrained takes:
    PROMPT_TUNING for rows at the input, PREFIX_TUNING for keys and values, an MLP folded into either; CARTRIDGE; LORA.
    """
    if method.name not in (*ROWS, "ptuning2", "prefix", "cartridge", "translator", "lora"):
        raise UserError(f"PEFT has no adapter for {method.name}")
    if reads_text(method, model):
        raise UserError(f"{method.label} with text in front (--shots, --trigger): PEFT's adapter would lose it")
    config, tensors = lora_adapter(method, model) if method.name == "lora" else prompt_adapter(method, model)
    config |= {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": HUB[model.name][0] if model.name in HUB else model.name.partition("@")[0],
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def reads_text(method, model):
    """Whether more stands behind a method than the token before every text, which PEFT's tokenizer puts there too."""
    return method.shots is not None and method.shots.tolist() != [[model.config.bos_token]]


def prompt_adapter(prefix, model):
    """(config, tensors) of a soft prompt as a PEFT adapter."""
    c, rows = model.config, prefix.embeddings()
    deep = isinstance(prefix, DeepPrefix)
    if getattr(prefix, "position", "before") != "before":
        raise UserError(f"rows {prefix.position} the question: PEFT puts them before it")
    if deep and prefix.layers < c.n_layer:
        raise UserError(f"a prefix in the top {prefix.layers} of {c.n_layer} layers: PEFT knows none but in all")
    if getattr(prefix, "head", None) is not None and deep:
        raise UserError("a prefix with a classification head: PEFT's adapter would lose it")
    config = {
        "peft_type": "PREFIX_TUNING" if deep else "PROMPT_TUNING",
        "num_virtual_tokens": len(rows),
        "num_transformer_submodules": 1,
        "num_layers": c.n_layer,
        "num_attention_heads": c.n_kv_head if deep else c.n_head,
        "token_dim": c.n_kv_head * c.head_dim if deep else c.n_embd,
    }
    if prefix.name == "cartridge":
        config |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": 0}
    else:
        config |= {"prefix_projection": False} if deep else {"prompt_tuning_init": "RANDOM"}
    return config, {"prompt_embeddings": rows}


def lora_name(name, model):
    """What PEFT calls the update of one of our matrices, without its lora_A.weight or lora_B.weight."""
    return "base_model.model." + (hub_name(name, model) if isinstance(model, Llama) else f"transformer.{name}")


def lora_adapter(lora, model):
    """(config, tensors) of LoRA as a PEFT adapter."""
    names = [name for name, _ in block_linears(model)]
    config = {
        "peft_type": "LORA",
        "r": lora.init_kwargs["rank"],
        "lora_alpha": lora.init_kwargs["alpha"],
        "use_rslora": lora.init_kwargs["rslora"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in names}),
        "fan_in_fan_out": not isinstance(model, Llama),  # the hub stores GPT-2's matrices as (in, out)
    }
    tensors = {}
    for name, A, B in zip(names, lora.A, lora.B):
        tensors |= {f"{lora_name(name, model)}.lora_A.weight": A, f"{lora_name(name, model)}.lora_B.weight": B}
    return config, tensors


def import_peft(folder, model):
    """The method in a PEFT adapter of type PROMPT_TUNING, P_TUNING, CPT, PREFIX_TUNING, CARTRIDGE or LORA. Of prompts
    PEFT writes an encoder's output, not the encoder, so that all of them are rows. Raises UserError."""
    file, weights = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    for one in (file, weights):
        if not one.is_file():
            raise UserError(f"no {one.name} in {folder}: name a folder that PEFT's save_pretrained wrote")
    config = schemas.read_json(file, schemas.AdapterConfig, "name a folder that PEFT's save_pretrained wrote")
    kind = config["peft_type"]
    _, tensors = read_tensors(weights)
    if kind == "LORA":
        return import_lora(config, tensors, model, folder)
    kinds = {
        "PROMPT_TUNING": HybridPrefix,
        "P_TUNING": HybridPrefix,
        "CPT": HybridPrefix,
        "PREFIX_TUNING": DeepPrefix,
        "CARTRIDGE": DeepPrefix,
    }
    if kind not in kinds:
        raise UserError(f"{folder} is a {kind} adapter: only {', '.join(kinds)} and LORA can be imported")
    if list(tensors) != ["prompt_embeddings"]:
        extra = next((name for name in tensors if name != "prompt_embeddings"), "nothing")
        raise UserError(
            f"{weights} holds {extra!r}, not prompt_embeddings alone: only causal language models' prompts"
        )
    rows, c = tensors["prompt_embeddings"].float(), model.config
    width = 2 * c.n_layer * c.n_kv_head * c.head_dim if kinds[kind] is DeepPrefix else c.n_embd
    if rows.dim() != 2 or rows.size(1) != width:
        raise UserError(
            f"{weights}: prompt_embeddings is {tuple(rows.shape)}, a {kind} prompt for {model.name} is {width} wide: "
            "give the --model it was tuned on"
        )
    return method_of_rows(kinds[kind], rows, model)


def method_of_rows(cls, rows, model):
    """A HybridPrefix or a DeepPrefix of PEFT's rows, (P, C) or (P, n_layer * 2 * n_kv_head * D)."""
    prefix = cls(model, len(rows))
    prefix.load_state_dict({name: rows for name in prefix.state_dict()})  # rows, and where they began
    return prefix.to(model.wte.weight.device)


@torch.no_grad()
def import_lora(config, tensors, model, folder):
    """LoRA from a PEFT adapter. What the adapter leaves alone gets an update of zero. Raises UserError."""
    plain = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}  # the others change the base, or y
    switches = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication", "modules_to_save")
    for key in (*plain, *switches):
        if config.get(key) and config[key] not in plain.get(key, ()):
            raise UserError(f"{folder} says {key} = {config[key]!r}: only plain LoRA can be imported")
    config = schemas.convert(config, schemas.LoRAConfig, Path(folder) / "adapter_config.json", "export it again")
    rank = config["r"]
    if not any(t.dim() == 2 and rank in t.shape for t in tensors.values()):
        raise UserError(f"{folder} says r = {rank}, and none of its tensors has that rank: export it again")
    lora = METHODS["lora"](model, rank=rank, alpha=config["lora_alpha"], rslora=config.get("use_rslora", False))
    left = dict(tensors)
    for (name, _), A, B in zip(block_linears(model), lora.A, lora.B):
        for part, ours in (("A", A), ("B", B)):
            theirs = left.pop(f"{lora_name(name, model)}.lora_{part}.weight", None)
            if theirs is not None and theirs.shape != ours.shape:
                raise UserError(
                    f"{folder}: lora_{part} of {name} is {tuple(theirs.shape)}, {model.name} asks for "
                    f"{tuple(ours.shape)}: give the --model it was tuned on"
                )
            if theirs is not None:
                ours.copy_(theirs)
    if left or not tensors:
        raise UserError(f"{folder} holds {next(iter(left), 'nothing')!r}: only updates of the blocks can be imported")
    return lora.to(model.wte.weight.device)


def save_merged(lora, model, folder):
    """Write the base with the updates of LoRA in its weights, and the tokenizer's file where the base has one."""
    if lora.name != "lora":
        raise UserError(f"{lora.label} is not in the weights: only --method lora can be merged into them")
    if reads_text(lora, model):
        raise UserError("LoRA with text in front (--shots, --trigger): a checkpoint would lose it")
    save_model(lora.merged(model), folder)
    for file in ("encoding.json", "tokenizer.json"):
        if (model.folder / file).is_file():
            shutil.copy(model.folder / file, folder)


def base_of(source):
    """The --model that a run was tuned on, from its results.json or its prompt's header."""
    file = source / "prefix.safetensors" if source.is_dir() else source
    if (file.parent / "results.json").is_file():
        return schemas.read_json(file.parent / "results.json", schemas.Run, "give --model")["args"]["model"]
    header, _ = read_tensors(file)
    name = header.get("base", "")
    if name not in (*BUNDLED, *HUB) and "/" not in name:  # a name with a slash is the hub's
        raise UserError(f"{source} was tuned on the base {name!r}: name its folder with --model")
    return name


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "what",
        choices=["export", "import", "merge"],
        help="from a run to PEFT's files, from those to a prompt, or from a run of LoRA to a checkpoint",
    )
    p.add_argument("source", help="a run's folder or its prefix.safetensors; import: a PEFT adapter's folder")
    p.add_argument(
        "target",
        help="export: the adapter's folder; import: the prompt's file; merge: the checkpoint's folder. Must not exist "
        "yet",
    )
    p.add_argument("--model", help="the base (default: what the run was tuned on; import: nano-2)")
    args = p.parse_args(argv)
    if Path(args.target).exists():
        raise UserError(f"{args.target} exists already: name another, or remove it")
    source = Path(args.source)
    model = load_model(args.model or ("nano-2" if args.what == "import" else base_of(source))).freeze()
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    if args.what == "import":
        method = import_peft(args.source, model)
        tokenizer.tokenize = "bpe"  # PEFT knows no other text than BPE
        save_prefix(method, args.target, model, tokenizer)
    else:
        method, _ = load_prefix(source / "prefix.safetensors" if source.is_dir() else source, model, tokenizer)
        (export_peft if args.what == "export" else save_merged)(method, model, args.target)
    print(f"wrote {f'{method.n_rows()} rows' if method.n_rows() else method.label} to {args.target}")


if __name__ == "__main__":
    run_main(main, "peft_io.py")
