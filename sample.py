"""Talk to a frozen GPT-2, with trained prefixes or without.

    python sample.py --prefix out/addition-nano/prefix.safetensors --prompt 321+654=
    python sample.py --prefix A.safetensors B.safetensors --compare     asks at a prompt, until an empty line
    echo 321+654= | python sample.py --prefix ...                       every line of stdin is a question

Every question is answered behind every prefix, all of them rows of one batch.
"""

import sys
from pathlib import Path

import torch

import prefix
from cli import Parser, run
from data.tokenizer import Tokenizer
from generate import stack_caches
from model import GPT


def read_args():
    p = Parser(__doc__)
    p.add_base()
    p.add_argument("--prefix", nargs="+", default=[], metavar="FILE", help="trained prefixes (default: none, the base)")
    p.add_argument("--compare", action="store_true", help="show the base without a prefix beside each")
    p.add_argument("--prompt", metavar="TEXT", help="one question (default: ask, or read lines from stdin)")
    p.add_argument("--max-new-tokens", type=int, default=100, help="(default %(default)s)")
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    p.add_argument("--top-k", type=int, help="sample from the likeliest only (default: from all)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--tokenize", choices=["bytes", "bpe"], default="bpe", help="of the base's text without a prefix")
    args = p.parse_args()
    if args.max_new_tokens < 1 or args.temperature < 0 or (args.top_k is not None and args.top_k < 1):
        raise ValueError("--max-new-tokens and --top-k start at 1, --temperature at 0")
    return args


@torch.no_grad()
def decode(model, rows, max_new_tokens, **how):
    """Continue rows of (cache or None, token list, stop token), each behind its own prompt, in one batch.

    Prompts and texts may differ in length: each row's cache is filled up alone, then all are stacked.
    Returns a list of token lists, without the stop. `how` goes to model.generate.
    """
    device = model.wte.weight.device
    last = torch.tensor([[tokens[-1]] for _, tokens, _ in rows], device=device)  # (B, 1)
    caches = []
    for past, tokens, _ in rows:
        text = torch.tensor([tokens[:-1]], dtype=torch.long, device=device)  # (1, T-1)
        caches.append(model.prefill(text, past) if len(tokens) > 1 else past or model.prefill(text))
    cache, pad = stack_caches(caches)
    stop = torch.tensor([stop for _, _, stop in rows], device=device)  # (B)
    new = model.generate(last, max_new_tokens, cache, stop, pad=pad, **how).tolist()
    return [row[: row.index(stop)] if stop in row else row for row, (_, _, stop) in zip(new, rows)]


def ask():
    """Questions from a person, until an empty line or the end of input."""
    try:
        while question := input("> "):
            yield question
    except EOFError:
        print()


def main():
    args = read_args()
    model = GPT.load(args.model, args.device, args.dtype).freeze()
    base = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize)
    voices = []  # (name, network, method, cache, tokenizer, form, stop)
    for path in args.prefix:
        prompt, header = prefix.load(path, model, base)
        with torch.no_grad():
            cache = prompt(model)
        name = Path(path).resolve().parent.name if Path(path).name == "prefix.safetensors" else Path(path).stem
        tokenizer = Tokenizer(base.encoding, header["tokenize"])
        voices.append((name, prompt.network(model), prompt, cache, tokenizer, header["form"], header["stop"]))
        if args.compare:
            voices.append((f"{name}, base alone", model, prefix.Method(), None, *voices[-1][4:]))
    if not voices:
        voices = [(model.name, model, prefix.Method(), None, base, "{}", "")]

    def answer(question):
        rows = {}  # {network: [(voice, (cache, tokens, stop))]}: those of one network are one batch
        for i, (name, network, prompt, cache, tokenizer, form, stop) in enumerate(voices):
            tokens = prompt.insert_rows(tokenizer.encode_task(form.replace("{}", question)))
            used = (cache[-1][0].size(2) if cache else 0) + len(tokens)
            if used + args.max_new_tokens > model.config.block_size:
                raise ValueError(
                    f"{name}: {used} tokens of prefix and prompt and --max-new-tokens {args.max_new_tokens} exceed "
                    f"block_size {model.config.block_size}: shorten one"
                )
            row = cache, tokens, tokenizer.encode_task(stop)[-1] if stop else tokenizer.eot
            rows.setdefault(network, []).append((i, row))
        new = {}
        how = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
        for network, some in rows.items():
            texts = decode(network, [row for _, row in some], args.max_new_tokens, **how)
            new |= {i: text for (i, _), text in zip(some, texts)}
        for i, (name, _, _, _, tokenizer, _, _) in enumerate(voices):
            print(f"{name}: {tokenizer.decode(new[i])}" if len(voices) > 1 else tokenizer.decode(new[i]), flush=True)

    if args.prompt is not None:
        questions = [args.prompt]
    elif sys.stdin.isatty():
        questions = ask()
    else:
        questions = (line.rstrip("\n") for line in sys.stdin)
    for question in questions:
        if not question:
            raise ValueError("the prompt is empty: give some text")
        answer(question)


if __name__ == "__main__":
    run(main, "sample.py")
