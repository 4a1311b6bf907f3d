"""Talk to a frozen GPT-2, behind trained prompts or alone.

    python sample.py --prefix out/addition-nano/prefix.safetensors --prompt 321+654=
    python sample.py --prefix A.safetensors B.safetensors --compare     asks at a prompt, until an empty line
    echo 321+654= | python sample.py --prefix ...                       every line of stdin is a question

Every question is answered behind every prompt, all of them rows of one batch.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

import prefix
from checkpoint import load_model, load_prefix
from cli import Parser, at_least, run, weight
from data.tokenizer import Tokenizer
from generate import generate, stack_caches
from model import GPT


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base()
    p.add_argument("--prefix", nargs="+", default=[], metavar="FILE", help="trained prompts (default: the base alone)")
    p.add_argument("--compare", action="store_true", help="show the base without a prompt beside each")
    p.add_argument("--prompt", metavar="TEXT", help="one question (default: ask, or read lines from stdin)")
    p.add_argument("--max-new-tokens", type=at_least(1), default=100, help="(default %(default)s)")
    p.add_argument("--temperature", type=weight, default=0.0, help="0 is greedy (default %(default)s)")
    p.add_argument("--top-k", type=at_least(1), help="sample from the likeliest only (default: from all)")
    p.add_argument("--seed", type=int, default=0, help="of sampling (default %(default)s)")
    p.add_argument("--tokenize", choices=["bytes", "bpe"], default="bpe", help="of the text when no prompt is loaded")
    return p.parse_args(argv)


def ask():
    """Questions from a person, until an empty line or the end of input."""
    try:
        while question := input("> "):
            yield question
    except EOFError:
        print()


class Voice(NamedTuple):
    """What answers a question: a base behind a prompt, or alone."""

    name: str
    method: prefix.Method
    network: GPT
    past: list | None  # the prompt's KV cache
    tokenizer: Tokenizer
    question_format: str  # with {} for the question
    stop: str  # what ends an answer; '': the end-of-text token

    def tokens(self, question):
        return self.method.insert_rows(self.tokenizer.encode_task(self.question_format.replace("{}", question)))

    def stop_token(self):
        return self.tokenizer.encode_task(self.stop)[-1] if self.stop else self.tokenizer.eot


@torch.no_grad()
def load_voices(args, model):
    """A Voice for each prompt file, and with --compare the base alone beside each."""
    base = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize)
    alone, voices = prefix.METHODS["zero-shot"](model), []
    for path in map(Path, args.prefix):
        method, header = load_prefix(path, model, base)
        network, tokenizer = method.network(model), Tokenizer(base.encoding, header["tokenize"])
        name = path.resolve().parent.name if path.name == "prefix.safetensors" else path.stem
        format_and_stop = header["question_format"], header["stop"]
        voices.append(Voice(name, method, network, method.past(network), tokenizer, *format_and_stop))
        if args.compare:
            voices.append(Voice(f"{name}, base alone", alone, model, None, tokenizer, *format_and_stop))
    return voices or [Voice(model.name, alone, model, None, base, "{}", "")]


@torch.no_grad()
def answer(voices, question, args):
    """[text]: what each voice answers. Those of one network stand in one batch, whatever their prompts' lengths."""
    texts = [""] * len(voices)
    for network in dict.fromkeys(voice.network for voice in voices):
        rows = [i for i, voice in enumerate(voices) if voice.network is network]
        some = [voices[i] for i in rows]
        asked = [voice.tokens(question) for voice in some]
        c = network.config
        nothing = [(torch.zeros(1, c.n_head, 0, c.n_embd // c.n_head, device=args.device, dtype=args.dtype),) * 2]
        past, past_pad = stack_caches([voice.past or nothing * c.n_layer for voice in some])
        for voice, tokens in zip(some, asked):
            used = (voice.past[-1][0].size(2) if voice.past else 0) + len(tokens)
            if used + args.max_new_tokens > c.block_size:
                raise ValueError(
                    f"{voice.name}: {used} tokens of prompt and question and --max-new-tokens {args.max_new_tokens} "
                    f"exceed block_size {c.block_size}: shorten one"
                )
        stop = [voice.stop_token() for voice in some]
        new = generate(
            *(network, asked, args.max_new_tokens, past, past_pad, stop), args.temperature, args.top_k, args.seed
        )
        for i, voice, tokens, end in zip(rows, some, new, stop):
            texts[i] = voice.tokenizer.decode(tokens[:-1] if tokens[-1] == end else tokens)
    return texts


def main(argv=None):
    args = parse_args(argv)
    model = load_model(args.model, args.device, args.dtype).freeze()
    voices = load_voices(args, model)
    if args.prompt is not None:
        questions = [args.prompt]
    elif sys.stdin.isatty():
        questions = ask()
    else:
        questions = (line.rstrip("\n") for line in sys.stdin)
    for question in questions:
        if not question:
            raise ValueError("the prompt is empty: give some text")
        for voice, text in zip(voices, answer(voices, question, args)):
            print(f"{voice.name}: {text}" if len(voices) > 1 else text, flush=True)


if __name__ == "__main__":
    run(main, "sample.py")
