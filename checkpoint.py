"""Weights and prompts on disk: GPT-2 checkpoints by name, folder or file, and the files of trained prompts.

Everything is safetensors and JSON. Every file is written under a temporary name and renamed when it is complete.
"""

import hashlib
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model import GPT, GPTConfig
from prefix import METHODS

BUNDLED = ("nano", "nano-1m", "nano-11m", "nano-1m-bytes")  # in data/, each with its card
HUB = {  # name -> repository and revision, so that the same name is the same weights tomorrow
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}


# ---------------------------------------------------------------- writing


@contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to the temporary path; it then takes the place of `path`.

    No reader sees half a file. If the block raises, the file that was there stays and the temporary one is removed.
    """
    path = Path(path)
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path, tensors, metadata):
    """Write safetensors: {name: tensor} and {name: text}."""
    with replacing(path) as temporary:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary, metadata=metadata)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_tensors(path):
    """(header, {name: tensor}) of a safetensors file. Raises ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is no safetensors file, or it was cut off") from None


# ---------------------------------------------------------------- GPT-2 checkpoints


def fingerprint(model):
    """Sixteen hex digits of the weights, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()[:16]


def transposed(name):
    """The hub stores the matrices of a block as (in, out); nn.Linear holds (out, in)."""
    return name.startswith("h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def save_model(model, folder, dtype=torch.float32):
    """Write config.json and model.safetensors in the hub's GPT-2 layout, which transformers reads too."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: (p.T if transposed(n) else p).to(dtype) for n, p in model.named_parameters()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    c = model.config
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_positions": c.block_size,
        "vocab_size": c.vocab_size,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
    }
    write_json(folder / "config.json", config)


