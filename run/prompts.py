"""The file of a trained prompt, prefix.safetensors: what it was tuned on, and its tensors."""

import json
from pathlib import Path

import torch

from files import schemas
from files.errors import UserError
from files.safe import read_tensors, trained, write_tensors
from files.weights import BUNDLED, HUB, fingerprint
from methods import METHODS


def save_prefix(method, path, model, tokenizer, task="", trigger="", question_format="{}", stop="", init_from=""):
    """Write what was trained. The header says which base, tokenizer, task and trigger it belongs to, how a question
    is put (`question_format`, with {} for it), what ends its answer ('': the end-of-text token) and the name of the
    file that it began as, where it did."""
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
        "init_from": Path(init_from).name,
    }
    write_tensors(path, trained(method), header)


def load_prefix(path, model, tokenizer):
    """(method, header) from a file. Raises UserError where it is broken or for another base or tokenizer.

    Whether the text of its task is bytes or BPE, header["tokenize"], is for the caller to follow.
    """
    header, tensors = read_tensors(path)
    header = schemas.decode(header, schemas.PrefixHeader, path, "name the prefix.safetensors of a run, or train again")
    name, c = header["method"], model.config
    if name not in METHODS:
        raise UserError(f"{path} is of the method {name!r}: choose from {', '.join(METHODS)}")
    if header["base_fingerprint"] != fingerprint(model) or header["tokenizer"] != tokenizer.name:
        theirs = f"{header['base']!r} ({header['base_fingerprint']}) with the tokenizer {header['tokenizer']}"
        ours = f"{model.name!r} ({fingerprint(model)}) with {tokenizer.name}"
        raise UserError(f"{path} was tuned on the base {theirs}, not on {ours}: name its base with --model")
    text = tensors["text"].numel() if "text" in tensors else 0  # a cartridge's, which may be longer than any context
    largest = max(c.block_size, text, sum(t.numel() for t in tensors.values()) // c.n_embd)
    given = schemas.method_arguments(METHODS[name], header["init_kwargs"], path, c.vocab_size, largest)
    try:
        method = METHODS[name](model, **given)
        if "shots" in tensors:
            method.shots = torch.zeros(1, tensors["shots"].size(-1), dtype=torch.long)
        if method.takes_n_random and not method.n_rows():
            raise ValueError("a prompt of no rows")
        missing, unknown = method.load_state_dict(tensors, strict=False)
        if unknown or missing & trained(method).keys():
            raise ValueError(f"it lacks {missing} and has {unknown}")
        for buffer, t in method.named_buffers():  # tokens: of a text, of answers, of worked examples
            if not (t.is_floating_point() or not t.numel() or 0 <= t.min() and t.max() < c.vocab_size):
                raise ValueError(f"{buffer!r} holds tokens past the vocabulary of {c.vocab_size}")
    except (AssertionError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} is no complete {name}, or its header is wrong: {error}: train it again") from None
    return method.to(model.wte.weight.device), header


def base_of(source):
    """The --model that a run was tuned on, from its results.json or its prompt's header."""
    file = source / "prefix.safetensors" if source.is_dir() else source
    if (file.parent / "results.json").is_file():
        return schemas.read_json(file.parent / "results.json", schemas.Run, "give --model")["args"]["model"]
    header, _ = read_tensors(file)
    if "base" not in header:
        raise UserError(f"{file} is no prompt: name the prefix.safetensors of a run")
    name = header["base"]
    if name not in (*BUNDLED, *HUB) and "/" not in name:  # a name with a slash is the hub's
        raise UserError(f"{source} was tuned on the base {name!r}: name its folder with --model")
    return name
