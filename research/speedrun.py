"""Time to accuracy: seconds of tuning, and examples, until new questions are answered exactly, by this project and by
PEFT, on the same base, questions and evaluator.

    python -m research.speedrun                       every contender, five seeds: hours
    python -m research.speedrun --quick               one seed, at most 20 seconds each
    python -m research.speedrun --task last_letter    a task that no recipe was chosen on

A run is measured after 0, 1, 2, 3, 5, 8, 12, ... steps. Its record is the first measurement at which the goal holds;
only steps are timed. The rows on stdout are Markdown. docs/speed.md has the rules and the records.
"""

import math
import random
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval.validation import answers_right
from files.errors import run_main
from files.peft import method_of_rows
from files.weights import load_model
from methods import muon
from prefix import DeepPrefix, HybridPrefix
from research import bench
from run.flags import Parser, at_least
from train_task import train_step

GOALS = 0.99, 0.95  # exact match, in distribution and in the range beyond it: every step and the final answer
EXAMPLES, QUESTIONS = 4000, 200  # drawn for a seed, and asked in each range


class Contender(NamedTuple):
    label: str
    is_peft: bool
    start: str  # words: the task in words; none: no words
    lr: float
    n_random: int = 0  # rows that begin at random
    batch_size: int = 4
    warmup: int = 3  # steps, after which the rate stays
    betas: tuple = (0.8, 0.95)  # of AdamW, which forgets sooner with these: in trials that saved steps
    momentum: float = 0.0  # of Muon, which takes AdamW's place where this is given
    full_loss: float = 0.0  # the last batch's loss below which the rate falls with it, to a tenth at the least
    shortest: int = 3  # length of the shortest examples: of sums, under AdamW, those of 3 and 4 digits teach most


MUON = {"warmup": 1, "momentum": 0.6, "full_loss": 0.3, "shortest": 1}
GUIDE = {"batch_size": 16, "warmup": 1, "betas": (0.9, 0.999)}  # of PEFT's guide to prompt-based methods, as its 0.03
CONTENDERS = [
    # the fastest recipes known here: whoever finds a faster one changes these lines. Ours tunes keys and values
    Contender("ours by Muon", False, "none", 1.4, 20, **MUON),
    Contender("ours by Muon", False, "words", 1.4, **MUON),
    Contender("PEFT prompt tuning, defaults", True, "none", 3e-2, 20, **GUIDE),
    Contender("PEFT prompt tuning, best", True, "none", 3e-1, 20),  # the best of three rates
    Contender("PEFT prompt tuning by Muon", True, "none", 1.4, 20, **MUON),
]


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base()
    names = [name for name in tasks.names() if len(tasks.load(name).ranges) >= len(GOALS)]
    p.add_argument("--task", default="addition", choices=names, help="a synthetic task (default %(default)s)")
    p.add_argument("--seeds", type=at_least(1, 100), default=5, help="runs of each contender (default %(default)s)")
    p.add_argument("--quick", action="store_true", help="one seed, at most 20 seconds of tuning")
    args = p.parse_args(argv)
    args.seeds, args.max_seconds = (1, 20) if args.quick else (args.seeds, 120)
    bench.check_peers()
    return args


# ---------------------------------------------------------------- one run


def runner(base, c, seed):
    """(step, tuned) of a contender: (batch, i, loss of the batch before) -> loss of step i, () -> Method to measure.

    Ours takes the step of train_task.py. PEFT takes that of bench.py over transformers' model, and its prompt is read
    back for measuring.
    """
    if c.is_peft:
        torch.manual_seed(seed)
        model = bench.peft_model(base.model.folder, "PromptTuningConfig", c.n_random, torch.float32, base.device)
        parameters = [model.prompt_encoder.default.embedding.weight]
    else:
        words = base.tokenizer.bos + base.tokenizer.encode(base.task.trigger + "\n")
        trigger = words if c.start == "words" else []
        method = DeepPrefix(base.model, c.n_random, trigger, seed).to(base.device)
        parameters = [method.rows]
    if c.momentum:  # the keys and values of P rows in each layer are each a matrix of its own
        width = base.model.config.n_kv_head * base.model.config.head_dim
        optimizer = muon.Muon(parameters, c.lr, c.momentum, width=width)
    else:
        optimizer = torch.optim.AdamW(parameters, c.lr, c.betas, weight_decay=0)

    def step(batch, i, last_loss=math.inf):
        """The rate warms up and stays. With a full_loss it also falls with the last loss: Muon's steps do not shrink
        with the gradient, so that at a full rate it never comes to rest."""
        share = max(0.1, min(1, last_loss / c.full_loss)) if c.full_loss else 1
        optimizer.param_groups[0]["lr"] = c.lr * min(1, (i + 1) / c.warmup) * share
        batch = [t.to(base.device) for t in batch]
        if c.is_peft:
            return bench.peft_step(model, optimizer, batch)
        return train_step(method, base.model, batch, [optimizer], base.dtype).item()

    def tuned():
        if not c.is_peft:
            return method
        return method_of_rows(HybridPrefix, model.get_prompt_embedding_to_save("default").float(), base.model)

    return step, tuned


