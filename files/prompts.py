"""The file of a trained prompt, prefix.safetensors: what it was tuned on, and its tensors."""

import importlib
import json
from pathlib import Path

import torch

from files import schemas
from files.errors import UserError
from files.safe import read_tensors, trained, write_tensors
from files.weights import fingerprint
from prefix import METHODS

importlib.import_module("methods")  # fills METHODS; by name, since that folder is above this one
ROWS = "hybrid", "prompt", "cpt", "lopt", "ptuning"  # methods of rows at the input, and nothing else


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


def load_prefix(path, model, tokenizer, other_base=False):
    """(method, header) from a file. Raises UserError where it is broken or for another base or tokenizer; with
    `other_base` rows at the input may come from another base of the same width, to begin as.

    Whether the text of its task is bytes or BPE, header["tokenize"], is for the caller to follow.
    """
    if not Path(path).is_file():
        raise UserError(f"no prefix file {path}: train_task.py writes prefix.safetensors into its run's folder")
    header, tensors = read_tensors(path)
    header = todays_words(header)
    if header.get("format") != "nanoprompt prefix":
        raise UserError(f"{path} is no prefix: name the prefix.safetensors of a run")
    header = schemas.convert(header, schemas.PrefixHeader, path, "train it again")
    movable = other_base and header["method"] in ROWS and "start" in tensors and tensors["start"].dim()
    if header["base_fingerprint"] != fingerprint(model) and movable:
        if (width := tensors["start"].shape[-1]) != model.config.n_embd:
            raise UserError(
                f"{path} has rows of width {width}, {model.name} of {model.config.n_embd}: name another base"
            )
    elif header["base_fingerprint"] != fingerprint(model):
        tuned_on = f"{header['base']!r} ({header['base_fingerprint']})"
        raise UserError(f"{path} was tuned on the base {tuned_on}, not on {model.name!r} ({fingerprint(model)})")
    if header["tokenizer"] != tokenizer.name:
        raise UserError(f"{path} was tuned with the tokenizer {header['tokenizer']}, not with {tokenizer.name}")
    if header["method"] not in METHODS:
        raise UserError(f"{path} is of the method {header['method']!r}: choose from {', '.join(METHODS)}")
    cls, c = METHODS[header["method"]], model.config
    text = tensors["text"].numel() if "text" in tensors else 0  # a cartridge's, which may be longer than any context
    largest = max(c.block_size, text, sum(t.numel() for t in tensors.values()) // c.n_embd)
    method = cls(model, **schemas.method_arguments(cls, header["init_kwargs"], path, c.vocab_size, largest))
    if "shots" in tensors:
        method.shots = torch.zeros_like(tensors["shots"], dtype=torch.long)
    wanted = method.state_dict()
    for name, t in tensors.items():
        if name in wanted and t.shape != wanted[name].shape:
            raise UserError(
                f"{path}: {name!r} is {tuple(t.shape)}, its header asks for {tuple(wanted[name].shape)}: train it again"
            )
    missing, unknown = method.load_state_dict(tensors, strict=False)
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    if unknown or trained & set(missing):
        raise UserError(f"{path} is no complete {header['method']}: train it again")
    for name, t in method.named_buffers():  # tokens: of a text, of answers, of worked examples
        if not t.is_floating_point() and t.numel() and not (0 <= t.min() and t.max() < c.vocab_size):
            raise UserError(f"{path}: {name!r} holds tokens past the vocabulary of {c.vocab_size}: train it again")
    if method.shots is not None and (method.shots.dim() != 2 or len(method.shots) != 1):
        raise UserError(f"{path}: 'shots' is {tuple(method.shots.shape)}, not (1, tokens): train it again")
    return method.to(model.wte.weight.device), header


def todays_words(header):
    """The header of a prompt's file, with what the first version called otherwise."""
    renamed = {"made_with": "init_kwargs", "tokenise": "tokenize", "form": "question_format"}
    header = {renamed.get(key, key): value for key, value in header.items()}
    if header.get("tokenize") == "letters":
        header["tokenize"] = "bytes"
    if header.get("method") == "instruct":
        header["method"] = "text"
    if "init_kwargs" in header:
        header["init_kwargs"] = header["init_kwargs"].replace('"place":', '"position":')
    return header
