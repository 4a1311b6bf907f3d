"""The tokenizer of a GGUF file, and the file as a folder that transformers and PEFT read.

python -m files.gguf FILE.gguf FOLDER      weights in float32, config.json, tokenizer and chat template
python -m files.gguf smollm2 FOLDER
"""

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from files import schemas
from files.errors import Parser, UserError, run_main
from files.gguf_reader import bos_and_eos, read_header
from files.safe import check_unused, write_json, write_text
from files.weights import load_model, save_model

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = rf"{LETTERS}|\p{{N}}{{1,3}}|{OTHERS}", rf"{LETTERS}|\p{{N}}|{OTHERS}"
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUTS = {  # tokenizer.ggml.pre -> what cuts a text before BPE, as pre_tokenizers of tokenizer.json
    **dict.fromkeys(("default", "gpt-2"), [GPT2]),
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT2],
    **{
        name: [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]
        + [GPT2 | {"use_regex": False}]
        for pattern, names in {LLAMA3: "llama3 llama-v3 llama-bpe", QWEN2: "qwen2 deepseek-r1-qwen"}.items()
        for name in names.split()
    },
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
    metadata, _ = read_header(path)
    stated = {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in metadata.items()}
    return schemas.decode(stated | bos_and_eos(metadata), Tokens, f"{path}, tokenizer", "fetch it again")


def tokenizer_json(path, t):
    """The tokenizer.json that a tokenizer would have on the hub. t: what `read_tokens` returns. Raises UserError for a
    kind of tokenizer that is not known."""
    pre, tokens, kinds = t.get("pre", "default"), t["tokens"], t.get("token_type", [])
    for key, value, known in (("model", t["model"], ["gpt2"]), ("pre", pre, CUTS)):
        if value not in known:
            raise UserError(f"{path} says tokenizer.ggml.{key} = {value!r}: only {', '.join(known)} can be loaded")
    vocab, flags = {token: i for i, token in enumerate(tokens)}, ("single_word", "lstrip", "rstrip", "normalized")
    if len(vocab) < len(tokens) or len(kinds) > len(tokens):
        raise UserError(f"{path} has tokens twice or token types without tokens: fetch it again")
    is_llama3, begin = pre.startswith("llama"), None
    if t.get("add_bos_token", is_llama3) and t["bos_token_id"] in range(len(tokens)):
        bos = tokens[t["bos_token_id"]]
        text, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": bos, "type_id": 0}}
        begin = {"type": "TemplateProcessing", "single": [special, text]}
        begin["pair"] = [special, text, {"Sequence": {"id": "B", "type_id": 1}}]  # which the library asks for
        begin |= {"special_tokens": {bos: {"id": bos, "ids": [t["bos_token_id"]], "tokens": [bos]}}}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": kind == CONTROL} | dict.fromkeys(flags, False)
            for i, kind in enumerate(kinds)
            if kind in (CONTROL, USER_DEFINED)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[pre]},
        "post_processor": begin,
        "decoder": GPT2,
        "model": {
            "type": "BPE",
            "ignore_merges": is_llama3,  # as its tokenizer.json says: a word that is a token stays whole
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in t.get("merges", [])],
        },
    }


def write_tokenizer(path, folder):
    """Write tokenizer.json, tokenizer_config.json and generation_config.json of a GGUF file into a folder."""
    t = read_tokens(path)
    ends = {"bos_token_id": t["bos_token_id"], "eos_token_id": t["eos_token_id"] or None}
    names = {"bos_token": ends["bos_token_id"], "eos_token": next(iter(t["eos_token_id"]), None)}
    own = {name: t["tokens"][i] for name, i in names.items() if i in range(len(t["tokens"]))}
    own |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": t.get("chat_template")}
    content = json.dumps(tokenizer_json(path, t), ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", own)
    write_json(folder / "generation_config.json", ends)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("file", help="a .gguf file, or smollm2")
    p.add_argument("folder", help="what is written; it must not exist yet")
    args = p.parse_args(argv)
    folder = Path(args.folder)
    check_unused(folder)
    model = load_model(args.file)
    write_tokenizer(model.folder, folder)  # first: it refuses kinds that are not known
    save_model(model, folder)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {folder}")


if __name__ == "__main__":
    run_main(main)