def load_model(source, device="cpu", dtype=torch.float32):
    """Read a GPT-2 checkpoint: a name of BUNDLED or HUB, a folder as the hub and transformers write it, or one
    .safetensors file. `model.folder` is where its tokenizer would lie.

    Tensors are read one by one, the largest first, and cast at once, so that memory never holds more than the loaded
    model and one small tensor. Raises ValueError that names what is missing, broken, wrong-shaped or left over.
    """
    config_file, index = locate(source)
    config = read_config(config_file, index)
    with torch.device("meta"):
        model = GPT(config)
    wanted = dict(model.named_parameters())
    tensors, head = {}, None
    for key, (file, shape) in sorted(index.items(), key=lambda item: -math.prod(item[1][1])):
        name = key.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the causal mask, which old checkpoints store
        if name not in wanted and name != "lm_head.weight":
            raise ValueError(f"{file} holds {key!r}, which GPT-2 does not have: it is another model")
        with safe_open(file, framework="pt") as opened:  # memory-mapped, and unmapped again before the next
            t = opened.get_tensor(key)
        if name == "lm_head.weight":
            head = t[:: max(1, len(t) // 512)].clone(), file
            continue
        t = t.T if transposed(name) else t
        if t.shape != wanted[name].shape:
            asked = tuple(wanted[name].shape[:: -1 if transposed(name) else 1])
            raise ValueError(f"{file}: {key!r} is {tuple(shape)}, {config_file.name} asks for {asked}")
        tensors[name] = torch.empty(t.shape, dtype=dtype, device=device).copy_(t)
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{source} lacks {len(missing)} tensors, first {missing[0]!r}: fetch it again")
    model.load_state_dict(tensors, assign=True)
    if head is not None:  # some store the head beside the embedding table: it has to be the same
        rows = model.wte.weight[:: max(1, config.vocab_size // 512)]
        if not torch.equal(rows, head[0].to(rows)):
            raise ValueError(f"{head[1]} has a head that is not its embedding table: only tied heads are supported")
    model.folder = config_file.parent
    model.name = source if source in HUB else model.folder.resolve().name
    return model


def locate(source):
    """The config.json of a checkpoint, and {stored name: (file, shape)} over its weight files."""
    folder, name = Path(source), "model.safetensors"
    if source in BUNDLED:
        folder = Path(__file__).parent / "data" / source
    elif source in HUB and not folder.exists():
        folder = fetch(source, name)
    elif folder.suffix == ".safetensors":
        folder, name = folder.parent, folder.name
    elif not folder.is_dir():
        names = ", ".join([*BUNDLED, *HUB])
        raise ValueError(f"no model {str(source)!r}: give {names}, a checkpoint's folder or its .safetensors file")
    parts = [folder / name]
    shards = folder / "model.safetensors.index.json"
    if not parts[0].is_file() and shards.is_file():
        try:
            parts = [folder / file for file in sorted(set(json.loads(shards.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{shards} is no index of shards ({error!r}): fetch it again") from None
    index = {}
    for part in parts:
        if not part.is_file():
            raise ValueError(f"no {part.name} in {folder}: a model is a folder with config.json and {name}")
        try:
            with safe_open(part, framework="pt") as file:
                index |= {key: (part, tuple(file.get_slice(key).get_shape())) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{part} cannot be read ({error}): fetch it again") from None
    return folder / "config.json", index


def fetch(source, name):
    """The folder of the hub's cache in which the files of a HUB name lie, downloaded where they were not yet."""
    from huggingface_hub import hf_hub_download  # imported here, so that --help need not wait for it
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    repository, revision = HUB[source]
    logging.set_verbosity_error()  # its retries would bury the one line below
    try:
        for file in ("config.json", name):
            folder = Path(hf_hub_download(repository, file, revision=revision)).parent
    except (OSError, HfHubHTTPError) as error:
        raise ValueError(
            f"cannot fetch {source} ({type(error).__name__}): go online once, or put config.json and {name} "
            f"of the hub's {repository} into a folder and name that with --model"
        ) from None
    return folder


def read_config(path, index):
    """GPTConfig of a config.json, or, where there is none, of the tensors' shapes."""
    shapes = {key.removeprefix("transformer."): shape for key, (_, shape) in index.items()}
    if not path.is_file():
        try:
            (vocab_size, n_embd), block_size = shapes["wte.weight"], shapes["wpe.weight"][0]
        except (KeyError, ValueError):
            raise ValueError(
                f"no config.json in {path.parent}, and its weights are not GPT-2's: name another"
            ) from None
        if n_embd % 64:
            raise ValueError(f"no config.json in {path.parent}: it says how many heads share {n_embd} columns")
        n_layer = len({key.split(".")[1] for key in shapes if key.startswith("h.")})
        return GPTConfig(vocab_size, block_size, n_layer, n_embd // 64, n_embd)  # a head of GPT-2 is 64 wide
    try:
        c = json.loads(path.read_text())
        config = GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch the checkpoint again") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no {error}: only GPT-2 checkpoints can be loaded") from None
    same = {  # settings under which the same weights would mean another network
        "activation_function": ("gelu_new",),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * config.n_embd),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, allowed in same.items():
        if c.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path} says {key} = {c[key]!r}: only GPT-2's own {allowed[0]!r} is supported")
    return config


# ---------------------------------------------------------------- trained prompts


def save_prefix(method, path, model, tokenizer, task="", trigger="", question_format="{}", stop=""):
    """Write what was trained. The header says which base, tokenizer, task and trigger it belongs to, how a question
    is put (`question_format`, with {} for it) and what ends its answer ('': the end-of-text token)."""
    header = {
        "format": "nanoprompt prefix",
        "method": method.name,
        "init_kwargs": json.dumps(method.init_kwargs),
        "base": model.name,
        "base_fingerprint": fingerprint(model),
        "tokenizer": tokenizer.name,
        "tokenize": tokenizer.tokenize,
        "task": task,
        "trigger": trigger,
        "question_format": question_format,
        "stop": stop,
    }
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    write_tensors(path, {n: t for n, t in method.state_dict().items() if n not in frozen}, header)


def load_prefix(path, model, tokenizer):
    """(method, header) from a file. Raises ValueError where it is broken or for another base or tokenizer.

    Whether the text of its task is bytes or BPE, header["tokenize"], is for the caller to follow.
    """
    if not Path(path).is_file():
        raise ValueError(f"no prefix file {path}: train_task.py writes prefix.safetensors into its run's folder")
    header, tensors = read_tensors(path)
    header = todays_words(header)
    if header.get("format") != "nanoprompt prefix" or "init_kwargs" not in header:
        raise ValueError(f"{path} is no prefix: name the prefix.safetensors of a run")
    if header["base_fingerprint"] != fingerprint(model):
        tuned_on = f"{header['base']!r} ({header['base_fingerprint']})"
        raise ValueError(f"{path} was tuned on the base {tuned_on}, not on {model.name!r} ({fingerprint(model)})")
    if header["tokenizer"] != tokenizer.name:
        raise ValueError(f"{path} was tuned with the tokenizer {header['tokenizer']}, not with {tokenizer.name}")
    method = METHODS[header["method"]](model, **json.loads(header["init_kwargs"]))
    method.shots = tensors.get("shots")
    missing, unknown = method.load_state_dict(tensors, strict=False)
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    if unknown or trained & set(missing):
        raise ValueError(f"{path} is no complete {header['method']}: train it again")
    return method.to(model.wte.weight.device), header


def todays_words(header):
    """The header of a prompt's file, with what the first version called otherwise."""
    renamed = {"made_with": "init_kwargs", "tokenise": "tokenize", "form": "question_format"}
    header = {renamed.get(key, key): value for key, value in header.items()}
    if header.get("tokenize") == "letters":
        header["tokenize"] = "bytes"
    if header.get("method") == "instruct":
        header["method"] = "text"
    if "init_kwargs" in header:
        header["init_kwargs"] = header["init_kwargs"].replace('"place":', '"position":')
    return header
