"""Put a text into a cache: keys and values that replace it in the context, and which sample.py reads.

    python -m research.distill letter.txt --n-random 64

The base that reads the text teaches the base behind the cache (methods/cartridge.py): it continues pieces of the text.
Printed is how far apart their next tokens are, on continuations that the cache was not tuned on.
"""

import random
from pathlib import Path

import torch

from data.batches import training_batches
from data.tokenizer import Tokenizer
from files import schemas
from files.errors import UserError, run_main
from files.safe import check_unused, write_json
from files.weights import load_model
from methods.cartridge import Cartridge, divergence
from run.flags import OWN_DATA_BASE, Parser, above_zero, at_least, seed_number
from run.prompts import save_prefix
from train_task import train

PIECE, CONTINUATION = 8, 64  # tokens


def pieces(text, n, seed, stop):
    """n pieces of a text (a list of tokens), which the base is asked to continue. Pairs of a piece and a stand-in for
    its answer of the greatest length, as `train` takes them."""
    begins = random.Random(f"snippets {seed}").choices(range(max(1, len(text) - PIECE)), k=n)
    return [(text[i : i + PIECE], [stop] * CONTINUATION) for i in begins]


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("text", metavar="FILE", help="a file of UTF-8 text, which the base's context has to hold")
    p.add_base(OWN_DATA_BASE)
    p.add_argument("--n-random", type=at_least(1), default=24, metavar="N", help="keys and values a layer (default 24)")
    p.add_argument("--examples", type=at_least(1), default=4000, metavar="N", help="pieces of the text (default 4000)")
    p.add_argument("--lr", type=above_zero, default=Cartridge.lr, help="peak learning rate (default %(default)s)")
    p.add_argument("--seed", type=seed_number, default=0, help="(default 0)")
    p.add_argument("--out", help="(default out/NAME-MODEL)")
    args = p.parse_args(argv)
    text = schemas.read_text(args.text)
    model = load_model(args.model, args.device, args.dtype).freeze()
    out = Path(args.out or f"out/{Path(args.text).stem}-{model.name.rpartition('/')[2]}")
    check_unused(out)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bpe")
    tokens = tokenizer.encode_task(text)
    room = model.config.block_size - len(tokenizer.bos) - PIECE - CONTINUATION
    if not PIECE < len(tokens) <= room:
        raise UserError(f"{args.text} has {len(tokens)} tokens: give {PIECE + 1} to {room}, which {model.name} reads")
    method = Cartridge(model, n_random=args.n_random, trigger=tokenizer.bos + tokens, seed=args.seed).to(args.device)
    held_out = pieces(tokens, 64, f"held out {args.seed}", tokenizer.eot)
    (batch,) = training_batches(held_out, len(held_out), random.Random(0))
    lesson = method.teach(model, *(t.to(args.device) for t in batch))

    @torch.no_grad()
    def distance(past):
        return divergence(model, past, *lesson).item()

    kl = {"nothing": distance(None), "before tuning": distance(method.past(model))}
    encoded = pieces(tokens, args.examples, args.seed, tokenizer.eot)
    curve = train(method, model, encoded, 1, 32, args.lr, args.dtype, args.seed)  # one epoch, 32 pieces a step
    kl["tuned"] = distance(method.past(model))
    out.mkdir(parents=True, exist_ok=True)
    save_prefix(method, out / "prefix.safetensors", model, tokenizer, trigger=text)
    made = vars(args) | {"dtype": str(args.dtype).removeprefix("torch.")}
    results = {"args": made, "tokens": len(tokens), "rows": method.n_rows(), "divergence": kl, "loss": curve}
    write_json(out / "results.json", results)
    print(f"{len(tokens)} tokens in {method.n_rows()} rows; divergence from {model.name} reading them, nats per token:")
    for name, value in kl.items():
        print(f"  {name:<14}{value:.3f}")
    print(f"\nwrote prefix.safetensors, results.json to {out}")


if __name__ == "__main__":
    run_main(main)
