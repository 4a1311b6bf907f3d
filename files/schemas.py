"""What the files that are read have to look like: a schema for each kind of JSON, checked by msgspec.

A file comes from anywhere, so whatever reads one calls `read_json` with its schema, or `read_bytes`. Both raise
UserError, in one line, for what is no regular file, what is too large, what is not JSON and what has other types or
sizes than its schema says. Keys that a schema does not name are left out of what is returned.
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
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Token = Annotated[int, Meta(ge=0, lt=2**24)]


class GPT2Json(TypedDict):
    """config.json of a GPT-2, with the hub's names."""

    vocab_size: Size
    n_positions: Size
    n_layer: Layers
    n_head: Size
    n_embd: Size


class Rope(TypedDict):
    """How a Llama's positions turn: rope_parameters, or what stood in rope_scaling before."""

    rope_theta: NotRequired[Positive]
    rope_type: NotRequired[str]
    type: NotRequired[str]
    partial_rotary_factor: NotRequired[float]
    factor: NotRequired[Positive]
    low_freq_factor: NotRequired[Positive]
    high_freq_factor: NotRequired[Positive]
    original_max_position_embeddings: NotRequired[Size]


class LlamaJson(TypedDict):
    """config.json of the Llama family."""

    model_type: str
    vocab_size: Size
    max_position_embeddings: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: NotRequired[Size | None]
    hidden_size: Size
    head_dim: NotRequired[Size | None]
    intermediate_size: Size
    rope_theta: NotRequired[Positive]
    rope_scaling: NotRequired[Rope | None]
    rope_parameters: NotRequired[Rope | None]
    rms_norm_eps: NotRequired[Annotated[float, Meta(ge=0, lt=1)]]
    tie_word_embeddings: NotRequired[bool]
    use_sliding_window: NotRequired[bool | None]
    sliding_window: NotRequired[Size | None]
    bos_token_id: NotRequired[Token | list[Token] | None]
    eos_token_id: NotRequired[Token | list[Token] | None]


class ShardIndex(TypedDict):
    """model.safetensors.index.json: the file in which each tensor lies."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


class Encoding(TypedDict):
    """encoding.json: a byte-level BPE. A character of a token is a byte, and its place in the list its number."""

    name: str
    pattern: str
    tokens: list[Annotated[str, Meta(pattern=r"\A[\x00-\xff]+\Z")]]


class TranslatorHeader(TypedDict):
    """The metadata of a translator's file."""

    format: Literal["nanoprompt translator"]
    base: str
    base_fingerprint: str
    n_rows: str
    rank: str
    width: str


class CheckpointHeader(TypedDict):
    """The metadata of a run's checkpoint."""

    state: str  # JSON
    log_size: Annotated[str, Meta(pattern=r"\A\d{1,15}\Z")]  # bytes


class PrefixHeader(TypedDict):
    """The metadata of a prefix file."""

    format: Literal["nanoprompt prefix"]
    method: str
    init_kwargs: str  # JSON
    base: str
    base_fingerprint: str
    tokenizer: str
    tokenize: Literal["bytes", "bpe"]
    task: NotRequired[str]
    trigger: str
    question_format: Annotated[str, Meta(pattern=r"\{\}")]  # {} for the question
    stop: str
    init_from: NotRequired[str]


class LoRAConfig(TypedDict):
    """The part of adapter_config.json that says what a LoRA is."""

    r: Size
    lora_alpha: Annotated[float, Meta(ge=0, le=1e6)]
    use_rslora: NotRequired[bool]


class Score(TypedDict):
    correct: Count
    n: Size


class RunArguments(TypedDict):
    model: str


class Run(TypedDict):
    """The part of results.json that says how it was made."""

    args: RunArguments


class RecordedRun(TypedDict):
    """The part of results.json that `train_task.py --reproduce` reads."""

    command: str
    record: dict


class Results(Run):
    """The part of results.json that studies read: accuracy by method and range."""

    task: str
    accuracy: dict[str, dict[str, Score]]
    before: dict[str, dict[str, Score]]
    trainable: dict[str, Count]
    seconds: dict[str, float]


class Row(TypedDict):
    """A row of a study: means, lowest and highest, in %."""

    task: str
    series: str
    x: Count | None
    accuracy: dict[str, tuple[float, float, float]]
    before: dict[str, tuple[float, float, float]]
    added: dict[str, tuple[float, float, float]]
    trainable: Count
    seconds: float


class Study(TypedDict):
    """study.json of compare.py, and what all its rows were measured with."""

    settings: dict[str, str | int]
    rows: list[Row]


class Context(TypedDict):
    """The best context of a run in results.json, which a resumed run does not search for again."""

    text: str
    shots: Count
    lengths: str
    exact_match: Count
    n: Count
    loss: float
    candidates: list


def read_bytes(path, limit=JSON_LIMIT):
    """The content of a regular file of at most `limit` bytes: a pipe or a device might never end."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no file {path}")
    if not path.is_file():
        raise UserError(f"{path} is no regular file: name one")
    if path.stat().st_size > limit:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes: at most {limit:,} are read")
    return path.read_bytes()


def read_json(path, schema, remedy="fetch it again"):
    """The content of a JSON file, as plain dicts and lists that follow the schema."""
    return decode(read_bytes(path), schema, path, remedy)


def decode(value, schema, name, remedy):
    """JSON text, or a value that is parsed already, as `schema` has it. `name` and `remedy` are for the message."""
    try:
        if isinstance(value, str | bytes):
            return msgspec.json.decode(value, type=schema)
        return msgspec.convert(value, schema)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        raise UserError(f"{name}: {error}: {remedy}") from None


convert = decode


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
