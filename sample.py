"""Talk to a frozen GPT-2 or Llama, behind trained prompts or alone.

    python sample.py --prefix out/addition-nano-2/prefix.safetensors --prompt 321+654=
    python sample.py --prefix A.safetensors B.safetensors --compare     asks at a prompt, until an empty line
    echo 321+654= | python sample.py --prefix ...                       every line of stdin is a question

Every question is answered behind every prompt, all of them rows of one batch.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

import prefix
from data.tokenizer import Tokenizer
from files.errors import UserError, run_main
from files.peft import base_of
from files.prompts import load_prefix
from files.weights import load_model
from generate import empty_cache, generate, stack_caches
from model import GPT
from run.flags import DEFAULT_BASE, Parser, at_least, seed, temperature

MOST_PROMPTS = 256  # in one batch
LONGEST = 100_000  # characters of a question: no base reads more


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base(f"the one that the first prompt was tuned on; without a prompt {DEFAULT_BASE}")
    p.add_argument("--prefix", nargs="+", default=[], metavar="FILE", help="trained prompts (default: the base alone)")
    p.add_argument("--compare", action="store_true", help="show the base without a prompt beside each")
    p.add_argument("--prompt", metavar="TEXT", help="one question (default: ask, or read lines from stdin)")
    p.add_argument("--max-new-tokens", type=at_least(1), default=100, help="(default %(default)s)")
    p.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy (default %(default)s)")
    p.add_argument("--top-k", type=at_least(1), help="sample from the likeliest only (default: from all)")
    p.add_argument("--seed", type=seed, default=0, help="of sampling (default %(default)s)")
    p.add_argument("--tokenize", choices=["bytes", "bpe"], default="bpe", help="of the text when no prompt is loaded")
    args = p.parse_args(argv)
    if len(args.prefix) > MOST_PROMPTS:
        raise UserError(f"--prefix of {len(args.prefix)} files: at most {MOST_PROMPTS} stand in one batch")
    return args


def ask():
    """Questions from a person, until an empty line or the end of input."""
    try:
        while question := input("> "):
            yield question
    except EOFError:
        print()


def lines(file):
    """The lines of a file, each a question."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise UserError(f"a question of more than {LONGEST:,} characters: shorten it")
        yield line.rstrip("\n")


class PromptedBase(NamedTuple):
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
        return [self.tokenizer.eot, *self.tokenizer.encode_task(self.stop)][-1]


@torch.no_grad()
def load_bases(args, model):
    """A PromptedBase for each prompt file, and with --compare the base alone beside each."""
    base = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize)
    alone, bases = prefix.METHODS["zero-shot"](model).to(args.device), []
    if base.bos:
        alone.shots = torch.tensor([base.bos], device=args.device)
    for path in map(Path, args.prefix):
        method, header = load_prefix(path, model, base)
        network, tokenizer = method.network(model), Tokenizer(base.encoding, header["tokenize"])
        name = path.resolve().parent.name if path.name == "prefix.safetensors" else path.stem
        format_and_stop = header["question_format"], header["stop"]
        bases.append(PromptedBase(name, method, network, method.past(network), tokenizer, *format_and_stop))
        if args.compare:
            bases.append(
                PromptedBase(f"{name}, base alone", alone, model, alone.past(model), tokenizer, *format_and_stop)
            )
    return bases or [PromptedBase(model.name, alone, model, alone.past(model), base, "{}", "")]


@torch.no_grad()
def answer(bases, question, args):
    """[text]: what each one answers. Those of one network stand in one batch, whatever their prompts' lengths."""
    texts = [""] * len(bases)
    for network in dict.fromkeys(one.network for one in bases):
        rows = [i for i, one in enumerate(bases) if one.network is network]
        batch = [bases[i] for i in rows]
        asked = [one.tokens(question) for one in batch]
        past, past_pad = stack_caches([one.past or empty_cache(network) for one in batch])
        for one, tokens in zip(batch, asked):
            if not tokens:
                raise UserError(f"{one.name}: the question has no token for its tokenizer: ask another")
            used = (one.past[-1][0].size(2) if one.past else 0) + len(tokens)
            if used + args.max_new_tokens > network.config.block_size:
                raise UserError(
                    f"{one.name}: {used} tokens of prompt and question and --max-new-tokens {args.max_new_tokens} "
                    f"exceed block_size {network.config.block_size}: shorten one"
                )
        stop = [one.stop_token() for one in batch]
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
        new = generate(network, asked, args.max_new_tokens, past, past_pad, stop, **sampling)
        for i, one, tokens, end in zip(rows, batch, new, stop):
            texts[i] = one.tokenizer.decode(tokens[:-1] if tokens[-1] == end else tokens)
    return texts


def main(argv=None):
    args = parse_args(argv)
    base = args.model or (base_of(Path(args.prefix[0])) if args.prefix else DEFAULT_BASE)
    model = load_model(base, args.device, args.dtype).freeze()
    bases = load_bases(args, model)
    if args.prompt is not None:
        questions = [args.prompt]
    elif sys.stdin is None:
        raise UserError("stdin is closed: give --prompt")
    else:
        questions = ask() if sys.stdin.isatty() else lines(sys.stdin)
    for question in questions:
        if not question:
            raise UserError("the prompt is empty: give batch text")
        for one, text in zip(bases, answer(bases, question, args)):
            print(f"{one.name}: {text}" if len(bases) > 1 else text, flush=True)


if __name__ == "__main__":
    run_main(main, "sample.py")
