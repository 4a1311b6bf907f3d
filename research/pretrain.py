"""How the embedded base model nano-2 was made, and how to make another.

    python pretrain.py --text FOLDER         FOLDER holds .txt files of prose, one for each book
    python pretrain.py --show-documents 5    look at the synthetic documents that it reads beside them

Trains a tokenizer, prepares token files, pretrains, and writes a model folder that train_task.py --model takes. With
--resume the same command goes on where it was stopped, or where it ended if --tokens grew.
"""

import itertools
import math
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import tasks
from data.tokenizer import Tokenizer, byte_alphabet
from files import schemas
from files.errors import UserError, run_main
from files.safe import replacing, write_json, write_text
from files.weights import save_model
from methods import muon
from model import GPT, GPTConfig
from research import documents
from run import processes as distributed
from run import resume
from run.flags import Parser, at_least, check_memory, fraction, rate, seed, weight

# words with their leading space, each digit alone, runs of marks, white space
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("--text", help="folder of .txt files of prose")
    p.add_argument("--out", default="out/base", help="checkpoints, logs and the finished model (default %(default)s)")
    p.add_argument("--show-documents", type=at_least(1), metavar="N", help="print N synthetic documents and stop")
    p.add_argument("--tokens", type=rate, default=32e6, help="number of tokens to train on (default %(default).0f)")
    p.add_argument("--prose", type=fraction, default=0.1, help="share of prose among them (default %(default)s)")
    p.add_argument("--question-weight", type=weight, default=0.2, help="weight of the loss on questions (%(default)s)")
    p.add_argument(
        "--vocab-size",
        type=at_least(257, 65536),
        default=1024,
        help="257: plain bytes; more: byte-level BPE (%(default)s)",
    )
    p.add_argument("--block-size", type=at_least(2, 65536), default=512, help="positions (default %(default)s)")
    p.add_argument(
        "--short-context-frac",
        type=fraction,
        default=0.75,
        help="first share of the steps, in windows of half a block, which is faster (default %(default)s)",
    )
    p.add_argument("--n-layer", type=at_least(1, 1000), default=6, help="number of layers (default %(default)s)")
    p.add_argument("--n-embd", type=at_least(2, 65536), default=256, help="width; 128: 1.4M weights; 256: 5M; 384: 11M")
    p.add_argument("--n-head", type=at_least(1, 65536), help="number of heads (default: --n-embd divided by 64)")
    p.add_argument("--batch-tokens", type=at_least(1, 2**24), default=4096, help="tokens a step (default %(default)s)")
    p.add_argument("--lr", type=rate, default=0.02, help="of the matrices, by Muon (default %(default)s)")
    p.add_argument("--adam-lr", type=rate, default=2e-3, help="of everything else, by AdamW (default %(default)s)")
    p.add_argument(
        "--decay-frac", type=rate, default=0.4, help="last share of the steps, in which both rates fall to zero (0.4)"
    )
    p.add_argument("--seed", type=seed, default=0, help="of weights, documents and windows (default %(default)s)")
    p.add_argument("--eval-interval", type=at_least(1), default=250, help="steps between measurements (%(default)s)")
    p.add_argument("--resume", action="store_true", help="go on where the run in --out was stopped, if it was")
    p.add_argument("--save-minutes", type=weight, default=10, help="between saves of its state (default %(default)s)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the matrix products; the weights are trained in float32 (default: what the device does best)",
    )
    args = p.parse_args(argv)
    args.n_head = args.n_head or max(1, args.n_embd // 64)
    if args.text is None and args.show_documents is None:
        raise UserError("name a folder of .txt files with --text")
    if args.batch_tokens < args.block_size:
        raise UserError(f"--batch-tokens {args.batch_tokens}: give at least --block-size {args.block_size}")
    if args.tokens < args.batch_tokens:
        raise UserError(f"--tokens {args.tokens:.0f}: give at least --batch-tokens {args.batch_tokens}")
    if args.n_embd % args.n_head:
        raise UserError(f"--n-embd {args.n_embd} is not a multiple of --n-head {args.n_head}")
    check_memory(4 * args.tokens, f"--tokens {args.tokens:g}")  # a token, and whether it is asked
    n = (args.vocab_size + args.block_size + 12 * args.n_layer * args.n_embd) * args.n_embd  # parameters
    check_memory(16 * n, f"a model of {n:,} parameters, its gradients and AdamW's averages")
    if args.decay_frac > 1:
        raise UserError(f"--decay-frac {args.decay_frac}: give a number above 0 and up to 1")
    return args


# ---------------------------------------------------------------- data


def train_tokenizer(books, vocab_size, rng):
    """Byte-level BPE on a sample of every book, as encoding.json holds it; vocab_size counts the end-of-text token."""
    encoding = {"name": f"nano-{vocab_size}", "pattern": PATTERN, "tokens": [chr(b) for b in range(256)]}
    if vocab_size == 257:  # plain bytes: there is nothing to merge
        return encoding
    try:  # imported here, since nothing but pretraining needs it
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("pretraining needs the tokenizers library: pip install tokenizers") from None
    sample, length = "", 3 * vocab_size  # characters of each book: more tokens take more text to find
    for book in books:
        start = rng.randrange(max(1, len(book) - length))
        sample += book[start : start + length]
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=list(alphabet), special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator([sample], trainer)
    merged = [token for token, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1]) if len(token) > 1]
    # a character of encoding.json is a byte; merges keep their order, which is their rank
    encoding["tokens"] += ["".join(chr(alphabet[c]) for c in token) for token in merged]
    return encoding


