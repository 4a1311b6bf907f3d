"""Soft prompts and LoRA to PEFT's files and back.

    python -m research.peft export out/addition-nano-2 DIR   a run's prompt or LoRA as a PEFT adapter
    python -m research.peft import DIR prefix.safetensors    a PEFT adapter as a prompt's file, for sample.py
    python -m research.peft merge out/lora DIR               a run's LoRA in the base's weights, an ordinary checkpoint
"""

import shutil
from pathlib import Path

import torch

from data.tokenizer import Tokenizer
from files import gguf, schemas
from files.errors import Parser, UserError, run_main
from files.safe import check_unused, read_tensors, write_json, write_tensors
from files.weights import BUNDLED, HUB, hub_name, load_model, save_model
from llama import Llama
from methods.weights import LoRA
from prefix import DeepPrefix, HybridPrefix, block_linears
from run.prompts import base_of, load_prefix, save_prefix

ROWS = "hybrid", "prompt", "cpt", "lopt", "ptuning"  # the methods that are rows at the input, and nothing else
DEEP = "ptuning2", "prefix", "cartridge", "translator"  # the methods that are keys and values in every layer
PEFT_PROMPTS = {  # PEFT's kinds of prompts, and what they are here. It writes an encoder's output, not the encoder.
    "PROMPT_TUNING": HybridPrefix,
    "P_TUNING": HybridPrefix,
    "CPT": HybridPrefix,
    "PREFIX_TUNING": DeepPrefix,
    "CARTRIDGE": DeepPrefix,
}
LORA_SETTINGS = {"bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}  # others mean another update
# what an adapter_config.json may say beside these: what is read, and what changes nothing that the tensors do not show
KNOWN = """
peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
r lora_alpha use_rslora lora_dropout target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out
num_virtual_tokens token_dim num_layers num_attention_heads num_transformer_submodules num_frozen_tokens init_weights
prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs prefix_projection
encoder_hidden_size encoder_num_layers encoder_dropout encoder_reparameterization_type
cpt_token_ids cpt_mask cpt_tokens_type_mask opt_weighted_loss_type opt_loss_decay_factor opt_projection_epsilon
opt_projection_format_epsilon megatron_core qalora_group_size
""".split()
NOTHING = [None, False, {}, []]
# files that hold weights, or say where they are
WEIGHTS = tuple(".safetensors .bin .pt .pth .ckpt .gguf .onnx .h5 .msgpack .ot .index.json".split())


@torch.no_grad()
def export_peft(method, model, folder):
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel.from_pretrained takes:
    PROMPT_TUNING for rows at the input, PREFIX_TUNING for keys and values, an MLP folded into either; CARTRIDGE; LORA.
    """
    if fault := why_not(method, model):
        raise UserError(fault)
    config, tensors = (lora_adapter if method.name == "lora" else prompt_adapter)(method, model)
    name, _, revision = model.name.partition("@")
    name, revision = HUB.get(name, (name, revision or None))
    config |= {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name if "/" in name else str(getattr(model, "folder", Path()).resolve()),
        "revision": revision,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def why_not(method, model):
    """Why PEFT cannot hold a method, in one line, or None."""
    if method.name not in (*ROWS, *DEEP, "lora"):
        return f"PEFT has no adapter for {method.name}"
    if has_text(method, model):
        return f"{method.label} with text in front (--shots, --trigger): PEFT's adapter would lose it"
    position = method.init_kwargs.get("position", "before")
    return f"rows {position} the question: PEFT puts them before it" if position != "before" else None


def has_text(method, model):
    """Whether more stands behind a method than the token before every text, which PEFT's tokenizer puts there too."""
    return method.shots is not None and method.shots.tolist() != [[model.config.bos_token]]


def prompt_adapter(prompt, model):
    """(config, tensors) of a soft prompt as a PEFT adapter."""
    c, rows, deep = model.config, prompt.embeddings(), prompt.name in DEEP
    config = {
        "peft_type": "PREFIX_TUNING" if deep else "PROMPT_TUNING",
        "num_virtual_tokens": len(rows),
        "num_transformer_submodules": 1,
        "num_layers": c.n_layer,
        "num_attention_heads": c.n_kv_head if deep else c.n_head,
        "token_dim": c.n_kv_head * c.head_dim if deep else c.n_embd,
    }
    if prompt.name == "cartridge":
        config |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": 0}
    else:
        config |= {"prefix_projection": False} if deep else {"prompt_tuning_init": "RANDOM"}
    return config, {"prompt_embeddings": rows}


def lora_adapter(lora, model):
    """(config, tensors) of LoRA as a PEFT adapter."""
    config = {
        "peft_type": "LORA",
        "r": lora.init_kwargs["rank"],
        "lora_alpha": lora.init_kwargs["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in block_linears(model)}),
        "fan_in_fan_out": not isinstance(model, Llama),  # the hub stores GPT-2's matrices as (in, out)
    }
    return config, lora_tensors(lora, model)


def lora_tensors(lora, model):
    """{PEFT's name: our tensor} of LoRA."""
    pairs = zip(lora_names(model), zip(lora.A, lora.B))
    return {name: t for (names, _), tensors in pairs for name, t in zip(names, tensors)}


def lora_names(model):
    """[(PEFT's names of A and B, the matrix that they change)] of each matrix in the blocks."""
    found = []
    for name, m in block_linears(model):
        theirs = hub_name(name, True) if isinstance(model, Llama) else f"transformer.{name}"
        found.append(([f"base_model.model.{theirs}.lora_{part}.weight" for part in "AB"], m.weight))
    return found


def import_peft(folder, model):
    """The method in a PEFT adapter: LoRA, or for a prompt a HybridPrefix or a DeepPrefix."""
    file, weights = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    config = schemas.read_json(file, dict, "name a folder that PEFT's save_pretrained wrote")
    kind, c = config.get("peft_type"), model.config
    unknown = config.keys() - {*KNOWN, *(LORA_SETTINGS if kind == "LORA" else ())}
    allowed = {"peft_type": [*PEFT_PROMPTS, "LORA"]} | dict.fromkeys(sorted(unknown), NOTHING)
    schemas.check_settings({"peft_type": kind} | config, allowed, file)
    _, tensors = read_tensors(weights)
    if kind == "LORA":
        return import_lora(config, tensors, model, file)
    width = c.n_embd if PEFT_PROMPTS[kind] is HybridPrefix else 2 * c.n_layer * c.n_kv_head * c.head_dim
    rows = tensors.pop("prompt_embeddings", torch.empty(0)).float()  # (P, C) or (P, n_layer * 2 * n_kv_head * D)
    if tensors or rows.dim() != 2 or rows.size(1) != width:
        raise UserError(
            f"{weights}: prompt_embeddings is {tuple(rows.shape)} beside {list(tensors)}, a {kind} prompt for "
            f"{model.name} is {width} wide and nothing else: give the --model it was tuned on"
        )
    prompt = PEFT_PROMPTS[kind](model, n_random=len(rows))
    prompt.load_state_dict({name: rows for name in prompt.state_dict()})  # rows, and where they began
    return prompt.to(model.wte.weight.device)


@torch.no_grad()
def import_lora(config, tensors, model, file):
    """LoRA from a PEFT adapter. What the adapter leaves alone gets an update of zero."""
    schemas.check_settings(config, LORA_SETTINGS, file)
    config = schemas.decode(config, schemas.LoRAConfig, file, "export it again")
    rank, shapes = config["r"], {}
    for (A, B), weight in lora_names(model):
        shapes |= {A: (rank, weight.size(1)), B: (weight.size(0), rank)}
        if len({A, B} & tensors.keys()) == 1:
            raise UserError(f"{file.parent} has one of {A} and {B} alone: export or fetch it again")
    for name, t in tensors.items() or [("nothing", torch.empty(0))]:
        if shapes.get(name) != t.shape:
            asked = f"asks for {shapes[name]}" if name in shapes else "has no such update of its blocks"
            raise UserError(f"{file.parent}: {name} is {tuple(t.shape)}, {model.name} {asked}: give its --model")
    # Kalajdzievski (2023), "A Rank Stabilization Scaling Factor": alpha / sqrt(rank) in place of alpha / rank
    alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1)
    lora = LoRA(model, rank=rank, alpha=alpha)
    ours = lora_tensors(lora, model)
    for name, t in tensors.items():
        ours[name].copy_(t)
    return lora.to(model.wte.weight.device)


def save_merged(lora, model, folder):
    """Write the base with the updates of LoRA in its weights, of the base's types, and a copy of each file beside the
    base's weights: its configuration, tokenizer, chat template, card."""
    if lora.name != "lora" or has_text(lora, model):
        raise UserError(f"{lora.label} is more than weights: only --method lora without text in front can be merged")
    merged = lora.merged(model)
    for name, p in merged.named_parameters():
        p.data = p.data.to(model.stored[name])
    save_model(merged, folder, dtype=None)
    if model.folder.is_file():
        gguf.write_tokenizer(model.folder, folder)
        return
    for file in model.folder.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy(file, folder)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("what", choices=["export", "import", "merge"])
    p.add_argument("source", help="a run's folder or its prefix.safetensors; import: a PEFT adapter's folder")
    p.add_argument("target", help="what is written, a folder, or of import a file; it must not exist yet")
    p.add_argument("--model", help=f"the base (default: what the run was tuned on; import: {BUNDLED[0]})")
    args = p.parse_args(argv)
    source, target = Path(args.source), Path(args.target)
    check_unused(target)
    model = load_model(args.model or (BUNDLED[0] if args.what == "import" else base_of(source))).freeze()
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    if args.what == "import":
        method = import_peft(source, model)
        tokenizer.tokenize = "bpe"  # PEFT knows no other text than BPE
        save_prefix(method, target, model, tokenizer)
    else:
        method, _ = load_prefix(source / "prefix.safetensors" if source.is_dir() else source, model, tokenizer)
        (export_peft if args.what == "export" else save_merged)(method, model, target)
    print(f"wrote {f'{method.n_rows()} rows' if method.n_rows() else method.label} to {target}")


if __name__ == "__main__":
    run_main(main)
