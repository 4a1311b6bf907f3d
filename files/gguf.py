"""The tokenizer of a GGUF file, and the file as a folder that transformers and PEFT read.

python -m files.gguf FILE.gguf FOLDER      weights in float32, config.json, tokenizer and chat template
python -m files.gguf smollm2 FOLDER
"""

import json
import os
import shutil
from pathlib import Path
from typing import NotRequired, TypedDict

from files import schemas
from files.errors import Parser, UserError, run_main
from files.gguf_reader import bos_and_eos, read_header
from files.safe import write_json, write_text
from files.weights import load_model, save_model

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = rf"{LETTERS}|\p{{N}}{{1,3}}|{OTHERS}", rf"{LETTERS}|\p{{N}}|{OTHERS}"
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # cuts as GPT-2 does
DIGITS = {"type": "Digits", "individual_digits": True}
CUTS = {  # tokenizer.ggml.pre -> the pattern that cuts a text before BPE, or another cut, or None: GPT-2's alone
    **dict.fromkeys(("default", "gpt-2"), None),
    "smollm": DIGITS,
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
}
CONTROL, USER_DEFINED = 3, 4  # the types of tokens that are found in a text before BPE
Tokens = TypedDict(
    "Tokens",
    {"model": str, "tokens": list[str], "merges": NotRequired[list[str]], "token_type": NotRequired[list[int]]}
    | {"add_bos_token": NotRequired[bool], "bos_token_id": schemas.Token | None, "eos_token_id": list[schemas.Token]}
    | schemas.keys("pre chat_template", NotRequired[str]),
)


def read_tokens(path):
    """What a GGUF file says of its tokenizer, by the names in `Tokens`."""
    metadata = read_header(path).metadata
    stated = {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in metadata.items()}
    return schemas.decode(stated | bos_and_eos(metadata), Tokens, f"{path}, tokenizer", "fetch it again")


def tokenizer_json(path, t):
    """The content of the tokenizer.json that a tokenizer would have on the hub. t: what `read_tokens` returns. Raises
    UserError for a kind of tokenizer that is not known."""
    pre = t.get("pre", "default")
    if t["model"] != "gpt2" or pre not in CUTS:
        stated, known = ("model", "gpt2") if t["model"] != "gpt2" else ("pre", ", ".join(CUTS))
        raise UserError(f"{path} says tokenizer.ggml.{stated} = {t.get(stated)!r}: only {known} can be loaded")
    first = CUTS[pre]
    if isinstance(first, str):
        first = {"type": "Split", "pattern": {"Regex": first}, "behavior": "Isolated", "invert": False}
    level = LEVEL | {"use_regex": first in (None, DIGITS)}
    found = [(i, kind) for i, kind in enumerate(t.get("token_type", [])) if kind in (CONTROL, USER_DEFINED)]
    vocab, flags = {token: i for i, token in enumerate(t["tokens"])}, ("single_word", "lstrip", "rstrip", "normalized")
    if len(vocab) < len(t["tokens"]) or found and found[-1][0] >= len(vocab):
        raise UserError(f"{path} has tokens twice or token types without tokens: fetch it again")
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": t["tokens"][i], "special": kind == CONTROL} | dict.fromkeys(flags, False)
            for i, kind in found
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, level] if first else [level]},
        "post_processor": begin_with(bos_token(t)),
        "decoder": LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": CUTS[pre] is LLAMA3,  # as its tokenizer.json says: a word that is a token stays whole
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in t.get("merges", [])],
        },
    }


def bos_token(t):
    """(number, text) of the token before every text, or None. Llama 3 has one where the file does not say."""
    number = t["bos_token_id"]
    is_wanted = t.get("add_bos_token", CUTS.get(t.get("pre")) is LLAMA3)
    return (number, t["tokens"][number]) if is_wanted and number is not None and number < len(t["tokens"]) else None


def begin_with(bos):
    """The post_processor of tokenizer.json that puts a token before every text."""
    if bos is None:
        return None
    number, token = bos
    text, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}
    pair = [special, text, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [special, text], "pair": pair, "special_tokens": tokens}


def write_tokenizer(path, folder):
    """Write tokenizer.json, tokenizer_config.json and generation_config.json of a GGUF file into a folder."""
    t = read_tokens(path)
    ends = {key: t[key] for key in ("bos_token_id", "eos_token_id") if t[key] not in (None, [])}
    names = {"bos_token": t["bos_token_id"], "eos_token": next(iter(t["eos_token_id"]), None)}
    own = {name: t["tokens"][i] for name, i in names.items() if i is not None and i < len(t["tokens"])}
    own |= {"chat_template": t["chat_template"]} if "chat_template" in t else {}
    write_text(folder / "tokenizer.json", json.dumps(tokenizer_json(path, t), ensure_ascii=False))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | own)
    write_json(folder / "generation_config.json", ends)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("file", help="a .gguf file, or smollm2")
    p.add_argument("folder", help="what is written; it must not exist yet")
    args = p.parse_args(argv)
    folder = Path(args.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: name another, or remove it")
    if args.file != "smollm2" and Path(args.file).suffix != ".gguf":
        raise UserError(f"{args.file} is no .gguf file: name one, or smollm2")
    model, temporary = load_model(args.file), folder.with_name(f"tmp-{os.getpid()}-{folder.name}")
    try:
        save_model(model, temporary)
        write_tokenizer(model.folder, temporary)
        os.replace(temporary, folder)  # which may be there and empty
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {folder}")


if __name__ == "__main__":
    run_main(main, "python -m files.gguf")
