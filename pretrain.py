"""How the embedded base model `nano` was made, and how to make another.

    python pretrain.py --text FOLDER        FOLDER holds .txt files of prose, one per book
    python pretrain.py --show-pages 5       look at what it reads beside them

Trains a tokenizer, prepares token files, pretrains, and writes a model folder that
train_task.py --model takes. Stopped runs carry on from their last checkpoint.
"""

import json
import math
import os
import random
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiktoken._educational import bpe_train
from tqdm import tqdm

import muon
import tasks
from checkpoint import save_model, write_json, write_tensors
from cli import Parser, run
from data import pages
from data.tokenizer import Tokenizer
from model import GPT, GPTConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# words with their leading space, each digit alone, runs of marks, white space
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


def read_args():
    p = Parser(__doc__)
    p.add_argument("--text", help="folder of .txt files of prose")
    p.add_argument("--out", default="out/nano", help="checkpoints, logs and the finished model (default %(default)s)")
    p.add_argument("--show-pages", type=int, metavar="N", help="print N pages of worked examples and stop")
    p.add_argument("--tokens", type=float, default=32e6, help="tokens to train on (default %(default).0f)")
    p.add_argument("--prose", type=float, default=0.1, help="share of prose among them (default %(default)s)")
    p.add_argument(
        "--question-weight", type=float, default=0.2, help="weight of the loss on questions (default %(default)s)"
    )
    p.add_argument("--vocab-size", type=int, default=1024, help="257: plain bytes; more: byte-level BPE (%(default)s)")
    p.add_argument("--block-size", type=int, default=512)
    p.add_argument(
        "--short",
        type=float,
        default=0.75,
        help="first share of the steps, with windows of half a block: faster, and no worse (default %(default)s)",
    )
    p.add_argument("--n-layer", type=int, default=6)
    p.add_argument("--n-embd", type=int, default=256, help="128: 1.4M parameters; 256: 5M; 384: 11M")
    p.add_argument("--n-head", type=int, help="default: as many heads as 64 goes into --n-embd")
    p.add_argument("--batch-tokens", type=int, default=4096, help="tokens per step (default %(default)s)")
    p.add_argument("--lr", type=float, default=0.02, help="of the matrices, by Muon (default %(default)s)")
    p.add_argument("--adam-lr", type=float, default=2e-3, help="of everything else, by AdamW (default %(default)s)")
    p.add_argument(
        "--decay",
        type=float,
        default=0.4,
        help="last share of the steps, over which both fall to zero (default %(default)s)",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--every", type=int, default=250, help="steps between checkpoints and ladders (default %(default)s)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the matrix products; the weights are trained in float32 (default: what the device does best)",
    )
    args = p.parse_args()
    args.n_head = args.n_head or max(1, args.n_embd // 64)
    return args


# ---------------------------------------------------------------- data


def train_tokenizer(books, vocab_size, rng):
    """Byte-level BPE on a sample of every book; vocab_size counts the end-of-text token."""
    sample = ""
    for book in books:
        start = rng.randrange(max(1, len(book) - 3000))
        sample += book[start : start + 3000]
    ranks = bpe_train(sample, vocab_size - 1, PATTERN, visualise=None)
    return {
        "name": f"nano-{vocab_size}",
        "pattern": PATTERN,
        "tokens": [t.decode("latin-1") for t in sorted(ranks, key=ranks.get)],
    }


def page_tokens(tokenizer, page):
    """(tokens, asked) of a page, asked 1 where a token is part of a question, which nobody could foresee.

    Headings are language, examples are spelled, as train_task.py spells its tasks.
    """
    _, heading, examples = page
    tokens, asked = tokenizer.encode(heading), []
    asked += [0] * len(tokens)
    for question, answer, end in examples:
        q, a = tokenizer.encode_task(question), tokenizer.encode_task(answer + end)
        tokens, asked = tokens + q + a, asked + [1] * len(q) + [0] * len(a)
    return tokens + [tokenizer.eot], asked + [0]


def prose_tokens(tokenizer, book):
    tokens = tokenizer.encode(book) + [tokenizer.eot]
    return tokens, [0] * len(tokens)


def prepare(args, out):
    """The tokenizer, and arrays (2, tokens) of tokens and asked for training and validation, memory-mapped."""
    files = sorted(Path(args.text).glob("**/*.txt"))
    if not files:
        raise ValueError(f"no .txt file in {args.text}: name a folder of prose with --text")
    books = [f.read_text(encoding="utf-8-sig", errors="replace") for f in files]
    if not (out / "encoding.json").exists():
        print("training the tokenizer ...", flush=True)
        write_json(out / "encoding.json", train_tokenizer(books, args.vocab_size, random.Random(args.seed)))
    tokenizer = Tokenizer.load(out, args.vocab_size)
    held_out = books[::50]  # two books of a hundred
    prose = [b for i, b in enumerate(books) if i % 50]
    random.Random(f"prose {args.seed}").shuffle(prose)

    def draw(seed):
        rng = random.Random(seed)
        while True:
            yield page_tokens(tokenizer, pages.page(rng))

    streams = {
        "prose": (int(args.tokens * args.prose), (prose_tokens(tokenizer, b) for b in prose)),
        "prose-val": (100_000, (prose_tokens(tokenizer, b) for b in held_out)),
        "pages": (int(args.tokens * (1 - args.prose)), draw(f"pages {args.seed}")),
        "pages-val": (100_000, draw(f"validation pages {args.seed}")),
    }
    for name, (n, documents) in streams.items():
        if (out / f"{name}.npy").exists():
            continue
        n = max(n, args.block_size + 1)  # a window at least
        parts, bar = [], tqdm(total=n, desc=name, unit="token", unit_scale=True)
        for document in documents:
            parts.append(np.array(document, dtype=np.uint16))  # (2, tokens of it)
            bar.update(parts[-1].shape[1])
            if bar.n >= n:
                break
        bar.close()
        np.save(out / "tmp.npy", np.concatenate(parts, axis=1)[:, :n])
        os.replace(out / "tmp.npy", out / f"{name}.npy")
    return tokenizer, {name: np.load(out / f"{name}.npy", mmap_mode="r") for name in streams}


def windows(data, B, T, rng):
    """B random windows -> tokens, targets and whether the target is asked, (B, T) each."""
    starts = rng.integers(data.shape[1] - T, size=B)
    x = torch.from_numpy(np.stack([data[:, s : s + T + 1] for s in starts]).astype(np.int64))  # (B, 2, T+1)
    return x[:, 0, :-1], x[:, 0, 1:], x[:, 1, 1:]


# ---------------------------------------------------------------- progress


@torch.no_grad()
def validation_loss(model, data, T):
    """Mean nats per token over up to 256 windows of T side by side: of all tokens, and of those not asked."""
    device = model.wte.weight.device
    n = min(256, (data.shape[1] - 1) // T)
    x, y = (torch.from_numpy(a.astype(np.int64)).view(n, T) for a in (data[0, : n * T], data[0, 1 : n * T + 1]))
    losses = torch.cat(
        [
            F.cross_entropy(model.logits(model(a.to(device))).flatten(0, 1), b.flatten().to(device), reduction="none")
            for a, b in zip(x.split(8), y.split(8))
        ]
    ).cpu()
    return losses.mean().item(), losses[torch.from_numpy(data[1, 1 : n * T + 1] == 0)].mean().item()


SHOTS = (0, 1, 2, 4, 8)


@torch.no_grad()
def ladder(model, tokenizer, T, n=32):
    """{skill: {shots: accuracy}} on the first T tokens of n new pages a skill, each in a format of its own.

    An answer counts when each of its tokens, and the first of what ends it, is the likeliest
    one: that is what greedy decoding would have written. One pass gives all shots of a page.
    """
    scores = {}
    for skill in pages.SKILLS:
        rng, right = random.Random(f"ladder {skill}"), {k: [] for k in SHOTS}
        for _ in range(n):
            _, heading, examples = pages.page(rng, skill)
            tokens, spans = tokenizer.encode(heading), []
            for question, answer, end in examples:
                tokens += tokenizer.encode_task(question)
                spans.append((len(tokens), len(tokens) + len(tokenizer.encode_task(answer + end[:1]))))
                tokens += tokenizer.encode_task(answer + end)
            x = torch.tensor(tokens[:T], device=model.wte.weight.device)
            ok = model.logits(model(x[None]))[0, :-1].argmax(-1) == x[1:]  # (T-1), ok[t]: token t+1 was foreseen
            for shots, (start, stop) in enumerate(spans):
                if shots in right and stop <= len(x):
                    right[shots].append(ok[start - 1 : stop - 1].all().item())
        scores[skill] = {shots: sum(r) / len(r) for shots, r in right.items() if r}
    return scores


def plot(log, path):
    """Four-shot accuracy of every skill, and the losses, against tokens."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    millions = [row["tokens"] / 1e6 for row in log]
    for i, skill in enumerate(pages.SKILLS):
        left.plot(
            millions,
            [100 * row["ladder"][skill].get("4", math.nan) for row in log],
            label=skill,
            color=plt.cm.tab20(i / 12),
            lw=1.5,
        )
    left.set(xlabel="tokens (millions)", ylabel="4-shot accuracy, new format (%)", ylim=(-3, 103))
    left.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for name in ("pages", "answers", "prose"):
        right.plot(millions, [row[name] for row in log], label=name)
    right.set(xlabel="tokens (millions)", ylabel="validation loss (nats per token)", ylim=(0, None))
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    fig.savefig(path.with_name("tmp.png"), dpi=150)
    os.replace(path.with_name("tmp.png"), path)
    plt.close(fig)


# ---------------------------------------------------------------- main


def main():
    args = read_args()
    if args.show_pages is not None:
        rng = random.Random(args.seed)
        for _ in range(args.show_pages):
            skill, heading, examples = pages.page(rng)
            print(f"---- {skill}\n{heading}{pages.text(examples)}")
        return
    if args.text is None:
        raise ValueError("name a folder of .txt files with --text")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    init_kwargs = {
        k: v
        for k, v in vars(args).items()
        if k not in ("text", "out", "tokens", "show_pages", "compile", "device", "dtype", "every", "decay")
    }
    if (out / "args.json").exists() and (made_before := json.loads((out / "args.json").read_text())) != init_kwargs:
        changed = [k for k in init_kwargs if init_kwargs[k] != made_before.get(k)]
        raise ValueError(f"{out} holds a run with another --{changed[0].replace('_', '-')}: give another --out")
    write_json(out / "args.json", init_kwargs)
    tokenizer, data = prepare(args, out)

    torch.manual_seed(args.seed)
    model = GPT(GPTConfig(args.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd)).to(args.device)
    optimizers = muon.optimizers(model, args.lr, args.adam_lr, args.dtype)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    steps, step, log, seconds = int(args.tokens // args.batch_tokens), 0, [], 0.0
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        step, log, seconds = load_checkpoint(checkpoint, model, optimizers)
        print(f"carrying on from step {step}")

    def network(x, y):
        return F.cross_entropy(model.logits(model(x)).flatten(0, 1).float(), y, reduction="none")

    network = torch.compile(network, dynamic=False) if args.compile else network
    started, bar = time.time(), tqdm(initial=step, total=steps, desc="pretraining", unit="step")
    while step < steps:
        factor = min(1, (step + 1) / 50, (steps - step) / (args.decay * steps))  # warm up, hold, decay to zero
        for optimizer, lr in zip(optimizers, (args.lr, args.adam_lr)):
            optimizer.param_groups[0]["lr"] = lr * factor
        T = args.block_size // 2 if step < args.short * steps else args.block_size
        B = args.batch_tokens // T
        rng = np.random.default_rng([args.seed, step])  # a step's data depend on nothing before it
        n_prose = rng.binomial(B, args.prose)
        parts = [windows(data[name], n, T, rng) for name, n in (("prose", n_prose), ("pages", B - n_prose)) if n]
        x, y, asked = (torch.cat(t).to(args.device) for t in zip(*parts))  # (B, T) each
        with torch.autocast(args.device, args.dtype, enabled=args.dtype != torch.float32):
            losses = network(x, y.flatten())  # (B * T)
        weight = 1 - (1 - args.question_weight) * asked.flatten()
        loss = (losses * weight).sum() / weight.sum()
        if not loss.isfinite():
            raise ValueError(
                f"the loss is {loss.item()} at step {step}: lower --lr or --adam-lr; the last checkpoint is kept"
            )
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(
            loss=f"{loss.item():.3f}",
            tokens_per_s=f"{bar.format_dict['rate'] * args.batch_tokens:.0f}" if bar.format_dict["rate"] else "",
        )
        if step % args.every == 0 or step == steps:
            row = {
                "tokens": step * args.batch_tokens,
                "ladder": {k: {str(n): a for n, a in v.items()} for k, v in ladder(model, tokenizer, T).items()},
            }
            row["prose"], _ = validation_loss(model, data["prose-val"], T)
            row["pages"], row["answers"] = validation_loss(model, data["pages-val"], T)
            log.append(row)
            bar.write(
                f"{row['tokens'] / 1e6:.1f}M tokens, pages {row['pages']:.3f}, answers {row['answers']:.3f}, "
                f"prose {row['prose']:.3f}, 4-shot "
                + ", ".join(f"{k} {100 * v.get('4', math.nan):.0f}" for k, v in row["ladder"].items())
            )
            save_checkpoint(
                checkpoint, model, optimizers, {"step": step, "log": log, "seconds": seconds + time.time() - started}
            )
            write_json(out / "log.json", log)
            plot(log, out / "ladder.png")
    bar.close()
    seconds += time.time() - started
    save_model(model, out, torch.bfloat16)
    print(f"saved {out}: {steps * args.batch_tokens / 1e6:.1f}M tokens in {seconds / 60:.0f} minutes")
    write_card(args, out, model, log[-1], seconds)


def save_checkpoint(path, model, optimizers, state):
    tensors = {f"model.{n}": p for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, p in enumerate(optimizer.param_groups[0]["params"]):
            tensors |= {f"optimizer.{i}.{j}.{key}": t for key, t in optimizer.state[p].items()}
    write_tensors(path, tensors, {"state": json.dumps(state)})


def load_checkpoint(path, model, optimizers):
    """Put back the weights and the optimizers' state; returns step, log and seconds so far."""
    with safe_open(path, framework="pt", device=str(model.wte.weight.device)) as file:
        state = json.loads(file.metadata()["state"])
        model.load_state_dict(
            {n.removeprefix("model."): file.get_tensor(n) for n in file.keys() if n.startswith("model.")}
        )
        for n in file.keys():
            if n.startswith("optimizer."):
                _, i, j, key = n.split(".")
                optimizer = optimizers[int(i)]
                optimizer.state[optimizer.param_groups[0]["params"][int(j)]][key] = file.get_tensor(n)
    return state["step"], state["log"], state["seconds"]


def write_card(args, out, model, last, seconds):
    """The model card, with what the run itself knows."""
    c = model.config
    shots = "\n".join(
        f"| {skill} | "
        + " | ".join(
            f"{100 * last['ladder'][skill][str(k)]:.0f}" if str(k) in last["ladder"][skill] else "" for k in SHOTS
        )
        + " |"
        for skill in pages.SKILLS
    )
    total = sum(weight for weight, _, _ in pages.SKILLS.values())
    held_out = "\n".join(
        f"- `{tasks.load(name).examples(1)[0].question}{tasks.load(name).examples(1)[0].answer}` ({name})"
        for name in tasks.names()
    )
    tokens = "one token a byte, in prose and worked examples alike"
    if c.vocab_size > 257:
        tokens = (
            "byte-level BPE trained on the prose, digits single; worked examples are spelled, one token a character"
        )
    text = f"""# {out.name}: a small GPT-2 to steer

Made by `pretrain.py`; loaded by `train_task.py` and by transformers' `GPT2LMHeadModel` alike.

| | |
| --- | --- |
| parameters | {sum(p.numel() for p in model.parameters()):,} ({c.n_layer} layers, {c.n_embd} wide, {c.n_head} heads, {c.block_size} positions) |
| vocabulary | {c.vocab_size:,}: {tokens} |
| tokens seen | {last["tokens"]:,} in {int(args.tokens // args.batch_tokens):,} steps of {args.batch_tokens:,}; the first {100 * args.short:.0f}% in windows of {c.block_size // 2}, the rest of {c.block_size} |
| mixture | {100 * args.prose:.0f}% prose (100 public-domain English novels, two of them held out), {100 - 100 * args.prose:.0f}% pages of worked examples |
| optimizer | Muon {args.lr} for the matrices, AdamW {args.adam_lr} for the rest; constant, then to zero over the last {100 * args.decay:.0f}% |
| validation loss | pages {last["pages"]:.3f} (answers alone {last["answers"]:.3f}), prose {last["prose"]:.3f} nats per token |
| weights | bfloat16; trained in float32 with {str(args.dtype).removeprefix("torch.")} products |
| seed | {args.seed} |
| time | {seconds / 60:.0f} minutes on {"a CUDA device" if args.device != "cpu" else f"{torch.get_num_threads()} CPU cores"} |

## What it has seen

Pages each show one skill in one randomly drawn format, drawn with these weights: {", ".join(f"{skill} {100 * w / total:.0f}%" for skill, (w, _, _) in pages.SKILLS.items())}.
Numbers have up to {pages.MAX_DIGITS} digits, words up to {pages.MAX_LETTERS} letters (a fifth of them letters without sense), lists up to {pages.MAX_LIST} items.
So 5 and 6 digits, 9 and 10 letters, 5 and 6 words are out of distribution for a prompt tuned on less, and not for the base;
sums of 7 digits or terms, words of 13 letters and lists of 7 are new to both. The tasks' *new words* occur on no page.

## What it has not seen

The formats of the tasks, whatever ends them, on any page:

{held_out}

A page may differ from one of these by a single separator. Prose was not searched: it holds no sums.

## What it can do

Accuracy in % on new pages, each in a new format of the same family, after that many examples on the same page:

| skill | {" | ".join(f"{k} shots" for k in SHOTS)} |
| --- |{" --- |" * len(SHOTS)}
{shots}

![four-shot accuracy and validation loss against tokens](ladder.png)

Losses are those of windows as long as training's were: they jump where these grow, to positions not yet learned.
"""  # noqa: E501
    (out / "README.md.tmp").write_text(text)
    os.replace(out / "README.md.tmp", out / "README.md")


if __name__ == "__main__":
    run(main, "pretrain.py")
