"""Time to accuracy: seconds of tuning, and examples, until new questions are answered exactly, by this project, by PEFT
and by fine-tuning, on the same base, questions and evaluator.

    python -m research.speedrun                                       every contender, five seeds: hours
    python -m research.speedrun --quick                               one seed of three contenders
    python -m research.speedrun --contenders ours-words ours-muon     some of them
    python -m research.speedrun --task last_letter                    a task that no recipe was chosen on

A run is measured after 0, 1, 2, 3, 5, 8, 12, ... steps. Its record is the first measurement at which the goal holds;
only steps are timed. The rows on stdout are Markdown. docs/speed.md has the rules and the records.
"""

import math
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval.validation import answers_right
from files.errors import UserError, run_main
from files.peft import method_of_rows
from files.safe import write_json
from files.weights import load_model
from methods import muon
from prefix import METHODS
from research import bench
from run.flags import Parser, at_least, number
from run.record import record
from train_task import train_step

GOALS = 0.99, 0.95  # exact match, in distribution and in the range beyond it: every step and the final answer
EXAMPLES = 4000  # drawn for a seed


class Contender(NamedTuple):
    label: str
    method: str  # one of prefix.METHODS, or a class of PEFT's
    start: str  # words: the task in words; none: no words
    lr: float
    n_random: int = 0  # rows that begin at random
    batch_size: int = 16
    warmup: int = 3  # steps, after which the rate stays
    betas: tuple = (0.8, 0.95)  # of AdamW, which forgets sooner with these: in trials that saved steps
    momentum: float = 0.0  # of Muon, which takes AdamW's place where this is given
    full_loss: float = 0.0  # the last batch's loss below which the rate falls with it, to a tenth at the least
    shortest: int = 3  # length of the shortest examples: of sums, under AdamW, those of 3 and 4 digits teach most


MUON = {"batch_size": 4, "warmup": 1, "momentum": 0.6, "full_loss": 0.3, "shortest": 1}
GUIDE = {"batch_size": 16, "warmup": 1, "betas": (0.9, 0.999)}  # of PEFT's guide to prompt-based methods, as its 0.03
PROMPT, PREFIX = "PromptTuningConfig", "PrefixTuningConfig"
CONTENDERS = {
    # the fastest recipes known here: whoever finds a faster one changes these lines. The rates of fine-tuning and of
    # PEFT at its best are the best of three
    "ours-muon": Contender("ours, keys and values by Muon", "ptuning2", "none", 1.4, 20, **MUON),
    "ours-muon-words": Contender("ours, keys and values by Muon", "ptuning2", "words", 1.4, **MUON),
    "ours-keys": Contender("ours, keys and values", "ptuning2", "none", 3e-2, 20, batch_size=2),
    "ours-words": Contender("ours", "hybrid", "words", 3e-2, batch_size=8),
    "finetune": Contender("fine-tuning", "finetune", "none", 1e-4, batch_size=8),
    "peft-prompt-default": Contender("PEFT prompt tuning, defaults", PROMPT, "none", 3e-2, 20, **GUIDE),
    "peft-prompt-best": Contender("PEFT prompt tuning, best", PROMPT, "none", 3e-1, 20, batch_size=4),
    "peft-prompt-muon": Contender("PEFT prompt tuning by Muon", PROMPT, "none", 1.4, 20, **MUON),
    "peft-prefix-default": Contender("PEFT prefix tuning, defaults", PREFIX, "none", 3e-2, 20, **GUIDE),
    "peft-prefix-best": Contender("PEFT prefix tuning, best", PREFIX, "none", 3e-2, 20, batch_size=4),
    "peft-prefix-muon": Contender("PEFT prefix tuning by Muon", PREFIX, "none", 1.4, 20, **MUON),
}
QUICK = "ours-muon", "ours-words", "peft-prompt-default"


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base()
    names = [name for name in tasks.names() if len(tasks.load(name).ranges) >= len(GOALS)]
    p.add_argument("--task", default="addition", choices=names, help="a synthetic task (default %(default)s)")
    p.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    p.add_argument("--seeds", type=at_least(1, 100), default=5, help="runs of each contender (default %(default)s)")
    p.add_argument("--max-seconds", type=number(0), default=120.0, help="of tuning, in a run (default %(default)g)")
    p.add_argument("--questions", type=at_least(1, 2000), default=200, help="of each range (default %(default)s)")
    p.add_argument("--quick", action="store_true", help=f"one seed of {', '.join(QUICK)}, at most 20 seconds each")
    p.add_argument("--out", default="out/speedrun", help="folder of results.json (default %(default)s)")
    args = p.parse_args(argv)
    if args.quick:
        args.seeds, args.max_seconds = 1, min(args.max_seconds, 20)
    args.contenders = list(dict.fromkeys(args.contenders or (QUICK if args.quick else CONTENDERS)))
    if any(name.startswith("peft") for name in args.contenders):
        bench.check_peers()
    if (Path(args.out) / "results.json").exists():
        raise UserError(f"{args.out} is already in use: give another --out")
    return args


