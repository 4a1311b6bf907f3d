"""Text to tokens and back: BPE by tiktoken or by the tokenizers library, or one token for each byte."""

import hashlib
from pathlib import Path

import regex  # tiktoken needs it as well
import tiktoken

from files import schemas
from files.errors import UserError


class Tokenizer:
    """`encode` is ordinary BPE, for words that the base should read as language. `encode_bytes` makes every byte
    a token: digits and letters then have to be moved about one by one. `encode_task` is for the text of tasks and
    does what `tokenize` says, "bytes" or "bpe".

    Encoding appends no token. `eot` is the number of the end-of-text token, and `bos` a list: the token that the base
    expects before every text, or nothing.
    """

    def __init__(self, encoding, tokenize="bytes"):
        self.encoding = encoding
        self.tokenize = tokenize
        self.name = encoding.name
        self.eot = encoding.eot_token
        self.bos = getattr(encoding, "bos_tokens", [])
        self.bytes = [encoding.encode_single_token(bytes([b])) for b in range(256)]  # a byte-level BPE has them all

    @classmethod
    def load(cls, folder, vocab_size, tokenize="bytes"):
        """The encoding.json beside the weights, or the tokenizer.json of another family than GPT-2's, else GPT-2's own
        where the size is GPT-2's."""
        folder = Path(folder)
        if (folder / "encoding.json").is_file():
            return cls(read_encoding(folder / "encoding.json", vocab_size), tokenize)
        config = schemas.read_json(folder / "config.json", dict) if (folder / "config.json").is_file() else {}
        if config.get("model_type", "gpt2") != "gpt2":
            return cls(TokenizerFile(folder / "tokenizer.json", vocab_size, config.get("eos_token_id")), tokenize)
        if vocab_size != 50257:
            raise UserError(f"{folder} has {vocab_size} tokens and no encoding.json: only GPT-2's 50257 need none")
        try:
            return cls(tiktoken.get_encoding("gpt2"), tokenize)
        except OSError as error:  # tiktoken downloads it once
            remedy = "go online once, or set TIKTOKEN_CACHE_DIR to a folder in which tiktoken has put it"
            raise UserError(f"cannot fetch GPT-2's vocabulary ({type(error).__name__}): {remedy}") from None

    def encode(self, text):
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
    return tiktoken.Encoding(e["name"], pat_str=e["pattern"], mergeable_ranks=ranks, special_tokens=special)


def cuts(pattern):
    """True if a pattern cuts a text into pieces that are all of it; with another tiktoken loses text or breaks off."""
    try:
        pieces = [match.group() for match in regex.finditer(pattern, SAMPLE, timeout=1)]
    except (regex.error, TimeoutError, ValueError, RecursionError):
        return False
    return all(pieces) and "".join(pieces) == SAMPLE


class TokenizerFile:
    """A tokenizer.json, as the hub has it for the Llama family, with those methods of a tiktoken.Encoding that are used
    above. A model may have more output rows than tokens: nothing is written for those."""

    def __init__(self, path, vocab_size, eos_token):
        try:
            from tokenizers import Tokenizer as FromFile  # imported here, since GPT-2 does without
        except ImportError:
            raise UserError(f"{path} needs the tokenizers library: pip install tokenizers") from None
        content = schemas.read_bytes(path, schemas.TOKENIZER_LIMIT)
        try:
            self.file = FromFile.from_buffer(content)
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
        self.n_vocab = 1 + max(self.file.get_vocab().values(), default=-1)
        if self.n_vocab > vocab_size:
            raise UserError(f"{path} has {self.n_vocab} tokens, the weights have {vocab_size}: fetch both again")
        self.file.no_padding()
        self.file.no_truncation()
        self.file.encode_special_tokens = True  # as text, where a text spells them
        self.vocab = self.file.get_vocab()  # {token: number}
        self.name = "tokenizer-" + hashlib.sha256(repr(sorted(self.vocab.items())).encode()).hexdigest()[:8]
        self.bos_tokens = self.file.encode("").ids[:1]  # what its template puts before a text
        eos_token = eos_token[0] if isinstance(eos_token, list) and eos_token else eos_token
        self.eot_token = eos_token if isinstance(eos_token, int) else self.n_vocab - 1
        # SentencePiece puts a space before every text and strips it again: text then stands behind a line break
        ids = self.file.encode("\n", add_special_tokens=False).ids
        self.before, self.break_before = (ids, "\n") if len(ids) > 1 else ([], "")

    def encode_ordinary(self, text):
        return self.file.encode(self.break_before + text, add_special_tokens=False).ids[len(self.before) :]

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


SAMPLE = "".join(map(chr, range(32, 127))) + "aaaa" * 8 + "!\n\t 1234  it's \u00e4\u4e2d\n\n \u2028\u200b\U0001f600 b"
