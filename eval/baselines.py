"""What a tuned prompt is measured against: worked examples in the context, and a task transformer."""

import tiktoken
import torch

from data.tokenizer import Tokenizer
from model import GPT, GPTConfig


def few_shot(tokenizer, task, shots, room, seed=0):
    """Worked examples from the training split, one per line, as a list of tokens, and how many they are.

    At most `shots` of them and at most `room` tokens.
    """
    tokens, n = [], 0
    for e in task.examples(shots, split="train", seed=seed):
        line = tokenizer.encode_task(f"{e.question}{e.answer}".rstrip("\n") + "\n")
        if len(tokens) + len(line) > room:
            break
        tokens, n = tokens + line, n + 1
    return tokens, n


def scratch(seed, block_size):
    """The study's task transformer, untrained, and its tokenizer: one token a byte."""
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str="(?s:.)",
        mergeable_ranks={bytes([b]): b for b in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=257, block_size=block_size, n_layer=3, n_head=4, n_embd=128))
    model.name = "scratch"
    return model, Tokenizer(encoding)