# ---------------------------------------------------------------- one run


def runner(base, c, trigger, seed):
    """(step, tuned) of a contender: (batch, i, loss of the batch before) -> loss of step i, () -> Method to measure.

    Ours takes the step of train_task.py. PEFT takes that of bench.py over transformers' model, and its prompt is read
    back for measuring.
    """
    is_peft = c.method in (PROMPT, PREFIX)
    if is_peft:
        torch.manual_seed(seed)
        model = bench.peft_model(base.model.folder, c.method, c.n_random, torch.float32, base.device)
        parameters = [model.prompt_encoder.default.embedding.weight]
    else:
        method = METHODS[c.method](base.model, n_random=c.n_random, trigger=trigger, seed=seed).to(base.device)
        network, parameters = method.network(base.model), [p for p in method.parameters() if p.requires_grad]
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
        if is_peft:
            return bench.peft_step(model, optimizer, batch)
        return train_step(method, network, batch, [optimizer], base.dtype).item()

    def tuned():
        if not is_peft:
            return method
        kind = METHODS["ptuning2" if c.method == PREFIX else "hybrid"]
        return method_of_rows(kind, model.get_prompt_embedding_to_save("default").float(), base.model)

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
    network, share = method.network(base.model), {}
    for name, examples in tests.items():
        right, _ = answers_right(method, network, encode(base.tokenizer, examples))
        share[name] = right / len(examples)
    return share


def mixed_batches(encoded, batch_size, seed):
    """Batches without end, each of mixed lengths: sorted by length, the first few would show one length each."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(encoded, len(encoded))
        for i in range(0, len(order), batch_size):
            yield from training_batches(order[i : i + batch_size], batch_size, rng)


def one_run(base, c, seed, max_seconds, questions, bar):
    """The measurements of a contender until it holds both goals, or until max_seconds of tuning are over."""
    examples = base.task.examples(EXAMPLES, split="train", seed=seed)
    names = list(base.task.ranges)[: len(GOALS)]
    tests = {name: base.task.examples(questions, name, seed=seed) for name in names}
    encoded = encode(base.tokenizer, [e for e in examples if e.length >= c.shortest])
    words = base.tokenizer.bos + base.tokenizer.encode(base.task.trigger + "\n")
    trigger = words if c.start == "words" else []
    warm_up, _ = runner(base, c, trigger, seed)
    warm_up(next(mixed_batches(encoded, c.batch_size, seed)), 0)  # is not timed
    train, tuned = runner(base, c, trigger, seed)
    seconds, loss, checks, due = 0.0, math.inf, [], 0
    for step, batch in enumerate(mixed_batches(encoded, c.batch_size, seed)):
        if step == due or seconds >= max_seconds:
            exact = exact_match(base, tuned(), tests)
            done = {"step": step, "examples": step * c.batch_size, "seconds": seconds}
            checks.append(done | {"exact": exact, "loss": loss if math.isfinite(loss) else None})
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
    settings = vars(args) | {"dtype": str(args.dtype).removeprefix("torch.")}
    results = {"args": settings, "record": record(args.device, args.dtype, []), "contenders": {}}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    print(f"{task.name}, {model.name}, {settings['dtype']}, {torch.get_num_threads()} threads\n")
    columns = [f"{goal:.0%} at {name}: seconds, examples" for name, goal in zip(task.ranges, GOALS)]
    print(f"| contender | start, rate, batch | {' | '.join(columns)} |\n| --- | --- | --- | --- |", flush=True)
    for name in args.contenders:
        c, runs = CONTENDERS[name], []
        results["contenders"][name] = c._asdict() | {"runs": runs}
        with tqdm(range(args.seeds), name, unit=" runs", leave=False) as bar:
            for seed in bar:
                runs.append(one_run(base, c, seed, args.max_seconds, args.questions, bar))
                write_json(Path(args.out) / "results.json", results)
        cells = [cell(runs, goal, args.max_seconds) for goal in runs[0][0]["exact"]]
        print(f"| {c.label} | {c.start}, {c.lr:g}, {c.batch_size} | {' | '.join(cells)} |", flush=True)
    return results


if __name__ == "__main__":
    run_main(main, "python -m research.speedrun")
