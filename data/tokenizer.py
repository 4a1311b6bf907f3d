"""Text to tokens and back: byte-level BPE by tiktoken, or one token for each byte."""

import json
from pathlib import Path

import tiktoken


class Tokenizer:
    """`encode` is ordinary BPE, for words that the base should read as language. `encode_bytes` makes every byte
    a token: digits and letters then have to be moved about one by one. `encode_task` is for the text of tasks and
    does what `tokenize` says, "bytes" or "bpe".

    Encoding appends no token; `eot` is the number of the end-of-text token.
    """

    def __init__(self, encoding, tokenize="bytes"):
        self.encoding = encoding
        self.tokenize = tokenize
        self.name = encoding.name
        self.eot = encoding.eot_token
        self.bytes = [encoding.encode_single_token(bytes([b])) for b in range(256)]  # a byte-level BPE has them all

    @classmethod
    def load(cls, folder, vocab_size, tokenize="bytes"):
        """The encoding.json beside the weights, else GPT-2's own where the size is GPT-2's."""
        path = Path(folder) / "encoding.json"
        if path.is_file():
            try:
                e = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}): fetch the checkpoint again") from None
            ranks = {token.encode("latin-1"): rank for rank, token in enumerate(e["tokens"])}  # one character a byte
            if len(ranks) + 1 != vocab_size:
                raise ValueError(f"{path} has {len(ranks) + 1} tokens, the weights have {vocab_size}: fetch both again")
            special = {"<|endoftext|>": len(ranks)}
            return cls(
                tiktoken.Encoding(e["name"], pat_str=e["pattern"], mergeable_ranks=ranks, special_tokens=special),
                tokenize,
            )
        if vocab_size == 50257:
            try:
                return cls(tiktoken.get_encoding("gpt2"), tokenize)
            except OSError as error:  # tiktoken downloads it once
                raise ValueError(
                    f"cannot fetch GPT-2's vocabulary ({type(error).__name__}): go online once, "
                    "or set TIKTOKEN_CACHE_DIR to a folder in which tiktoken has put it"
                ) from None
        raise ValueError(
            f"{folder} has {vocab_size} tokens and no encoding.json: only GPT-2's 50257 are known without one"
        )

    def encode(self, text):
        return self.encoding.encode_ordinary(text)

    def encode_bytes(self, text):
        return [self.bytes[b] for b in text.encode()]

    def encode_task(self, text):
        return self.encode_bytes(text) if self.tokenize == "bytes" else self.encode(text)

    def decode(self, tokens):
        """Tokens that are no valid UTF-8 come out as U+FFFD, unknown numbers as nothing."""
        return self.encoding.decode([t for t in tokens if t <= self.eot])
