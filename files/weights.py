"""Weights on disk: checkpoints by name, folder or file.

Everything is safetensors and JSON. Every file is written under a temporary name and renamed when it is complete.
"""

import hashlib
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from files import schemas
from files.errors import UserError
from files.safe import check_finite, write_json, write_tensors
from llama import Llama, LlamaConfig
from model import GPT, GPTConfig

BUNDLED = ("nano-2", "nano-prose")  # in data/, each with its card
HUB = {  # name -> repository and revision, so that the same name is the same weights tomorrow
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}


LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")  # the model_type of config.json that llama.py can run
SHARDS = "model.safetensors.index.json"
LLAMA_NAMES = (("embed_tokens.", "wte."), ("layers.", "h."), (".self_attn.", ".attn."))  # the hub's and ours


def fingerprint(model):
    """Sixteen hex digits of the weights, the same in float32 and bfloat16."""
    if hasattr(model, "fingerprint"):  # taken before the weights were split among processes
        return model.fingerprint
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()[:16]


def transposed(name):
    """The hub stores the matrices of a block as (in, out); nn.Linear holds (out, in)."""
    return name.startswith("h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def save_model(model, folder, dtype=torch.float32):
    """Write config.json and model.safetensors in the hub's layout, which transformers reads too."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {hub_name(n, model): (p.T if transposed(n) else p).to(dtype) for n, p in model.named_parameters()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", (llama_json if isinstance(model, Llama) else gpt2_json)(model.config))


def hub_name(name, model):
    """What the hub calls a parameter of ours."""
    if not isinstance(model, Llama) or name.startswith("lm_head."):
        return name
    for theirs, ours in LLAMA_NAMES:
        name = name.replace(ours, theirs, 1)
    return f"model.{name}"


def our_name(key):
    """What we call a stored tensor."""
    name = key.removeprefix("transformer.").removeprefix("model.")
    for theirs, ours in LLAMA_NAMES:
        name = name.replace(theirs, ours, 1)
    return name


def gpt2_json(c):
    return {
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


def llama_json(c):
    name = "Qwen3" if c.qk_norm else "Qwen2" if c.qkv_bias else "Llama"
    values = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    return {
        "model_type": name.lower(),
        "architectures": [f"{name}ForCausalLM"],
        "hidden_act": "silu",
        "max_position_embeddings": c.block_size,
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.n_embd,
        "head_dim": c.head_dim,
        "intermediate_size": c.n_inner,
        "rope_theta": c.rope_theta,
        "rope_scaling": {"rope_type": "llama3"} | dict(zip(values, c.rope_scaling)) if c.rope_scaling else None,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "bos_token_id": c.bos_token,
        "eos_token_id": c.eos_token,
    }


def load_model(source, device="cpu", dtype=torch.float32):
    """Read a checkpoint: a name of BUNDLED or HUB, another of the hub as OWNER/NAME or OWNER/NAME@REVISION, a folder as
    the hub and transformers write it, or one .safetensors file. config.json's model_type says which network it is, a
    GPT or a Llama. `model.folder` is where its tokenizer would lie.

    Tensors are read one by one, the largest first, and cast at once, so that memory never holds more than the loaded
    model and one small tensor. Raises UserError that names what is missing, broken, wrong-shaped or left over.
    """
    config_file, index = locate(source)
    config = read_config(config_file, index)
    stored = len({our_name(key).split(".")[1] for key in index if our_name(key).startswith("h.")})
    if config.n_layer > stored:  # before so many are made
        raise UserError(f"{config_file} says {config.n_layer} layers, the weights have {stored}: fetch both again")
    with torch.device("meta"), WithoutValues():
        model = Llama(config) if isinstance(config, LlamaConfig) else GPT(config)
    wanted = dict(model.named_parameters())
    tensors, head = {}, None
    for key, (file, shape) in sorted(index.items(), key=lambda item: -math.prod(item[1][1])):
        name = our_name(key)
        if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue  # the causal mask and the angles of rotary positions, which old checkpoints store
        if name not in wanted and name != "lm_head.weight":
            kind = "a model of the Llama family" if isinstance(model, Llama) else "GPT-2"
            raise UserError(f"{file} holds {key!r}, which {kind} does not have: it is another model")
        like = wanted[name if name in wanted else "wte.weight"]
        asked = tuple(like.shape[:: -1 if transposed(name) else 1])
        if shape != asked:
            raise UserError(f"{file}: {key!r} is {shape}, {config_file.name} asks for {asked}")
        with safe_open(file, framework="pt") as opened:  # memory-mapped, and unmapped again before the next
            t = opened.get_tensor(key)
        if not t.is_floating_point():
            raise UserError(f"{file}: {key!r} is of type {t.dtype}: weights are floating-point numbers")
        if name not in wanted:
            head = t[:: max(1, len(t) // 512)].clone(), file
            continue
        tensors[name] = torch.empty(like.shape, dtype=dtype, device=device).copy_(t.T if transposed(name) else t)
        check_finite(tensors[name], key, file)
    if missing := sorted(wanted.keys() - tensors.keys()):
        lacks = f"{source} lacks {len(missing)} tensors, first {hub_name(missing[0], model)!r}"
        raise UserError(f"{lacks}: fetch it again")
    model.load_state_dict(tensors, assign=True)
    if head is not None:  # some store the head beside the embedding table: it has to be the same
        rows = model.wte.weight[:: max(1, config.vocab_size // 512)]
        if not torch.equal(rows, head[0].to(rows)):
            raise UserError(
                f"{head[1]} has a head that is not its embedding table: only tied heads are supported where "
                f"{config_file.name} does not say tie_word_embeddings = false"
            )
    model.folder = config_file.parent
    model.name = str(source) if on_the_hub(source) else model.folder.resolve().name
    return model


class WithoutValues(TorchFunctionMode):
    """Lets a network be made on the meta device without `normal_`, which imports torch's compiler there. That takes
    several times as long as reading a small base."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not nn.init.normal_:  # nothing uses what that returns
            return func(*args, **(kwargs or {}))


def on_the_hub(source):
    """Whether a name is one that the hub knows, with or without a revision: OWNER/NAME@REVISION."""
    name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?", str(source))
    return (source in HUB or name is not None) and not Path(source).exists()


def locate(source):
    """The config.json of a checkpoint, and {stored name: (file, shape)} over its weight files."""
    folder, name = Path(source), "model.safetensors"
    if source in BUNDLED:
        folder = Path(__file__).parent.parent / "data" / source
    elif on_the_hub(source):
        folder = fetch(source, name)
    elif folder.suffix == ".safetensors":
        folder, name = folder.parent, folder.name
    elif not folder.is_dir():
        names = ", ".join([*BUNDLED, *HUB])
        raise UserError(
            f"no model {str(source)!r}: give {names}, the hub's OWNER/NAME, a checkpoint's folder or its .safetensors "
            "file"
        )
    parts = [folder / name]
    if not parts[0].is_file() and (folder / SHARDS).is_file():
        parts = [folder / file for file in shards(folder / SHARDS)]
    index = {}
    for part in parts:
        if not part.is_file():
            raise UserError(f"no {part.name} in {folder}: a model is a folder with config.json and {name}")
        try:
            with safe_open(part, framework="pt") as file:
                index |= {key: (part, tuple(file.get_slice(key).get_shape())) for key in file.keys()}
        except SafetensorError as error:
            raise UserError(f"{part} cannot be read ({error}): fetch it again") from None
    return folder / "config.json", index


def shards(path):
    """The file names of a checkpoint in shards, from its index. Raises UserError."""
    names = sorted(set(schemas.read_json(path, schemas.ShardIndex)["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{path} names {name!r}, but a shard lies beside its index: fetch it again")
    return names


def fetch(source, name):
    """The folder of the hub's cache in which a repository's files lie, downloaded where they were not yet. Gated ones
    take the hub's own login (`hf auth login`, or HF_TOKEN)."""
    from huggingface_hub import hf_hub_download  # imported here, so that --help need not wait for it
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError
    from huggingface_hub.utils import logging

    repository, _, revision = source.partition("@")
    repository, revision = HUB.get(source, (repository, revision or None))
    logging.set_verbosity_error()  # its retries would bury the one line below
    try:
        for file in ["config.json"] + ["tokenizer.json"] * (source not in HUB):
            folder = Path(hf_hub_download(repository, file, revision=revision)).parent
        try:
            hf_hub_download(repository, name, revision=revision)
        except EntryNotFoundError:  # it is in shards, or not to be had
            if source in HUB:
                raise
            file = SHARDS
            index = Path(hf_hub_download(repository, file, revision=revision))
            for file in shards(index):
                hf_hub_download(repository, file, revision=revision)
    except GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then log in with "
            "`hf auth login`"
        ) from None
    except RemoteEntryNotFoundError:
        raise UserError(f"the hub's {repository} has no {file}: name another base") from None
    except (OSError, HfHubHTTPError) as error:
        files = f"config.json and {name}" if source in HUB else f"config.json, tokenizer.json and {name} or its shards"
        raise UserError(
            f"cannot fetch {source} ({type(error).__name__}), and it is no folder: go online once, or put {files} of "
            f"the hub's {repository} into a folder and name that with --model"
        ) from None
    return folder


def read_config(path, index):
    """GPTConfig or LlamaConfig of a config.json, or GPTConfig, where there is none, of the tensors' shapes."""
    if not path.is_file():
        return gpt2_config_of_shapes(path.parent, index)
    kind = schemas.read_json(path, schemas.ModelType).get("model_type", "gpt2")
    if kind not in ("gpt2", *LLAMA_FAMILY):
        known = ", ".join(("gpt2", *LLAMA_FAMILY))
        raise UserError(f"{path} says model_type = {kind!r}: only {known} can be loaded")
    remedy = "only GPT-2 and Llama checkpoints can be loaded"
    if kind == "gpt2":
        return gpt2_config(path, schemas.read_json(path, schemas.GPT2Json, remedy))
    return llama_config(path, schemas.read_json(path, schemas.LlamaJson, remedy))


def gpt2_config_of_shapes(folder, index):
    shapes = {our_name(key): shape for key, (_, shape) in index.items()}
    try:
        (vocab_size, n_embd), block_size = shapes["wte.weight"], shapes["wpe.weight"][0]
    except (KeyError, ValueError):
        raise UserError(f"no config.json in {folder}, and its weights are not GPT-2's: name another") from None
    if n_embd % 64:
        raise UserError(f"no config.json in {folder}: it says how many heads share {n_embd} columns")
    n_layer = len({key.split(".")[1] for key in shapes if key.startswith("h.")})
    return GPTConfig(vocab_size, block_size, n_layer, n_embd // 64, n_embd)  # a head of GPT-2 is 64 wide


def gpt2_config(path, c):
    config = GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"])
    if config.n_embd % config.n_head:
        raise UserError(f"{path}: n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
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
            raise UserError(f"{path} says {key} = {c[key]!r}: only GPT-2's own {allowed[0]!r} is supported")
    return config


def llama_config(path, c):
    kind = c["model_type"]
    # transformers 5 writes rope_parameters, and what was written before has rope_theta and rope_scaling
    rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta", 10000.0)} | (c.get("rope_scaling") or {})
    positions = rope.get("rope_type", rope.get("type", "default"))
    stated = c | {"rope_type": positions, "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0)}
    same = {  # settings under which the same weights would mean another network
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_type": ("default", "llama3"),
        "partial_rotary_factor": (1.0,),
        "quantization_config": (None,),
    }
    for key, allowed in same.items():
        if stated.get(key, allowed[0]) not in allowed:
            only = " and ".join(map(repr, allowed))
            raise UserError(f"{path} says {key} = {stated[key]!r}: only {only} is supported in the Llama family")
    scaling = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    if missing := {"rope_theta", *(scaling if positions == "llama3" else ())} - rope.keys():
        raise UserError(f"{path} has no {min(missing)}, which says how positions turn: fetch it again")
    if positions == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise UserError(f"{path} says high_freq_factor <= low_freq_factor: fetch it again")
    # within its window a position sees everything before it, so that no text may be longer
    windowed = kind == "mistral" or c.get("use_sliding_window")
    window = c.get("sliding_window", 4096) if windowed else None
    ends = c.get("eos_token_id") or 0
    eos = ends[0] if isinstance(ends, list) else ends  # chat models have several
    bos = c.get("bos_token_id") if isinstance(c.get("bos_token_id"), int) else eos
    config = LlamaConfig(
        vocab_size=c["vocab_size"],
        block_size=min(c["max_position_embeddings"], window or math.inf),
        n_layer=c["num_hidden_layers"],
        n_head=c["num_attention_heads"],
        n_kv_head=c.get("num_key_value_heads") or c["num_attention_heads"],
        n_embd=c["hidden_size"],
        head_dim=c.get("head_dim") or (128 if kind == "qwen3" else c["hidden_size"] // c["num_attention_heads"]),
        n_inner=c["intermediate_size"],
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=tuple(rope[key] for key in scaling) if positions == "llama3" else (),
        norm_eps=c.get("rms_norm_eps", 1e-6),
        tied=c.get("tie_word_embeddings", False),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        bos_token=bos if bos < c["vocab_size"] else 0,
        eos_token=eos if eos < c["vocab_size"] else 0,
    )
    if config.n_head % config.n_kv_head or config.head_dim % 2 or config.head_dim == 0:
        heads = f"{config.n_head} heads of {config.head_dim}, {config.n_kv_head} of keys and values"
        raise UserError(f"{path} says {heads}: these have to share the former, and their width is even")
    return config
