"""Talk to a frozen GPT-2 or Llama, behind tuned prompts or alone.

python sample.py --prefix out/addition-nano-2/prefix.safetensors --prompt 321+654=
python sample.py --prefix A.safetensors B.safetensors --compare     asks at a prompt, until an empty line
python sample.py --model smollm2 --chat                             a chat model in its own template
echo 321+654= | python sample.py --prefix ...                       every line of stdin is a question
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]  # which python -I leaves out
from files.errors import UserError, run_main  # before torch is imported

# isort: split
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data.chat import chat_template, encode_chat
from data.tokenizer import Tokenizer
from files.weights import load_model
from generate import empty_cache, generate, stack_caches
from prefix import METHODS, Method
from run.flags import DEFAULT_BASE, TOKENIZE, Parser, at_least, number, seed_number
from run.prompts import base_of, load_prefix
from tasks.your_data import MOST_CHARACTERS


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base(f"the one that the first prompt was tuned on; without a prompt {DEFAULT_BASE}")
    p.add_argument("--prefix", nargs="+", default=[], metavar="FILE", help="tuned prompts (default: the base alone)")
    p.add_argument("--compare", action="store_true", help="show the base without a prompt beside each")
    p.add_argument("--chat", action="store_true", help="show what the base answers in its chat template")
    p.add_argument("--prompt", metavar="TEXT", help="one question (default: ask, or read lines from stdin)")
    p.add_argument("--max-new-tokens", type=at_least(1), default=100, help="of an answer (default %(default)s)")
    p.add_argument("--temperature", type=number(0, 1000), default=0.0, help="0 is greedy (default %(default)s)")
    p.add_argument("--top-k", type=at_least(1), help="sample from the likeliest only (default: from all)")
    p.add_argument("--seed", type=seed_number, default=0, help="of sampling (default %(default)s)")
    how = "of the text when no prompt is loaded: bytes, bpe, or special (default bpe)"
    p.add_argument("--tokenize", choices=TOKENIZE, default="bpe", metavar="HOW", help=how)
    return p.parse_args(argv)


class PromptedBase(NamedTuple):
    """What answers a question: a base behind a prompt, or alone."""

    name: str
    method: Method
    network: torch.nn.Module
    past: list | None  # the prompt's KV cache
    tokenizer: Tokenizer
    encode: Callable  # from a question to its tokens
    stop: str  # what ends an answer; '': the end-of-text token


@torch.no_grad()
def load_bases(args, model):
    """A PromptedBase for each prompt file, with --compare the base alone beside each, with --chat its chat template."""
    base = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize)
    alone, bases = METHODS["zero-shot"](model).to(args.device), []
    if base.bos:
        alone.shots = torch.tensor([base.bos], device=args.device)
    for path in map(Path, args.prefix):
        method, header = load_prefix(path, model, base)
        network, tokenizer = method.network(model), Tokenizer(base.encoding, header["tokenize"], base.ends)
        name = path.resolve().parent.name if path.name == "prefix.safetensors" else path.stem
        shared = tokenizer, partial(encode_in, tokenizer, header["question_format"]), header["stop"]
        bases.append(PromptedBase(name, method, network, method.past(network), *shared))
        if args.compare:
            bases.append(PromptedBase(f"{name}, base alone", alone, model, alone.past(model), *shared))
    if args.chat:  # whose template writes the first token itself
        encode = partial(encode_chat, base, model.config, chat_template(model.folder))
        bases.append(PromptedBase(f"{model.name}, chat", METHODS["zero-shot"](model), model, None, base, encode, ""))
    return bases or [PromptedBase(model.name, alone, model, alone.past(model), base, base.encode_task, "")]


def encode_in(tokenizer, question_format, question):
    return tokenizer.encode_task(question_format.replace("{}", question))


@torch.no_grad()
def answer(bases, question, args):
    """[text]: what each one answers. Those of one network are rows of one batch, whatever their prompts' lengths."""
    texts = [""] * len(bases)
    for network in dict.fromkeys(one.network for one in bases):
        rows = [i for i, one in enumerate(bases) if one.network is network]
        batch = [bases[i] for i in rows]
        asked = [one.method.insert_rows(one.encode(question)) for one in batch]
        past, past_pad = stack_caches([one.past or empty_cache(network) for one in batch])
        # every row is padded to the longest prompt and the longest question
        used, limit = past[0][0].size(2) + max(map(len, asked)), network.config.block_size
        names = ", ".join(one.name for one in batch)
        if not all(asked):
            raise UserError(f"{names}: the question is empty: write one")
        if used + args.max_new_tokens > limit:
            sizes = f"{used} tokens of prompt and question and --max-new-tokens {args.max_new_tokens} do not fit"
            raise UserError(f"{names}: {sizes} into block_size {limit}: lower the flag, or shorten the question")
        stops = [one.tokenizer.stops(one.stop) for one in batch]
        stop = [[*some, *[-1] * (max(map(len, stops)) - len(some))] for some in stops]  # (B, E)
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
        new = generate(network, asked, args.max_new_tokens, past, past_pad, stop, **sampling)
        for i, one, tokens in zip(rows, batch, new):
            texts[i] = one.tokenizer.cut(tokens, one.stop).removesuffix(one.stop)
    return texts


def questions(args):
    """Yields the questions: --prompt, or what a person types until an empty line, or the lines of stdin."""
    if args.prompt is not None:
        yield args.prompt
    elif sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python hears of one just before it reads when the line has ended
        try:
            while question := input("> "):
                yield question
        except EOFError:
            print()
    else:  # the line ends of any system, U+FFFD for what is no text, no byte order mark
        sys.stdin.reconfigure(newline=None, errors="replace")
        while line := sys.stdin.readline(MOST_CHARACTERS):
            if len(line) == MOST_CHARACTERS:  # /dev/zero has one line, which does not end
                raise UserError(f"a line of stdin has {MOST_CHARACTERS:,} characters or more: break it")
            yield line.strip("\n\ufeff")


def main(argv=None):
    args = parse_args(argv)
    base = args.model or (base_of(Path(args.prefix[0])) if args.prefix else DEFAULT_BASE)
    model = load_model(base, args.device, args.dtype).freeze()
    bases = load_bases(args, model)
    blank = unanswered = 0
    for n, question in enumerate(questions(args), 1):
        if args.prompt is None and not question.strip():
            blank += 1  # printed before the next answer, if there is one
            continue
        print("\n" * blank, end="")
        blank = 0
        try:
            texts = answer(bases, question, args)
        except UserError as error:  # the other questions get their answers
            if args.prompt is not None:
                raise
            print(f"question {n}: {error}", file=sys.stderr)
            texts, unanswered = [""], unanswered + 1
        for one, text in zip(bases, texts):
            print(f"{one.name}: {text}" if len(texts) > 1 else text, flush=True)
    if unanswered:
        raise UserError(f"{unanswered} of {n} questions have no answer, but a blank line")


if __name__ == "__main__":
    run_main(main)
