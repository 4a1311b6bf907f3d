"""What the files that are read have to look like: a schema for each kind of JSON, checked by msgspec.

A file comes from anywhere, so whatever reads one calls `read_json` with its schema, or `read_bytes`. Both raise
ValueError, in one line, for what is no regular file, what is too large, what is not JSON and what has other types or
sizes than its schema says. Keys that a schema does not name are left out of what is returned.
"""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

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


class ModelType(TypedDict):
    """config.json: which network it is of, and the token that ends its texts."""

    model_type: NotRequired[str]
    eos_token_id: NotRequired[Token | list[Token] | None]


class GPT2Json(TypedDict):
    """config.json of a GPT-2, with the hub's names."""

    vocab_size: Size
    n_positions: Size
    n_layer: Layers
    n_head: Size
    n_embd: Size
    activation_function: NotRequired[str]
    layer_norm_epsilon: NotRequired[float]
    n_inner: NotRequired[Size | None]
    scale_attn_weights: NotRequired[bool]
    scale_attn_by_inverse_layer_idx: NotRequired[bool]
    add_cross_attention: NotRequired[bool]


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
    hidden_act: NotRequired[str]
    attention_bias: NotRequired[bool]
    mlp_bias: NotRequired[bool]
    quantization_config: NotRequired[Any]
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
    tokens: list[str]


class TranslatorHeader(TypedDict):
    """The metadata of a translator's file."""

    format: Literal["nanoprompt translator"]
    base: str
    base_fingerprint: str
    n_rows: str
    rank: str
    width: str


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


class AdapterConfig(TypedDict):
    """PEFT's adapter_config.json. What is Any is refused by import_lora unless it is as in plain LoRA."""

    peft_type: str
    r: NotRequired[Any]
    lora_alpha: NotRequired[Any]
    use_rslora: NotRequired[Any]
    bias: NotRequired[Any]
    init_lora_weights: NotRequired[Any]
    use_dora: NotRequired[Any]
    lora_bias: NotRequired[Any]
    rank_pattern: NotRequired[Any]
    alpha_pattern: NotRequired[Any]
    layer_replication: NotRequired[Any]
    modules_to_save: NotRequired[Any]


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


class BenchWork(TypedDict):
    """What bench.py calls itself with: one side of one measurement."""

    side: str
    job: str
    arch: Literal["gpt2", "llama"]
    folder: str
    adapter: str
    device: str
    dtype: Literal["float32", "bfloat16"]
    n_layer: Size
    n_embd: Size
    vocab_size: Size
    rows: Size
    batch_size: Size
    question: Size
    answer: Size


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


def decode(text, schema, name, remedy):
    """JSON text as `schema` has it; `name` and `remedy` are for the message."""
    try:
        return msgspec.json.decode(text, type=schema)
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}: {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}): {remedy}") from None


def convert(value, schema, name, remedy):
    """The same for a value that is no text any more."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}: {remedy}") from None


def method_arguments(cls, text, path, vocab_size, largest):
    """The arguments, JSON text, from which the prefix file `path` makes its method `cls` again.

    They are what the constructor takes beside the model. An option is checked as its flag is, tokens against
    vocab_size, and no size may be above `largest`, since the constructor would allocate it.
    """
    fields, remedy = [], "train it again"
    for name, parameter in list(inspect.signature(cls).parameters.items())[1:]:
        option = cls.options.get(name, {})
        kind = int | float | str | bool
        if name in ("n_random", "seed"):
            kind = {"n_random": Count, "seed": Seed}[name]
        elif name == "trigger":
            kind = list[Token]
        elif name == "labels":
            kind = list[Annotated[list[Token], Meta(min_length=1)]]
        elif "choices" in option:
            kind = Literal[tuple(option["choices"])]
        elif "action" in option or isinstance(parameter.default, bool):
            kind = bool
        elif "type" not in option and parameter.default is not parameter.empty:
            kind = type(parameter.default)
        if parameter.default is None:
            kind = kind | None
        fields.append((name, kind) if parameter.default is parameter.empty else (name, kind, parameter.default))
    schema = msgspec.defstruct(cls.__name__, fields, forbid_unknown_fields=True)
    where = f"{path}, init_kwargs"
    given = decode(text, dict[str, Any], where, remedy)
    convert(given, schema, where, remedy)
    for name, option in cls.options.items():
        if "type" in option and given.get(name) is not None:
            try:
                given[name] = option["type"](str(given[name]))
            except Exception as error:  # whatever an argparse type raises
                raise UserError(f"{where}: {name} is {given[name]!r} ({error}): {remedy}") from None
    trigger, labels = given.get("trigger", []), given.get("labels", [])
    for token in (*trigger, *(t for label in labels for t in label)):
        if token >= vocab_size:
            raise UserError(f"{where}: token {token} is past the vocabulary of {vocab_size}: {remedy}")
    sizes = {k: v for k, v in given.items() if isinstance(v, int) and k != "seed"}
    sizes["the length of trigger"] = len(trigger)
    for name, size in sizes.items():
        if not 0 <= size <= largest:
            raise UserError(f"{where}: {name} is {size}, more than the file's tensors hold: {remedy}")
    return given
