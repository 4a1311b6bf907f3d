"""Pretrain a small GPT-2 on a folder of prose and on synthetic documents (documents.py).

    python -m research.pretrain --text FOLDER           FOLDER holds .txt files, one for each book
    python -m research.pretrain --show-documents 5      print some of the synthetic documents

Trains a tokenizer, encodes the text, pretrains, and writes a model folder that train_task.py --model takes. Its
log.json has the losses on held-out text.
"""

import itertools
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.tokenizer import Tokenizer, byte_alphabet
from files.errors import UserError, run_main
from files.safe import check_unused, write_json
from files.weights import save_model
from methods import muon
from model import GPT, GPTConfig
from research import documents
from run.flags import Parser, above_zero, at_least, number, seed_number

# words with their leading space, each digit alone, runs of marks, white space
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
QUESTION_WEIGHT = 0.2  # of the loss on questions, which nothing foretells
SHORT_CONTEXT, DECAY = 0.75, 0.4  # first share of the steps, in windows of half a block; last, with falling rates
PIECE = 2**21  # tokens of documents that are drawn from one seed
MOST_DRAWN = 2**26  # tokens of documents in all: a longer run reads them more than once
PROSE = 0.1  # share of prose among the tokens
MEASURED = 250  # steps between measurements


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("--text", help="folder of .txt files of prose")
    p.add_argument("--out", default="out/nano", help="folder of the model and its log (default %(default)s)")
    p.add_argument("--show-documents", type=at_least(1), metavar="N", help="print N synthetic documents and stop")
    p.add_argument("--tokens", type=number(1, 1e12), default=32e6, help="to train on (default %(default).0f)")
    vocab = "257: plain bytes; more: byte-level BPE (%(default)s)"
    p.add_argument("--vocab-size", type=at_least(257, 65536), default=1024, help=vocab)
    p.add_argument("--block-size", type=at_least(2, 65536), default=512, help="positions (default %(default)s)")
    p.add_argument("--n-layer", type=at_least(1, 1000), default=6, help="number of layers (default %(default)s)")
    p.add_argument("--n-embd", type=at_least(2, 65536), default=256, help="width, 64 a head (default %(default)s)")
    p.add_argument("--batch-tokens", type=at_least(1, 2**24), default=4096, help="tokens a step (default %(default)s)")
    p.add_argument("--lr", type=above_zero, default=0.02, help="by Muon; by AdamW a tenth (default %(default)s)")
    p.add_argument("--seed", type=seed_number, default=0, help="of weights, documents and windows (%(default)s)")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    dtypes = "of the matrix products; the weights are trained in float32 (default: the faster)"
    p.add_argument("--dtype", choices=["float32", "bfloat16"], help=dtypes)
    args = p.parse_args(argv)
    args.n_head = next(n for n in range(args.n_embd // 64 or 1, 0, -1) if args.n_embd % n == 0)
    if args.text is None and args.show_documents is None:
        raise UserError("name a folder of .txt files with --text")
    if not args.block_size <= args.batch_tokens <= args.tokens:
        raise UserError(f"--batch-tokens {args.batch_tokens}: give at least --block-size, and at most --tokens")
    return args


def train_tokenizer(books, vocab_size, rng):
    """Byte-level BPE on a sample of every book, as encoding.json holds it; vocab_size counts the end-of-text token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers  # which nothing but pretraining needs

    encoding = {"name": f"nano-{vocab_size}", "pattern": PATTERN, "tokens": [chr(b) for b in range(256)]}
    sample, length = "", 3 * vocab_size  # characters of each book: more tokens take more text to find
    for book in books:
        start = rng.randrange(max(1, len(book) - length))
        sample += book[start : start + length]
    bpe, alphabet = Tokenizer(models.BPE()), byte_alphabet()
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    options = {"vocab_size": vocab_size - 1, "initial_alphabet": list(alphabet), "special_tokens": []}
    bpe.train_from_iterator([sample], trainers.BpeTrainer(show_progress=False, **options))
    merged = [token for token, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1]) if len(token) > 1]
    # a character of encoding.json is a byte; merges keep their order, which is their rank
    encoding["tokens"] += ["".join(chr(alphabet[c]) for c in token) for token in merged]
    return encoding


def document_tokens(tokenizer, heading, examples=()):
    """(tokens, asked) of a document. asked is 1 where a token is part of a question, which nothing foretells.

    Headings are encoded as language, examples as bytes, as train_task.py encodes its tasks.
    """
    tokens = tokenizer.encode(heading)
    asked = [0] * len(tokens)
    for question, answer, end in examples:
        q, a = tokenizer.encode_task(question), tokenizer.encode_task(answer + end)
        tokens, asked = tokens + q + a, asked + [1] * len(q) + [0] * len(a)
    return tokens + [tokenizer.eot], asked + [0]


def prepare(args, out):
    """Write encoding.json. Returns {part: array (2, N) of tokens and asked} for training and validation."""
    files = sorted(f for f in Path(args.text).glob("**/*.txt") if f.is_file())  # a pipe would never end
    if not files:
        raise UserError(f"no .txt file in {args.text}: name a folder of prose with --text")
    books = [f.read_text(encoding="utf-8-sig", errors="replace") for f in files]
    out.mkdir(parents=True)
    print("training the tokenizer ...", flush=True)
    write_json(out / "encoding.json", train_tokenizer(books, args.vocab_size, random.Random(args.seed)))
    tokenizer = Tokenizer.load(out, args.vocab_size)
    prose = [b for i, b in enumerate(books) if i % 50]  # two books of a hundred are held out
    shown = sum(documents.is_held_out([(book, "", "")]) for book in prose)
    print(f"{shown} of {len(prose)} books show the format of a task, as no synthetic document does")
    random.Random(f"prose {args.seed}").shuffle(prose)
    # the seeds say pages, as when nano-2 was made: other words, other documents
    parts = {
        "prose": (int(args.tokens * PROSE), (document_tokens(tokenizer, book) for book in prose)),
        "prose-val": (100_000, (document_tokens(tokenizer, book) for book in books[::50])),
        "documents": (min(int(args.tokens * (1 - PROSE)), MOST_DRAWN), drawn(tokenizer, f"pages {args.seed}")),
        "documents-val": (100_000, drawn(tokenizer, f"validation pages {args.seed}")),
    }
    print("encoding the text ...", flush=True)
    return {name: first_tokens(stream, max(n, args.block_size + 1)) for name, (n, stream) in parts.items()}


def drawn(tokenizer, seed):
    """(tokens, asked) of one synthetic document after another, without end. Every PIECE tokens have their own seed."""
    for i in itertools.count():
        rng, left = random.Random(f"{seed} {i}"), PIECE
        while left > 0:
            _, heading, examples = documents.document(rng)
            tokens, asked = document_tokens(tokenizer, heading, examples)
            yield tokens[:left], asked[:left]
            left -= len(tokens)


def first_tokens(stream, n):
    """An array (2, at most n) of tokens and asked, from a stream of (tokens, asked)."""
    parts, seen = [], 0
    for document in stream:
        parts.append(np.array(document, dtype=np.uint16))  # (2, its tokens)
        seen += parts[-1].shape[1]
        if seen >= n:
            break
    return np.concatenate(parts, axis=1)[:, :n]


def windows(data, B, T, rng):
    """B random windows -> tokens, targets and whether the target is asked, (B, T) each."""
    starts = rng.integers(data.shape[1] - T, size=B)
    x = torch.from_numpy(np.stack([data[:, s : s + T + 1] for s in starts]).astype(np.int64))  # (B, 2, T+1)
    return x[:, 0, :-1], x[:, 0, 1:], x[:, 1, 1:]


def positions(rng, B, T, block_size):
    """The rows of the position table that B windows of T tokens get, (B, T).

    A shorter window stands anywhere in the block, so that no position has to wait for the long ones.
    """
    return torch.from_numpy(rng.integers(block_size - T + 1, size=(B, 1)) + np.arange(T))


def draw_batch(args, data, step):
    """A step's tokens, targets, asked and positions, (B, T) each. They depend on the seed and the step alone."""
    is_short = step < SHORT_CONTEXT * (args.tokens // args.batch_tokens)
    T = args.block_size // 2 if is_short else args.block_size
    rng, B = np.random.default_rng([args.seed, step]), args.batch_tokens // T
    n_prose = rng.binomial(B, PROSE)
    shares = ("prose", n_prose), ("documents", B - n_prose)
    parts = [windows(data[name], n, T, rng) for name, n in shares if n]
    tensors = [torch.cat(tensors) for tensors in zip(*parts)] + [positions(rng, B, T, args.block_size)]
    return [t.to(args.device, non_blocking=True) for t in tensors]


@torch.no_grad()
def validation_loss(model, data, T):
    """Mean nats per token over up to 256 windows of T side by side: of all tokens, and of those not asked."""
    device = model.wte.weight.device
    n = min(256, (data.shape[1] - 1) // T)
    x, y = (torch.from_numpy(a.astype(np.int64)).view(n, T) for a in (data[0, : n * T], data[0, 1 : n * T + 1]))
    losses = []
    for tokens, targets in zip(x.split(8), y.split(8)):
        logits = model.logits(model(tokens.to(device))).flatten(0, 1)
        losses.append(F.cross_entropy(logits, targets.flatten().to(device), reduction="none"))
    losses = torch.cat(losses).cpu()
    return losses.mean().item(), losses[torch.from_numpy(data[1, 1 : n * T + 1] == 0)].mean().item()


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


def train(args, out, model, data):
    optimizers, steps = muon.optimizers(model, args.lr, args.lr / 10, args.dtype), int(args.tokens // args.batch_tokens)
    losses_of = torch.compile(token_losses, dynamic=False) if args.compile else token_losses
    upcoming, log = draw_batch(args, data, 0), []
    for step in (bar := tqdm(range(steps), "pretraining", unit=" steps")):
        factor = min(1, (step + 1) / 50, (steps - step) / (DECAY * steps))  # warm up, hold, fall to zero
        for optimizer, lr in zip(optimizers, (args.lr, args.lr / 10)):
            optimizer.param_groups[0]["lr"] = lr * factor
        x, y, asked, position = upcoming
        with torch.autocast(args.device, args.dtype, enabled=args.dtype != torch.float32):
            losses = losses_of(model, x, y.flatten(), position)  # (B * T)
        weight = 1 - (1 - QUESTION_WEIGHT) * asked.flatten()
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        upcoming = draw_batch(args, data, step + 1)  # here, where a GPU is still at work on this step
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} at step {step}: lower --lr")
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % MEASURED == 0 or step + 1 == steps:
            prose, _ = validation_loss(model, data["prose-val"], x.size(1))
            everything, answers = validation_loss(model, data["documents-val"], x.size(1))
            tokens = (step + 1) * args.batch_tokens
            log.append({"tokens": tokens, "prose": prose, "documents": everything, "answers": answers})
            bar.write(", ".join(f"{name} {value:g}" for name, value in log[-1].items()))
            write_json(out / "log.json", log)


def main(argv=None):
    args = parse_args(argv)
    if args.show_documents is not None:
        rng = random.Random(args.seed)
        for _ in range(args.show_documents):
            skill, heading, examples = documents.document(rng)
            print(f"---- {skill}\n{heading}{documents.text(examples)}")
        return
    out = Path(args.out)
    check_unused(out)
    data = prepare(args, out)
    model = initial_model(args).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(args, out, model, data)
    save_model(model, out, torch.bfloat16)
    print(f"saved {out}")


if __name__ == "__main__":
    run_main(main)
