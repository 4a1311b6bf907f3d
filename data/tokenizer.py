"""Text to tokens and back: BPE by tiktoken or by the tokenizers library, or one token for each byte."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import regex  # tiktoken needs it as well
import tiktoken

from data import trial
from files import gguf, schemas
from files.errors import UserError, note, saying


class Tokenizer:
    """`encode` is ordinary BPE, for words that the base should read as language. `encode_bytes` makes every byte
    a token: digits and letters then have to be moved about one by one. `encode_task` is for the text of tasks and
    does what `tokenize` says, "bytes", "bpe", or "special": BPE that reads special tokens where a text spells them.

    Encoding appends no token. `ends` are the tokens that end a text, `eot` the first of them, or -1, which no token has
    as its number, and `bos` those that the base expects before every text.
    """

    def __init__(self, encoding, tokenize="bytes", ends=()):
        self.encoding = encoding
        self.tokenize = tokenize
        self.name = encoding.name
        self.ends = [t for t in dict.fromkeys([encoding.eot_token, *ends]) if t >= 0]
        self.eot = self.ends[0] if self.ends else -1
        self.bos = getattr(encoding, "bos_tokens", [])
        self.special = regex.compile("|".join(map(regex.escape, encoding.special_tokens_set)) or r"(?!)")
        self.bytes = [encoding.encode_single_token(bytes([b])) for b in range(256)]  # a byte-level BPE has them all

    @classmethod
    def load(cls, folder, vocab_size, tokenize="bytes"):
        """What lies beside the weights: encoding.json, else tokenizer.json, else a GPT-2's vocab.json and merges.txt. A
        GPT-2 of the usual size needs none of them, and a GGUF file holds its own."""
        folder, kind, ends = Path(folder), "gpt2", []
        if folder.is_file():
            stated = gguf.read_tokens(folder)
            ends = [t for t in stated["eos_token_id"] if t < vocab_size]
            content = json.dumps(gguf.tokenizer_json(folder, stated)).encode()
            return cls(TokenizerFile(folder, content, vocab_size), tokenize, ends)
        for path in (folder / "config.json", folder / "generation_config.json"):
            stated = schemas.read_json(path, schemas.TextJson) if path.is_file() else {}
            kind, found = stated.get("model_type", kind), stated.get("eos_token_id")
            ends += [t for t in (found if isinstance(found, list) else [found]) if t in range(vocab_size)]
        path = folder / "tokenizer.json"
        if (folder / "encoding.json").is_file():
            encoding = read_encoding(folder / "encoding.json", vocab_size)
        elif kind == "gpt2" and (folder / "vocab.json").is_file() and not path.is_file():
            encoding = TokenizerFile(folder / "vocab.json", None, vocab_size)
        elif kind != "gpt2" or path.is_file():
            encoding = TokenizerFile(path, schemas.read_bytes(path, schemas.TOKENIZER_LIMIT), vocab_size)
        elif vocab_size == 50257:
            encoding = gpt2_encoding()
        else:
            raise UserError(f"{folder} has {vocab_size} tokens and no tokenizer.json: only GPT-2's 50257 need none")
        return cls(encoding, tokenize, ends)

    def encode(self, text):
        if len(text) > 100_000 and regex.search(r"\s{100000}", text):  # where tiktoken's stack overflows
            raise UserError("a text has 100,000 spaces or line breaks in a row: take them out")
        found = self.special.search(text)
        if found and self.tokenize == "special":
            tokens = self.encoding.encode(text, allowed_special="all")
            if max(tokens) >= self.encoding.n_vocab:
                raise UserError(f"the weights have no row for a special token in {text[:200]!r}: leave it out")
            return tokens
        if found:
            note(f"a text spells {found[0]!r}: read as letters; --tokenize special reads it as the base's token")
        return self.encoding.encode_ordinary(text)

    def encode_bytes(self, text):
        tokens = [self.bytes[b] for b in text.encode()]
        if None in tokens:
            missing = text.encode()[tokens.index(None)]
            raise UserError(f"{self.name} has no token for the byte {missing}: give --tokenize bpe")
        return tokens

    def encode_task(self, text):
        return self.encode_bytes(text) if self.tokenize == "bytes" else self.encode(text)

    def decode(self, tokens):
        """Tokens that are no valid UTF-8 come out as U+FFFD, unknown numbers as nothing."""
        return self.encoding.decode([t for t in tokens if t < self.encoding.n_vocab])

    @cached_property
    def texts(self):
        """What each token stands for, by its number."""
        return [self.decode([t]) for t in range(self.encoding.n_vocab)]

    def stops(self, stop):
        """The tokens behind which an answer is over: those that end a text, and all that hold `stop`, which may be one
        character of several."""
        return self.ends + [t for t, text in enumerate(self.texts) if stop and stop in text]

    def cut(self, tokens, stop):
        """The text of an answer up to `stop`, which it ends with, or up to the token that ends the text."""
        text = self.decode(takewhile(lambda t: t not in self.ends, tokens))
        return "".join(text.partition(stop)[:2]) if stop else text


def gpt2_encoding():
    try:
        with saying("fetching GPT-2's vocabulary ..."):
            return tiktoken.get_encoding("gpt2")
    except OSError as error:  # tiktoken downloads it once
        remedy = "go online once, or set TIKTOKEN_CACHE_DIR to a folder in which tiktoken has put it"
        raise UserError(f"cannot fetch GPT-2's vocabulary ({type(error).__name__}): {remedy}") from None


def read_encoding(path, vocab_size):
    """The tiktoken.Encoding of an encoding.json."""
    e = schemas.read_json(path, schemas.Encoding, "fetch the checkpoint again")
    ranks = {token.encode("latin-1"): rank for rank, token in enumerate(e["tokens"])}  # a character is a byte
    fault = ""
    if len(ranks) != len(e["tokens"]) or len(ranks) + 1 != vocab_size:
        fault = f"{len(e['tokens']) + 1} tokens, the weights have {vocab_size}"
    elif any(bytes([b]) not in ranks for b in range(256)):
        fault = "no token for some bytes"
    elif not cuts(e["pattern"]):
        fault = "a pattern that loses text or matches nothing"
    if fault:
        raise UserError(f"{path} has {fault}: fetch the checkpoint again")
    special = {"<|endoftext|>": len(ranks)}
    try:
        return tiktoken.Encoding(e["name"], pat_str=e["pattern"], mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise UserError(f"{path} has a pattern that tiktoken does not know ({error}): fetch it again") from None


def cuts(pattern):
    """True if a pattern cuts texts into pieces that are all of them; with another tiktoken loses text or breaks off."""
    try:
        for text in trial.TEXTS:
            pieces = [match.group() for match in regex.finditer(pattern, text, timeout=1)]
            if not all(pieces) or "".join(pieces) != text:
                return False
    except (regex.error, TimeoutError, ValueError, RecursionError):
        return False
    return True


def fault_of(content):
    """What is wrong with a tokenizer.json, after a trial in another process, or None: data/trial.py."""
    command, env = [sys.executable, "-P", trial.__file__], os.environ | {"RAYON_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, input=content, capture_output=True, env=env, timeout=120)
    except subprocess.TimeoutExpired:
        return "it takes minutes"
    if done.returncode < 0 or b"panicked" in done.stderr or b"memory allocation" in done.stderr:
        return "the tokenizers library fails, loops or runs out of memory on it"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if done.returncode else None


class TokenizerFile:
    """A tokenizer.json, as the hub has it, with those methods of a tiktoken.Encoding that are used above. A model may
    have more output rows than tokens: nothing is written for those. Special tokens may have no row: no text needs it.
    """

    eot_token = -1  # none: config.json says which

    def __init__(self, path, content, vocab_size):
        try:
            import tokenizers  # imported here, since GPT-2 does without
        except ImportError:
            raise UserError(f"{path} needs the tokenizers library: pip install tokenizers") from None
        try:
            if content is None:  # GPT-2's two files
                words = tokenizers.ByteLevelBPETokenizer.from_file(str(path), str(path.with_name("merges.txt")))
                content = words.to_str().encode()
            if fault := fault_of(content):
                raise ValueError(fault)
            self.file = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
        self.file.no_padding()
        self.file.no_truncation()
        self.file.encode_special_tokens = True  # as text, where a text spells them
        self.vocab = self.file.get_vocab()  # {token: number}
        encoded = self.file.encode("a")
        self.bos_tokens = encoded.ids[: len([*takewhile(bool, encoded.special_tokens_mask)])]  # of its template
        special = {t: token.content for t, token in self.file.get_added_tokens_decoder().items() if token.special}
        self.special_tokens_set = {*special.values()}
        used = {*self.vocab.values()} - special.keys() | {*self.bos_tokens}
        if max(used, default=0) >= vocab_size:
            raise UserError(f"{path} has {max(used) + 1} tokens, the weights have {vocab_size}: fetch both again")
        self.n_vocab = min(vocab_size, 1 + max(self.vocab.values(), default=-1))
        digest = hashlib.sha256(repr(sorted(self.vocab.items())).encode()).hexdigest()[:8]
        self.name = "gpt2" if digest == GPT2 else f"tokenizer-{digest}"
        # SentencePiece puts a space before every text and strips it again: text then stands behind a line break
        ids = self.file.encode("\n", add_special_tokens=False).ids
        self.before, self.break_before = (ids, "\n") if len(ids) > 1 else ([], "")

    def encode_ordinary(self, text):
        return self.file.encode(self.break_before + text, add_special_tokens=False).ids[len(self.before) :]

    def encode(self, text, allowed_special):
        """Special tokens are what they spell here: allowed_special is "all"."""
        self.file.encode_special_tokens = False
        tokens = self.file.encode(text, add_special_tokens=False).ids
        self.file.encode_special_tokens = True
        return tokens

    def decode(self, tokens):
        return self.file.decode([*self.before, *tokens], skip_special_tokens=False)[len(self.break_before) :]

    def encode_single_token(self, byte):
        """The number of one byte's token, or None: a character where it has one, else SentencePiece's <0x00>."""
        if not self.before:
            return self.vocab.get(next(c for c, b in byte_alphabet().items() if b == byte[0]))
        character = "\u2581" if byte == b" " else chr(byte[0])
        return self.vocab.get(character if byte.isascii() else "", self.vocab.get(f"<0x{byte[0]:02X}>"))


def byte_alphabet():
    """{character: byte}: the printable stand-ins of GPT-2's byte-level BPE, which the tokenizers library uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


GPT2 = "190e1488"  # of OpenAI's vocabulary
