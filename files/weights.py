"""The base's weights on disk: checkpoints by name, folder or file, as the hub and transformers write them."""

import hashlib
import math
import re
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from files import gguf_reader, schemas
from files.errors import UserError, saying
from files.safe import check_finite, pickles, write_json, write_tensors
from llama import Llama, LlamaConfig
from model import GPT, GPTConfig

BUNDLED = ("nano-2", "smollm2")  # in data/, with its card; in a pip package
HUB = {  # name -> repository and revision, so that the same name is the same weights tomorrow
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}
SHARDS = "model.safetensors.index.json"
LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")  # the model_type of config.json that llama.py can run
GPT2_KEYS = {"n_positions": "block_size"} | {key: key for key in ("vocab_size", "n_layer", "n_head", "n_embd")}
LLAMA_KEYS = {  # what config.json calls a size, and what LlamaConfig does
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "n_embd",
    "head_dim": "head_dim",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
}
LLAMA_NAMES = (("embed_tokens.", "wte."), ("layers.", "h."), (".self_attn.", ".attn."))  # the hub's and ours
# what torch.compile, data parallelism, FSDP, checkpointed activations and PEFT put into the names of what they hold
WRAPPERS = r"\b(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)\."
ROPE_SCALING = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # which old checkpoints store beside the weights
FIXED = {  # settings of config.json with which the same weights would mean another network, and what is computed here
    "activation_function": ["gelu_new"],
    "layer_norm_epsilon": [1e-5],
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "add_cross_attention": [False],
    "hidden_act": ["silu"],
    "attention_bias": [False],
    "mlp_bias": [False],
    "rope_type": ["default", "llama3"],
    "partial_rotary_factor": [1.0],
    "quantization_config": [None],
}


def load_model(source, device="cpu", dtype=torch.float32):
    """The GPT or Llama of a checkpoint: a name of BUNDLED or HUB, another of the hub as OWNER/NAME or
    OWNER/NAME@REVISION, a folder with config.json, one .safetensors file, or one .gguf file. `model.folder` is where
    the tokenizer's files lie, a folder or the .gguf file.

    Tensors are read one by one, the largest first, and cast at once, so that memory never holds more than the loaded
    model and one small tensor. Raises UserError that names what is missing, broken, of another shape or unknown.
    """
    config_file, stated, index = locate(source)
    config = read_config(config_file, stated)
    with torch.device("meta"), WithoutValues():
        model = Llama(config) if isinstance(config, LlamaConfig) else GPT(config)
    wanted, tensors, model.stored = dict(model.named_parameters()), {}, {}
    head = None if "lm_head.weight" in wanted else index.pop("lm_head.weight", None)
    if head:  # stored beside the embedding table, which is the head of this network, or instead of it
        index.setdefault("wte.weight", head)
    if fault := first_fault(source, config_file, index, wanted):
        raise UserError(fault)
    for name, (file, key, shape, _, read) in sorted(index.items(), key=lambda item: -math.prod(item[1][2])):
        t = read()
        model.stored[name] = t.dtype if t.itemsize > 1 else torch.bfloat16  # as which a merged base is written
        tensors[name] = torch.empty(shape, dtype=dtype, device=device).copy_(t)
        check_finite(tensors[name], key, file)
    model.load_state_dict(tensors, assign=True)
    if head:  # it has to be the same
        file, *_, read = head
        if not torch.equal(read().to(device, dtype), model.wte.weight):
            raise UserError(f"{file}: the head is not its embedding table: untie a Llama's in {config_file.name}")
    model.folder, name = config_file.parent, config_file.parent.resolve().name
    if gguf_reader.is_gguf(config_file):
        model.folder, name = config_file, config_file.name.removesuffix(".gguf")
    model.name = str(source) if on_the_hub(source) or source in BUNDLED else name
    return model


def first_fault(source, config_file, index, wanted):
    """What is wrong with the names, shapes and types of stored tensors, in one line; None where all are as wanted."""
    is_llama = "wpe.weight" not in wanted
    for name, (file, key, shape, dtype, _) in index.items():
        if name not in wanted:
            kind = "a model of the Llama family" if is_llama else "GPT-2"
            return f"{file} holds {key!r}, which {kind} does not have: is it another model, or inside of one?"
        asked = tuple(wanted[name].shape)
        if shape != asked or "F" not in dtype and dtype not in gguf_reader.TYPES:  # F32, BF16, F8_E4M3; Q4_1
            return f"{file}: {key!r} is {shape} of type {dtype}, {config_file.name} asks for {asked} of floating point"
    if missing := sorted(wanted.keys() - index.keys()):
        remedy = "name its folder if it is one of several files" if Path(source).is_file() else "fetch it again"
        return f"{source} lacks {len(missing)} tensors, first {hub_name(missing[0], is_llama)!r}: {remedy}"
    return None