def document_tokens(tokenizer, document):
    """(tokens, asked) of a synthetic document. asked is 1 where a token is part of a question, which nothing foretells.

    Headings are language, examples are bytes, as train_task.py encodes its tasks.
    """
    _, heading, examples = document
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
    files = sorted(f for f in Path(args.text).glob("**/*.txt") if f.is_file())  # a pipe would never end
    if not files:
        raise UserError(f"no .txt file in {args.text}: name a folder of prose with --text")
    books = [f.read_text(encoding="utf-8-sig", errors="replace") for f in files]
    if not (out / "encoding.json").exists():
        print("training the tokenizer ...", flush=True)
        write_json(out / "encoding.json", train_tokenizer(books, args.vocab_size, random.Random(args.seed)))
    tokenizer = Tokenizer.load(out, args.vocab_size)
    held_out = books[::50]  # two books of a hundred
    prose = [b for i, b in enumerate(books) if i % 50]
    random.Random(f"prose {args.seed}").shuffle(prose)
    # the seeds say pages, as when the bundled bases were made: other words, other documents
    parts = {
        "prose": (int(args.tokens * args.prose), (prose_tokens(tokenizer, b) for b in prose)),
        "prose-val": (100_000, (prose_tokens(tokenizer, b) for b in held_out)),
        "documents": (min(int(args.tokens * (1 - args.prose)), MOST_DRAWN), f"pages {args.seed}"),
        "documents-val": (100_000, f"validation pages {args.seed}"),
    }
    tokenizer_of = out, args.vocab_size
    for name, (n, source) in parts.items():
        if not (out / f"{name}.npy").exists():
            n = max(n, args.block_size + 1)  # a window at least
            with tqdm(total=n, desc=name, unit="token", unit_scale=True) as bar:
                if isinstance(source, str):
                    data = draw_documents(tokenizer_of, source, n, bar)
                else:
                    data = first_tokens(source, n, bar)
            with replacing(out / f"{name}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, data)
    return tokenizer, {name: load_tokens(out / f"{name}.npy") for name in parts}


def load_tokens(path):
    """What `first_tokens` made, from its file, (2, N); it stays on the disk until it is read."""
    try:
        if not path.is_file():  # a pipe might never end
            raise UserError("no regular file")
        data = np.load(path, mmap_mode="r")
        if data.dtype != np.uint16 or data.ndim != 2 or len(data) != 2:
            raise UserError(f"{data.dtype} of shape {data.shape}")
    except Exception as error:  # numpy reads the header as Python, which has many ways to be wrong
        raise UserError(f"{path} is not as it was written ({error}): remove it, and it is made again") from None
    return data


PIECE = 2**21  # tokens of documents that a process draws at a time
MOST_DRAWN = 2**26  # tokens of documents in all: a run of more reads them more than once


def draw_documents(tokenizer_of, seed, n, bar):
    """An array (2, n) of tokens and asked. Each piece has a seed of its own, and all cores draw: the same documents on
    any number of them."""
    pieces = [(tokenizer_of, f"{seed} {i}", min(PIECE, n - start)) for i, start in enumerate(range(0, n, PIECE))]
    if len(pieces) == 1:
        return draw_piece(pieces[0], bar)
    with multiprocessing.get_context("spawn").Pool(min(len(pieces), os.cpu_count())) as pool:
        drawn = []
        for piece in pool.imap(draw_piece, pieces):
            drawn.append(piece)
            bar.update(piece.shape[1])
    return np.concatenate(drawn, axis=1)


def draw_piece(piece, bar=None):
    tokenizer_of, seed, n = piece
    tokenizer, rng = Tokenizer.load(*tokenizer_of), random.Random(seed)
    return first_tokens((document_tokens(tokenizer, documents.document(rng)) for _ in itertools.count()), n, bar)


def first_tokens(stream, n, bar=None):
    """An array (2, at most n) of tokens and asked, from a stream of (tokens, asked)."""
    parts, seen = [], 0
    for document in stream:
        parts.append(np.array(document, dtype=np.uint16))  # (2, its tokens)
        seen += parts[-1].shape[1]
        if bar is not None:
            bar.update(parts[-1].shape[1])
        if seen >= n:
            break
    return np.concatenate(parts, axis=1)[:, :n]


def count_held_out(tokenizer, data):
    """How many of the documents or books in data, (2, N), show a task's format, or a task's steps in an answer.

    `documents.document` leaves them out; this searches what is read, text by text.
    """
    ends = np.flatnonzero(data[0] == tokenizer.eot)
    starts, found = np.concatenate([[0], ends[:-1] + 1]), 0
    for start, end in zip(tqdm(starts, desc="searching for the tasks' formats", unit=" texts"), ends):
        tokens, asked = data[:, start:end]
        turns = np.flatnonzero(np.diff(asked)) + 1  # from a question to its answer, and to the next question
        parts = [tokenizer.decode(part.tolist()) for part in np.split(tokens, turns)]
        if asked.any():  # a heading, which may be empty, and then questions and answers
            parts = parts if not asked[0] else ["", *parts]
            examples = [("", parts[0], ""), *zip(parts[1::2], parts[2::2], itertools.repeat(""))]
        else:
            examples = [("".join(parts), "", "")]  # a book
        found += documents.is_held_out(examples)
    return found


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
def kshot_accuracy(model, tokenizer, T, n=32):
    """{skill: {shots: accuracy}} on the first T tokens of n new documents a skill, each in a format of its own.

    An answer counts when each of its tokens, and the first of what ends it, is the likeliest one: that is what greedy
    decoding would have written. One pass gives all shots of a document.
    """
    scores = {}
    for skill in documents.SKILLS:
        # the seed says ladder, as when the bundled bases were measured
        rng, right = random.Random(f"ladder {skill}"), {k: [] for k in SHOTS}
        for _ in range(n):
            _, heading, examples = documents.document(rng, skill)
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


def measure(model, tokenizer, data, tokens_seen, T):
    """A row of the log: losses on held-out text, and accuracy behind k worked examples."""
    row = {"tokens": tokens_seen}
    row["kshot"] = {s: {str(k): a for k, a in v.items()} for s, v in kshot_accuracy(model, tokenizer, T).items()}
    row["prose"], _ = validation_loss(model, data["prose-val"], T)
    row["documents"], row["answers"] = validation_loss(model, data["documents-val"], T)
    return row


def line(row):
    four = ", ".join(f"{skill} {100 * v.get('4', math.nan):.0f}" for skill, v in row["kshot"].items())
    losses = ", ".join(f"{name} {row[name]:.3f}" for name in ("documents", "answers", "prose"))
    return f"{row['tokens'] / 1e6:.1f}M tokens, {losses}, 4-shot {four}"


def plot_learning_curves(log, path):
    """Four-shot accuracy of every skill, and the losses, against tokens."""
    from eval.plots import plt, write  # imported here, so that --help need not wait for matplotlib

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    millions = [row["tokens"] / 1e6 for row in log]
    for i, skill in enumerate(documents.SKILLS):
        accuracy = [100 * row["kshot"][skill].get("4", math.nan) for row in log]
        left.plot(millions, accuracy, label=skill, color=plt.cm.tab20(i / 20), lw=1.5)
    left.set(xlabel="tokens (millions)", ylabel="4-shot accuracy, new format (%)", ylim=(-3, 103))
    left.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for name in ("documents", "answers", "prose"):
        right.plot(millions, [row[name] for row in log], label=name)
    right.set(xlabel="tokens (millions)", ylabel="validation loss (nats per token)", ylim=(0, None))
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    write(fig, path)


# ---------------------------------------------------------------- training


def check_arguments(args, out):
    """This run's arguments, {name: value}. Raises UserError where the folder holds a run of others."""
    free = ("text", "out", "tokens", "show_documents", "compile", "device", "dtype", "eval_interval", "decay_frac")
    init_kwargs = {k: v for k, v in vars(args).items() if k not in (*free, "resume", "save_minutes")}
    if out.exists() and not out.is_dir() or resume.is_stopped(out) and not args.resume:
        raise UserError(f"{out} is already in use: give another --out, or --resume to go on")
    if os.path.lexists(out / "args.json"):
        before = schemas.read_json(out / "args.json", dict, "give another --out")
        if before.keys() != init_kwargs.keys():
            raise UserError(f"{out} holds a run of an earlier version of pretrain.py: give another --out")
        changed = [k for k in init_kwargs if init_kwargs[k] != before.get(k)]
        if changed:
            raise UserError(f"{out} holds a run with another --{changed[0].replace('_', '-')}: give another --out")
    return init_kwargs


def batch(args, data, step, T):
    """Tokens, targets, asked and positions, (B, T) each, of one step. They depend on the seed and the step alone."""
    rng, B = np.random.default_rng([args.seed, step]), args.batch_tokens // T
    n_prose = rng.binomial(B, args.prose)
    shares = ("prose", n_prose), ("documents", B - n_prose)
    parts = [windows(data[name], n, T, rng) for name, n in shares if n]
    tensors = [torch.cat(tensors) for tensors in zip(*parts)] + [positions(rng, B, T, args.block_size)]
    return [t.to(args.device, non_blocking=True) for t in tensors]


def draw_batch(args, data, step):
    """This process's share of a step's batch."""
    is_short = step < args.short_context_frac * (args.tokens // args.batch_tokens)
    return distributed.share(batch(args, data, step, args.block_size // 2 if is_short else args.block_size))


def positions(rng, B, T, block_size):
    """The rows of the position table that B windows of T tokens get, (B, T).

    A shorter window stands anywhere in the block, so that no position has to wait for the long ones.
    """
    return torch.from_numpy(rng.integers(block_size - T + 1, size=(B, 1)) + np.arange(T))


def initial_model(args):
    """The untrained model. It depends on the seed and the sizes alone."""
    torch.manual_seed(args.seed)
    model = GPT(GPTConfig(args.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd))
    muon.sinusoidal_positions(model)
    return model


def token_losses(model, x, y, position):
    """Cross-entropy of each target, (B * T), for tokens x (B, T) at those positions (B, T), and targets y (B * T)."""
    h = model.wte(x) + model.wpe(position)  # (B, T, C): what model(x) does, but for the positions
    mask = h.new_full((x.size(1), x.size(1)), -torch.inf).triu(1)
    for block in model.h:
        h, _ = block(h, mask)
    return F.cross_entropy(model.logits(model.ln_f(h)).flatten(0, 1).float(), y, reduction="none")


def train(args, out, model, tokenizer, data, checkpoint):
    """Train to the last step, from where the run was stopped if it was. Returns the optimizers."""
    optimizers, state = muon.optimizers(model, args.lr, args.adam_lr, args.dtype), checkpoint.state
    steps = int(args.tokens // args.batch_tokens)
    checkpoint.restore_optimizers(optimizers)
    losses_of = torch.compile(token_losses, dynamic=False) if args.compile else token_losses
    upcoming = draw_batch(args, data, state["step"])
    checkpoint.begin("pretraining")
    shown = {"desc": "pretraining", "unit": "step", "disable": not distributed.is_main()}
    with tqdm(initial=state["step"], total=steps, **shown) as bar:
        while state["step"] < steps:
            step = state["step"]
            factor = min(1, (step + 1) / 50, (steps - step) / (args.decay_frac * steps))  # warm up, hold, fall to zero
            for optimizer, lr in zip(optimizers, (args.lr, args.adam_lr)):
                optimizer.param_groups[0]["lr"] = lr * factor
            x, y, asked, position = upcoming
            with torch.autocast(args.device, args.dtype, enabled=args.dtype != torch.float32):
                losses = losses_of(model, x, y.flatten(), position)  # (B * T)
            weight = 1 - (1 - args.question_weight) * asked.flatten()
            loss = (losses * weight).sum() / weight.sum()
            loss.backward()
            loss = distributed.average(model.parameters(), loss.detach(), weight)  # of several processes
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            upcoming = draw_batch(args, data, step + 1)  # here, where a GPU is still at work on this step
            if not loss.isfinite():
                raise UserError(
                    f"the loss is {loss.item()} at step {step}: lower --lr or --adam-lr; the last checkpoint is kept"
                )
            step = state["step"] = step + 1
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if distributed.is_main() and (step % args.eval_interval == 0 or step == steps):
                T = x.size(1)
                state["log"].append(measure(model, tokenizer, data, step * args.batch_tokens, T))
                bar.write(line(state["log"][-1]))
                write_json(out / "log.json", state["log"])
                plot_learning_curves(state["log"], out / "learning_curves.png")
            checkpoint.after_step(optimizers, {"step": step, "tokens": step * args.batch_tokens, "loss": loss.item()})
    checkpoint.count()
    return optimizers


def write_card(args, out, model, last, seconds, held_out):
    """The model card, with what the run itself knows."""
    c, drawn = model.config, int(args.tokens * (1 - args.prose))
    again = f", of which {MOST_DRAWN / 1e6:.0f}M tokens were drawn" if drawn > MOST_DRAWN else ""
    table = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,} ({c.n_layer} layers, {c.n_embd} wide, "
        f"{c.n_head} heads, {c.block_size} positions)",
        "vocabulary": f"{c.vocab_size:,}: "
        + (
            "byte-level BPE trained on the prose, digits single; examples are encoded as bytes, a token for each"
            if c.vocab_size > 257
            else "a token for each byte, in prose and examples alike"
        ),
        "tokens seen": f"{last['tokens']:,} in steps of {args.batch_tokens:,}; the first "
        f"{100 * args.short_context_frac:.0f}% in windows of {c.block_size // 2}, which stand anywhere in the block, "
        f"the rest of {c.block_size}",
        "mixture": f"{100 * args.prose:.0f}% prose (two books of a hundred held out), {100 - 100 * args.prose:.0f}% "
        f"synthetic documents{again}",
        "optimizer": f"Muon {args.lr} for the matrices, AdamW {args.adam_lr} for the rest; constant, then to zero over "
        f"the last {100 * args.decay_frac:.0f}%",
        "validation loss": f"prose {last['prose']:.3f} nats per token"
        + (f", documents {last['documents']:.3f} (answers alone {last['answers']:.3f})" if drawn else ""),
        "weights": f"bfloat16; trained in float32 with {str(args.dtype).removeprefix('torch.')} products",
        "seed": args.seed,
        "time": f"{seconds / 60:.0f} minutes on "
        + ("a CUDA device" if args.device != "cpu" else f"{torch.get_num_threads()} CPU cores"),
    }
    head = CARD.format(name=out.name, table="\n".join(f"| {key} | {value} |" for key, value in table.items()))
    write_text(out / "README.md", head + (skills_card(last, held_out) if drawn else PROSE_CARD))


def skills_card(last, held_out):
    """The part of the card about synthetic documents."""
    skills, rows = documents.SKILLS, []
    for skill in skills:
        cells = [f"{100 * last['kshot'][skill][str(k)]:.0f}" if str(k) in last["kshot"][skill] else "" for k in SHOTS]
        rows.append(f"| {skill} | {' | '.join(cells)} |")
    formats = []
    for task in map(tasks.load, tasks.names()):
        if task.pattern != tasks.Task.pattern:  # else nothing of it is held out
            (e,) = task.examples(1)
            formats.append(f"- `{e.question}{e.answer}` ({task.name})")
    total = sum(share for share, _, _ in skills.values())
    return SKILLS_CARD.format(
        shares=", ".join(f"{skill} {100 * share / total:.0f}%" for skill, (share, _, _) in skills.items()),
        digits=documents.MAX_DIGITS,
        letters=documents.MAX_LETTERS,
        items=documents.MAX_LIST,
        copied=documents.MAX_COPIED,
        formats="\n".join(formats),
        found=held_out,
        head=" | ".join(f"{k} shots" for k in SHOTS),
        rule=" --- |" * len(SHOTS),
        kshot="\n".join(rows),
    )


CARD = """# {name}: a small GPT-2 to steer

Made by `pretrain.py`. `train_task.py` loads it, and so does transformers' `GPT2LMHeadModel`.

| | |
| --- | --- |
{table}
"""

SKILLS_CARD = """
## What it has seen

Each synthetic document shows one skill in one randomly drawn format. Skills are drawn with these shares: {shares}.
What is computed is short: numbers that are added or multiplied have up to {digits} digits, words up to {letters}
letters (a fifth of them letters without sense), lists up to {items} items. Numbers and lists that are only pointed at
and copied have up to {copied} digits or items. So it has never seen a sum of longer numbers or of more terms. The *new
words* of the tasks occur in no document.

## What it has not seen

The formats of the tasks, whatever ends them, and their steps in any format:

- in no text: four digits, a semicolon and a digit, as in `1405;2507`;
- in no answer: a letter or digit, a semicolon and a letter or digit, as in `3;8;12` and `k;e;g`;
- these formats:

{formats}

A search of every document and every book that it was trained on found this many that show one of them: {found}.

## What it can do

Accuracy in % on new documents, each in a new format, after that many examples in the same document:

| skill | {head} |
| --- |{rule}
{kshot}

![four-shot accuracy and validation loss against tokens](learning_curves.png)

The losses jump where the windows grow, since attention over more than half a block has not been trained yet.
"""

PROSE_CARD = """
It read public-domain novels in English and nothing else: no synthetic document, and so none of the skills of `tasks/`.
"""


def main(argv=None):
    args = parse_args(argv)
    if args.show_documents is not None:
        rng = random.Random(args.seed)
        for _ in range(args.show_documents):
            skill, heading, examples = documents.document(rng)
            print(f"---- {skill}\n{heading}{documents.text(examples)}")
        return
    distributed.start(args.device)
    out = Path(args.out)
    arguments = check_arguments(args, out)
    before = resume.load(out) if args.resume else None
    state = before.state if before else {"step": 0, "log": [], "written": 0, "seconds": {}}
    if state["written"] >= int(args.tokens // args.batch_tokens):
        print(f"{out} is finished: nothing is left to do")
        return
    with resume.Checkpoint(out, state, args.save_minutes, before) as checkpoint:
        if distributed.is_main():
            write_json(out / "args.json", arguments)
        else:
            distributed.wait()  # until the first process has written the data
        tokenizer, data = prepare(args, out)
        if distributed.is_main():
            distributed.wait()
            if "held_out" not in state:
                state["held_out"] = sum(count_held_out(tokenizer, data[name]) for name in ("prose", "documents"))
        model = initial_model(args).to(args.device)
        checkpoint.restore("model", model)
        checkpoint.modules["model"] = model
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
        optimizers = train(args, out, model, tokenizer, data, checkpoint)
        if not distributed.is_main():
            return
        save_model(model, out, torch.bfloat16)
        seconds, last = sum(state["seconds"].values()), state["log"][-1]
        print(f"saved {out}: {last['tokens'] / 1e6:.1f}M tokens in {seconds / 60:.0f} minutes")
        write_card(args, out, model, last, seconds, state["held_out"])
        state["written"] = state["step"]
        checkpoint.save(optimizers)  # it stays, so that --resume with more --tokens goes on from here


if __name__ == "__main__":
    run_main(main, "pretrain.py")