def next_check(step):
    """Runs are measured after 0, 1, 2, 3, 5, 8, 12, 18, ... steps, each half as many again."""
    return max(step + 1, math.ceil(1.5 * step))


def records(checks):
    """{range: the first measurement at which its goal holds, or None}."""
    goals = zip(checks[0]["exact"], GOALS)
    return {name: next((c for c in checks if c["exact"][name] >= goal), None) for name, goal in goals}


def exact_match(base, method, tests):
    """{range: the share of its questions that a method answers exactly}."""
    share = {}
    for name, examples in tests.items():
        right, _ = answers_right(method, base.model, encode(base.tokenizer, examples))
        share[name] = right / len(examples)
    return share


def mixed_batches(encoded, batch_size, seed):
    """Batches without end, each of mixed lengths: sorted by length, the first few would show one length each."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(encoded, len(encoded))
        for i in range(0, len(order), batch_size):
            yield from training_batches(order[i : i + batch_size], batch_size, rng)


def one_run(base, c, seed, max_seconds, bar):
    """The measurements of a contender until it holds both goals, or until max_seconds of tuning are over."""
    examples = base.task.examples(EXAMPLES, split="train", seed=seed)
    names = list(base.task.ranges)[: len(GOALS)]
    tests = {name: base.task.examples(QUESTIONS, name, seed=seed) for name in names}
    encoded = encode(base.tokenizer, [e for e in examples if e.length >= c.shortest])
    warm_up, _ = runner(base, c, seed)
    warm_up(next(mixed_batches(encoded, c.batch_size, seed)), 0)  # is not timed
    train, tuned = runner(base, c, seed)
    seconds, loss, checks, due = 0.0, math.inf, [], 0
    for step, batch in enumerate(mixed_batches(encoded, c.batch_size, seed)):
        if step == due or seconds >= max_seconds:
            exact = exact_match(base, tuned(), tests)
            checks.append({"step": step, "examples": step * c.batch_size, "seconds": seconds, "exact": exact})
            bar.set_postfix_str(f"step {step}, {seconds:.1f} s, {', '.join(f'{e:.0%}' for e in exact.values())}")
            if seconds >= max_seconds or all(records(checks).values()):
                return checks
            due = next_check(step)
        spent, loss = bench.timed(partial(train, batch, step, loss), base.device)
        seconds += spent


# ---------------------------------------------------------------- the table


def cell(runs, name, max_seconds):
    """Seconds and examples to a range's goal. Where no more than half of the runs hold it: what they end at."""
    reached = [records(checks)[name] for checks in runs]
    n, held = len(runs), sum(r is not None for r in reached)
    if 2 * held <= n:
        last = bench.spread([100 * checks[-1]["exact"][name] for checks in runs], "{:.1f}")
        return f"not within {max_seconds:g} s ({held} of {n}), ends at {last}%"
    seconds, examples = ([r[key] if r else math.inf for r in reached] for key in ("seconds", "examples"))
    seconds, examples = bench.spread(seconds, "{:.2f}"), bench.spread(examples, "{:g}")
    return f"{seconds.replace('inf', f'over {max_seconds:g}')} s, {examples.replace('inf', 'more')}"


def main(argv=None):
    args = parse_args(argv)
    model, task = load_model(args.model, args.device, args.dtype).freeze(), tasks.load(args.task)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, task.tokenize)
    # what the contenders have in common
    base = SimpleNamespace(model=model, tokenizer=tokenizer, task=task, dtype=args.dtype, device=args.device)
    print(f"{task.name}, {model.name}, {args.dtype}, {torch.get_num_threads()} threads\n")
    columns = [f"{goal:.0%} at {name}: seconds, examples" for name, goal in zip(task.ranges, GOALS)]
    print(f"| contender | start, rate, batch | {' | '.join(columns)} |\n| --- | --- | --- | --- |", flush=True)
    for c in CONTENDERS:
        with tqdm(range(args.seeds), c.label, unit=" runs", leave=False) as bar:
            runs = [one_run(base, c, seed, args.max_seconds, bar) for seed in bar]
        cells = [cell(runs, goal, args.max_seconds) for goal in runs[0][0]["exact"]]
        print(f"| {c.label} | {c.start}, {c.lr:g}, {c.batch_size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_main(main, "python -m research.speedrun")
