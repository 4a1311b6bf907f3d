"""What the files that are read have to look like: a schema for each kind of JSON, checked by msgspec.

A file comes from anywhere, so whatever reads one calls `read_json` with its schema, or `read_bytes`. Both raise
UserError for what is no regular file, what is too large, what is not JSON and what has other types or sizes than its
schema says. Keys that a schema does not name are left out of what is returned.
"""

import inspect
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from files.errors import UserError

JSON_LIMIT = 2**25  # bytes of a JSON file: four times the largest that is written here or by the hub's small models
TOKENIZER_LIMIT = 2**27  # bytes of a tokenizer.json: the hub's larger vocabularies take 30 MB
DATA_LIMIT = 2**28  # bytes of a data set, which is held in memory

Size = Annotated[int, Meta(ge=1, le=2**24)]
Layers = Annotated[int, Meta(ge=1, le=256)]
Positive = Annotated[float, Meta(ge=1e-3, le=1e12)]
Count = Annotated[int, Meta(ge=0)]
Token = Annotated[int, Meta(ge=0, lt=2**24)]
# of a variant of a task its name, stop, tokenize and ranges
Variant = tuple[str, Annotated[str, Meta(min_length=1)], Literal["bytes", "bpe"], dict[str, tuple[int, int]]]


def keys(names, kind):
    """{name: type} for some names of one type, in one text."""
    return dict.fromkeys(names.split(), kind)


# config.json of a GPT-2 and of the Llama family, with the hub's names
GPT2Json = TypedDict("GPT2Json", {"n_layer": Layers} | keys("vocab_size n_positions n_head n_embd", Size))
Rope = TypedDict(
    "Rope",
    keys("rope_theta factor low_freq_factor high_freq_factor", NotRequired[Positive])
    | keys("rope_type type", NotRequired[str])
    | {"partial_rotary_factor": NotRequired[float], "original_max_position_embeddings": NotRequired[Size]},
)
LlamaJson = TypedDict(
    "LlamaJson",
    {"model_type": str, "num_hidden_layers": Layers}
    | keys("vocab_size max_position_embeddings num_attention_heads hidden_size intermediate_size", Size)
    | keys("num_key_value_heads head_dim sliding_window", NotRequired[Size | None])
    | keys("rope_scaling rope_parameters", NotRequired[Rope | None])
    | keys("bos_token_id eos_token_id", NotRequired[Token | list[Token] | None])
    | keys("tie_word_embeddings use_sliding_window", NotRequired[bool | None])
    | {"rope_theta": NotRequired[Positive], "rms_norm_eps": NotRequired[Annotated[float, Meta(ge=0, lt=1)]]},
)


class TextJson(TypedDict):
    """The part of config.json and generation_config.json that says where a text ends."""

    model_type: NotRequired[str]
    eos_token_id: NotRequired[int | list[int] | None]


class ShardIndex(TypedDict):
    """model.safetensors.index.json: the file in which each tensor lies."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


class Encoding(TypedDict):
    """encoding.json: a byte-level BPE. A character of a token is a byte, and its place in the list its number."""

    name: str
    pattern: str
    tokens: list[Annotated[str, Meta(pattern=r"\A[\x00-\xff]+\Z")]]


class LoRAConfig(TypedDict):
    """The part of PEFT's adapter_config.json that says what a LoRA is."""

    r: Size
    lora_alpha: Annotated[float, Meta(ge=0, le=1e6)]
    use_rslora: NotRequired[bool]


# the metadata of safetensors files, in which every value is text
TranslatorHeader = TypedDict(
    "TranslatorHeader", {"format": Literal["nanoprompt translator"]} | keys("base base_fingerprint", str)
)
PrefixHeader = TypedDict(
    "PrefixHeader",
    {"format": Literal["nanoprompt prefix"], "tokenize": Literal["bytes", "bpe", "special"]}
    | keys("method init_kwargs base base_fingerprint tokenizer task trigger stop init_from", str)
    | {"question_format": Annotated[str, Meta(pattern=r"\{\}")]},  # {} for the question
)


class Run(TypedDict):
    """The part of results.json that says how it was made."""

    args: TypedDict("Arguments", {"model": str})


class RecordedRun(TypedDict):
    """The part of results.json that research/reproduce.py reads."""

    command: str
    record: dict


Accuracy = dict[str, dict[str, TypedDict("Score", {"correct": Count, "n": Size})]]  # by method and range


class Results(Run):
    """The part of results.json that studies read."""

    task: str
    accuracy: Accuracy
    before: Accuracy
    trainable: dict[str, Count]
    seconds: dict[str, float]


class Context(TypedDict):
    """The best context of a run in results.json, which a resumed run does not search for again."""

    text: str
    shots: Count
    lengths: str
    exact_match: Count
    n: Count
    loss: float


def read_bytes(path, limit=JSON_LIMIT):
    """The content of a regular file of at most `limit` bytes: a pipe or a device might never end."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: name another")
    if path.stat().st_size > limit:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes: at most {limit:,} are read")
    return path.read_bytes()


def read_text(path):
    """The content of a UTF-8 file, without its byte order mark, with the line ends of any system as a line break."""
    try:
        text = read_bytes(path, DATA_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as that") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path, schema, remedy="fetch it again"):
    """The content of a JSON file, as plain dicts and lists that follow the schema."""
    return decode(read_bytes(path), schema, path, remedy)


def decode(value, schema, name, remedy):
    """JSON text, or a value that is parsed already, as `schema` has it. `name` and `remedy` are for the message."""
    try:
        if isinstance(value, str | bytes):
            return msgspec.json.decode(value, type=schema)
        return msgspec.convert(value, schema)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: {error}: {remedy}") from None


def check_settings(stated, allowed, name):
    """Raise UserError for a setting with another value than those of `allowed`, {key: [values]}, the first of which
    holds where it is not stated."""
    for key, values in allowed.items():
        if (value := stated.get(key, values[0])) not in values:
            raise UserError(f"{name} says {key} = {value!r}: only {', '.join(map(str, values))} can be loaded")


def method_arguments(cls, text, path, vocab_size, largest):
    """The constructor's arguments of a method `cls`, from the JSON text in the prompt's file `path`: each of the type
    of its default, with tokens below vocab_size and no size above `largest`, since the constructor allocates it."""
    size, token = Annotated[int, Meta(ge=0, le=largest)], Annotated[int, Meta(ge=0, lt=vocab_size)]
    kinds = {
        "trigger": Annotated[list[token], Meta(max_length=largest)],
        "labels": list[Annotated[list[token], Meta(min_length=1)]],
        "seed": Annotated[int, Meta(ge=0, le=2**63 - 1)],
    }
    of_type = {bool: bool, str: str, float: Annotated[float, Meta(ge=0, le=1e6)], type(None): size | None}
    fields = []
    for name, parameter in list(inspect.signature(cls).parameters.items())[1:]:
        choices = cls.options.get(name, {}).get("choices")
        kind = Literal[tuple(choices)] if choices else kinds.get(name) or of_type.get(type(parameter.default), size)
        fields.append((name, kind, parameter.default))
    schema = msgspec.defstruct(cls.__name__, fields, forbid_unknown_fields=True)
    return msgspec.structs.asdict(decode(text, schema, f"{path}, init_kwargs", "train it again"))