def save_model(model, folder, dtype=torch.float32):
    """Write config.json and model.safetensors in the hub's layout, which transformers reads too. None for dtype: as the
    weights are."""
    folder, is_llama = Path(folder), isinstance(model, Llama)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: (p.T if transposed(n) else p).to(dtype=dtype) for n, p in model.named_parameters()}
    tensors = {hub_name(name, is_llama): t for name, t in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", config_json(model))


def fingerprint(model):
    """Sixteen hex digits of the weights, the same in float32 and bfloat16."""
    if hasattr(model, "fingerprint"):  # taken before the weights were split among processes
        return model.fingerprint
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().to(torch.bfloat16).contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()[:16]


class WithoutValues(TorchFunctionMode):
    """Lets a network be made on the meta device without `normal_`, which imports torch's compiler there. That takes
    several times as long as reading a small base."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not nn.init.normal_:  # nothing uses what that returns
            return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------- names


def transposed(name):
    """The hub stores the matrices of GPT-2's blocks as (in, out); nn.Linear holds (out, in)."""
    return name.startswith("h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def hub_name(name, is_llama):
    """What the hub calls a parameter of ours."""
    if not is_llama or name.startswith("lm_head."):
        return name
    for theirs, ours in LLAMA_NAMES:
        name = name.replace(ours, theirs, 1)
    return f"model.{name}"


def our_name(key):
    """What we call a stored tensor."""
    name = re.sub(WRAPPERS, "", key).removeprefix("transformer.").removeprefix("model.")
    for theirs, ours in LLAMA_NAMES:
        name = name.replace(theirs, ours, 1)
    return name


# ---------------------------------------------------------------- files


def on_the_hub(source):
    """Whether a name is one that the hub knows, with or without a revision: OWNER/NAME@REVISION."""
    name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?", str(source))
    return (source in HUB or name is not None) and not Path(source).exists()


def locate(source):
    """(the file that states the sizes, what it states in the hub's words, {our name: (file, stored name, shape, type,
    function that reads it)} over the weight files) of a checkpoint."""
    folder, name = Path(source), "model.safetensors"
    if source == "smollm2" or gguf_reader.is_gguf(folder):
        path = gguf_reader.smollm2() if source == "smollm2" else folder
        return path, *gguf_reader.locate(path)
    if source in BUNDLED:
        folder = Path(__file__).parent.parent / "data" / source
    elif on_the_hub(source):
        folder = fetch(source)
    elif folder.suffix == ".safetensors":
        folder, name = folder.parent, folder.name
    elif not folder.is_dir():
        names = ", ".join([*BUNDLED, *HUB])
        raise UserError(f"no model {str(source)!r}: give {names}, OWNER/NAME, a folder, a .safetensors or .gguf file")
    is_sharded = not (folder / name).is_file() and (folder / SHARDS).is_file()
    index = {}
    for part in [folder / file for file in (shards(folder / SHARDS) if is_sharded else [name])]:
        if not part.is_file():
            remedy = pickles(folder) or f"a model is a folder with config.json and {name}"
            raise UserError(f"no {part.name} in {folder}: {remedy}")
        try:
            with safe_open(part, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    stored = file.get_slice(key)
                    if key.endswith(BUFFERS):
                        continue
                    ours, shape = our_name(key), tuple(stored.get_shape())
                    if (other := index.get(ours)) is not None:
                        raise UserError(f"{part} holds {key!r} beside {other[1]!r}: it is more than one model")
                    read = partial(read_stored, part, key, transposed(ours))
                    index[ours] = part, key, shape[:: -1 if transposed(ours) else 1], stored.get_dtype(), read
        except SafetensorError as error:
            raise UserError(f"{part} cannot be read ({error}): fetch it again") from None
    return folder / "config.json", schemas.read_json(folder / "config.json", dict), index


def read_stored(file, key, transpose):
    """A tensor of a safetensors file, which is memory-mapped, and unmapped again before the next."""
    with safe_open(file, framework="pt") as opened:
        t = opened.get_tensor(key)
    return t.T if transpose else t


def shards(path):
    """The file names of a checkpoint in shards, from its index. They lie beside it, whatever the index says."""
    return sorted({Path(name).name for name in schemas.read_json(path, schemas.ShardIndex)["weight_map"].values()})


def fetch(source):
    """The folder of the hub's cache in which a repository's files lie, downloaded where they were not yet. Gated ones
    take the hub's own login (`hf auth login`, or HF_TOKEN)."""
    from huggingface_hub import hf_hub_download  # imported here, so that --help need not wait for it
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from huggingface_hub.utils import logging

    repository, _, revision = source.partition("@")
    repository, revision = HUB.get(source, (repository, revision or None))
    logging.set_verbosity_error()  # its retries would bury the one line below
    left = ["config.json", *(["tokenizer.json"] if source not in HUB else []), "model.safetensors"]
    try:
        while left:
            file = left.pop(0)
            try:
                with saying(f"fetching {file} of {repository} from the hub ..."):
                    path = Path(hf_hub_download(repository, file, revision=revision))
            except EntryNotFoundError:
                if file != "model.safetensors":
                    raise
                left = [SHARDS]  # the weights are in several files
            else:
                left += shards(path) if file == SHARDS else []
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"cannot fetch {file} of {source} ({type(error).__name__}), and it is no folder: go online once; if it is "
            f"gated, accept its terms on https://huggingface.co/{repository} and log in with `hf auth login`; or put "
            f"config.json, tokenizer.json and the weights of {repository} into a folder and name that with --model"
        ) from None
    return path.parent


# ---------------------------------------------------------------- config.json


def config_json(model):
    """What config.json says of a model, in the hub's words."""
    c, keys = model.config, GPT2_KEYS
    own = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    own |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    if isinstance(model, Llama):
        name, keys = "Qwen3" if c.qk_norm else "Qwen2" if c.qkv_bias else "Llama", LLAMA_KEYS
        own = {"model_type": name.lower(), "architectures": [f"{name}ForCausalLM"], "hidden_act": "silu"}
        scaling = {"rope_type": "llama3"} | dict(zip(ROPE_SCALING, c.rope_scaling)) if c.rope_scaling else None
        own |= {"rope_theta": c.rope_theta, "rope_scaling": scaling}
    return own | {theirs: getattr(c, ours) for theirs, ours in keys.items()}


def read_config(path, stated):
    """GPTConfig or LlamaConfig of what a config.json states, or a GGUF file in its words."""
    schemas.check_settings(stated, {"model_type": ["gpt2", *LLAMA_FAMILY]}, path)
    is_llama = stated.get("model_type", "gpt2") != "gpt2"
    config = (llama_config if is_llama else gpt2_config)(path, stated)
    is_even = config.head_dim % 2 == 0 if is_llama else config.n_head * config.head_dim == config.n_embd
    if not is_even or not config.head_dim or config.n_head % config.n_kv_head:
        heads = f"n_head {config.n_head} in n_embd {config.n_embd}, {config.n_kv_head} heads of keys and values"
        raise UserError(f"{path} says {heads}, {config.head_dim} wide: these do not fit together, fetch it again")
    return config


def gpt2_config(path, stated):
    c = schemas.decode(stated, schemas.GPT2Json, path, "fetch it again")
    schemas.check_settings(stated, FIXED | {"n_inner": [None, 4 * c["n_embd"]], "tie_word_embeddings": [True]}, path)
    return GPTConfig(**{ours: c[theirs] for theirs, ours in GPT2_KEYS.items()})


def llama_config(path, stated):
    c = schemas.decode(stated, schemas.LlamaJson, path, "fetch it again")
    # transformers 5 writes rope_parameters, and what was written before has rope_theta and rope_scaling
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    rope = {"rope_theta": c.get("rope_theta", 10000.0), "rope_type": rope.get("type", "default")} | rope
    schemas.check_settings(stated | rope, FIXED, path)
    scaling = ROPE_SCALING if rope["rope_type"] == "llama3" else ()
    missing = set(scaling) - rope.keys()
    if missing or scaling and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise UserError(f"{path} has no {min(missing or scaling)} that says how positions turn: fetch it again")
    kind, n_head, window = c["model_type"], c["num_attention_heads"], c.get("sliding_window", 4096)
    defaults = {"num_key_value_heads": n_head, "head_dim": 128 if kind == "qwen3" else c["hidden_size"] // n_head}
    defaults |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    c = defaults | {key: value for key, value in c.items() if value is not None}
    ends = c.get("eos_token_id") or 0
    eos = ends[0] if isinstance(ends, list) else ends  # chat models have several
    bos = c["bos_token_id"] if isinstance(c.get("bos_token_id"), int) else eos
    c |= {"bos_token_id": bos if bos < c["vocab_size"] else 0, "eos_token_id": eos if eos < c["vocab_size"] else 0}
    if kind == "mistral" or c.get("use_sliding_window"):  # within its window a position sees everything before it
        c["max_position_embeddings"] = min(c["max_position_embeddings"], window or math.inf)
    return LlamaConfig(
        **{ours: c[theirs] for theirs, ours in LLAMA_KEYS.items()},
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=tuple(rope[key] for key in scaling),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )
