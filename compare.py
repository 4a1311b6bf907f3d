"""Studies that redraw what the literature claims: the same base, questions and budget for every method.

    python compare.py methods             every method on every task, hours on two cores
    python compare.py length init steps   more of them; --list says what each asks
    python compare.py methods --full      the larger grid, for a GPU or a night
    python compare.py methods --cluster slurm --gpus 1     each run a job of its own

A study is a grid of runs of train_task.py, a few at once, each in a folder of its own. A finished run is not repeated
while its arguments, its base and the source are the same, and a stopped one goes on where it was; studies share
runs. Every study also measures the best context that a few worked examples make, and each prompt's own start.
"""

import hashlib
import io
import json
import os
import statistics
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from tqdm import tqdm

import cluster
import prefix
import resume
import tasks
from checkpoint import TRANSLATOR, fingerprint, load_model, locate, write_json, write_text
from claim import is_free
from cli import DEFAULT_BASE, Parser, at_least, run
from data import schemas
from data.tokenizer import Tokenizer
from eval import report
from eval.baselines import as_text

TASKS = ["addition", "multiplication", "symbolic_sum", "word_reversal", "last_letter"]
TWO = ["addition", "word_reversal"]  # one of numbers, one of letters, for studies with a second axis
THREE = [*TWO, "symbolic_sum"]
HELPED = ["prefix-memory", "adapter", "lora", "finetune", "finetune-top2"]  # by an example, which prompts begin as
BUDGET = {  # of each run: what it learns from, what it is tested on, with how many seeds
    False: {"examples": 4000, "questions": 200, "seeds": 3},
    True: {"examples": 20000, "questions": 1000, "seeds": 5},
}


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("studies", nargs="*", help=", ".join(STUDIES))
    p.add_argument("--list", action="store_true", help="what each study asks")
    p.add_argument("--full", action="store_true", help="more examples, questions and seeds")
    p.add_argument("--model", default=DEFAULT_BASE, help="the base (default %(default)s)")
    sizes = ["nano-1m", "nano", "nano-11m"]  # of one recipe
    p.add_argument("--sizes", nargs="+", default=sizes, metavar="MODEL", help="bases of base_size (default: nano's)")
    p.add_argument("--tasks", nargs="+", help="instead of the study's own")
    p.add_argument("--series", nargs="+", help="these rows of the table alone, for instance adapter 'adapter, 1 shot'")
    p.add_argument("--seeds", type=at_least(1, 100), help="(default 3; --full: 5)")
    p.add_argument("--examples", type=at_least(1), help="to tune on (default 4000; --full: 20000)")
    p.add_argument("--questions", type=at_least(1, 100_000), help="per range (default 200; --full: 1000)")
    p.add_argument(
        "--jobs", type=at_least(1, 1000), help="runs at once (default: a run for each core, one on a GPU, 256 on SLURM)"
    )
    p.add_argument("--out", default="out/compare", help="(default %(default)s)")
    p.add_argument("--add", action="store_true", help="keep the rows that the study's folder has of earlier commands")
    cluster.add_flags(p)
    args = p.parse_args(argv)
    for name in args.studies:
        if name not in STUDIES:
            raise ValueError(f"no study {name!r}: choose from {', '.join(STUDIES)}")
    if not args.studies and not args.list:
        raise ValueError(f"name a study: {', '.join(STUDIES)}")
    for name, value in BUDGET[args.full].items():
        setattr(args, name, getattr(args, name) or value)
    if args.cluster:  # what it runs on need not be in this machine
        args.device = "cuda" if args.gpus else "cpu"
    default = 256 if args.cluster == "slurm" else 1 if args.device == "cuda" else os.cpu_count()
    args.jobs = args.jobs or default
    return args


# ---------------------------------------------------------------- the studies


def cell(args, task, series, x=None, *flags, model=None, then=(), how=("--load",)):
    """One run for each seed: what it is called in the table, where it stands on the axis, and its command line;
    `then` are tasks on which what it learned is measured as well, or whatever the flags `how` do with its file."""
    given = ["--task", task, "--model", model or args.model, "--beside", "none", "--test-examples", args.questions]
    given += [] if "--examples" in flags else ["--examples", args.examples]
    given += [] if "--method" in flags else ["--method", "hybrid"]
    run = {"model": model or args.model, "args": [str(a) for a in (*given, *flags)]}
    return {"task": task, "series": series, "x": x, **run, "then": then, "how": [str(a) for a in how]}


def unhelped_and_helped(args, task, method, x=None, *flags, then=()):
    """The cell of a method, and where it does not begin as an example itself, the same with one in its context."""
    cells = [cell(args, task, method, x, "--method", method, *flags, then=then)]
    if method in HELPED:
        cells.append(cell(args, task, f"{method}, 1 shot", x, "--method", method, "--shots", 1, *flags, then=then))
    return cells


def context_cells(args, cells):
    """What no tuned prompt may be shown without: the example that prompts begin as, and the best context, as text, for
    each task and base of the cells. Where there are several bases, a context stands beside the cells of its own."""
    several = len({c["model"] for c in cells}) > 1
    return [
        cell(args, task, series, x, "--method", method, model=model)
        for task, model, x in dict.fromkeys((c["task"], c["model"], c["x"] if several else None) for c in cells)
        for series, method in (("the example as text", "text"), ("best context", "few-shot"))
    ]


def headline(args):
    """The default run of train_task.py with several seeds: the two hybrid prefixes, and a transformer from scratch on
    five times as many examples, five times over."""
    return [
        c
        for task in args.tasks or ["addition"]
        for c in (
            cell(args, task, "zero-shot", None, "--method", "zero-shot"),
            cell(args, task, "hybrid, instruction", None, "--trigger", "instruction"),
            cell(args, task, "hybrid, example", None),
            cell(args, task, "scratch", None, "--method", "scratch", "--examples", 5 * args.examples, "--epochs", 5),
        )
    ]


def methods(args):
    """Every method on every task: what it reaches in distribution and out of it, with how many parameters."""
    cells, folder = [], locate(args.model)[0].parent
    without = [] if (folder / TRANSLATOR).is_file() else ["translator"]
    for task in args.tasks or TASKS:
        cells.append(cell(args, task, "zero-shot", None, "--method", "zero-shot"))
        cells.append(cell(args, task, "instruction as text", None, "--method", "text", "--trigger", "instruction"))
        cells.append(cell(args, task, "hybrid, instruction", None, "--trigger", "instruction"))
        for name in prefix.METHODS:
            if name not in ("zero-shot", "text", "few-shot", *without):
                cells += unhelped_and_helped(args, task, name)
    return cells


def length(args):
    """How many rows a prompt needs: 1 to 100 (Lester et al. 2021, figure 3a; Li & Liang 2021, figure 4)."""
    return [
        cell(args, task, method, n, "--method", method, "--n-random", n, "--trigger", "none")
        for task in args.tasks or TWO
        for method in ("prompt", "ptuning2")
        for n in (1, 5, 10, 20, 50, 100)
    ]


def capacity(args):
    """How many of 256 random letters a prompt holds, by its rows: at most linearly many (Meyer et al. 2025)."""
    if args.tasks:
        raise ValueError(f"--tasks {' '.join(args.tasks)}: capacity has one task, memory: leave it out")
    how = "--method", "prompt", "--trigger", "none", "--lr", 0.1, "--epochs", 150, "--validation", 0
    pairs = "--examples", 256, "--test-examples", 256
    return [cell(args, "memory", "prompt", n, "--n-random", n, *how, *pairs) for n in (1, 2, 4, 8, 16, 32)]


def init(args):
    """How a prompt should begin (Lester et al. 2021, figure 3b), and the hybrid's parts with and without its MLP."""
    cells = []
    for task in args.tasks or THREE:
        for how in ("uniform", "vocabulary", "labels", "trigger"):
            cells.append(
                cell(args, task, f"prompt: {how}", None, "--method", "prompt", "--n-random", 48, "--init", how)
            )
        for name, rows in (
            ("random only", ["--n-random", 48, "--trigger", "none"]),
            ("instruction only", ["--n-random", 0, "--trigger", "instruction"]),
            ("random and instruction", ["--trigger", "instruction"]),
            ("example only", ["--n-random", 0]),
            ("random and example", []),
        ):
            for mlp in ([], ["--mlp", "--lr", 0.003]):
                cells.append(cell(args, task, f"hybrid: {name}{', MLP' * bool(mlp)}", None, *rows, *mlp))
    return cells


def prompt_position(args):
    """Whether rows before, inside or after the question steer best (Liu et al. 2021, "GPT Understands, Too")."""
    return [
        cell(args, task, where, None, "--method", "ptuning", "--position", where)
        for task in args.tasks or TWO
        for where in ("before", "inside", "after")
    ]


def data_efficiency(args):
    """Prompts from two starts, LoRA and fine-tuning with and without an example in their context, and a transformer
    from scratch on 16 to 4,000 examples, repeated until all have seen as many."""
    cells = []
    for task in args.tasks or ["addition", "symbolic_sum"]:
        for n in [n for n in (16, 128, 1000) if n < args.examples] + [args.examples]:
            given = "--examples", n, "--epochs", args.examples // n
            budget = given if n < args.examples else ()  # the default, so that other studies share its runs
            cells += [
                cell(args, task, "hybrid, instruction", n, "--trigger", "instruction", *budget),
                cell(args, task, "hybrid, example", n, *budget),
                *unhelped_and_helped(args, task, "lora", n, *budget),
                *unhelped_and_helped(args, task, "finetune", n, *budget),
                cell(args, task, "scratch", n, "--method", "scratch", *given),  # its default is 5 passes
            ]
    return cells


def steps(args):
    """How many steps a prompt needs from each start: 10, 30, 100 and 300 steps of 32 new examples, the last kept."""
    starts = {"example": [], "instruction": ["--trigger", "instruction"]}
    starts["random"] = ["--n-random", 65, "--trigger", "none"]
    return [
        cell(args, task, f"hybrid, {name}", n, "--examples", 32 * n, "--validation", 0, *start)
        for task in args.tasks or ["addition", "symbolic_sum"]
        for n in (10, 30, 100, 300)
        for name, start in starts.items()
    ]


def base_size(args):
    """Whether the gap between prompts and fine-tuning closes as the base grows (Lester et al. 2021, figure 1)."""
    parameters = {m: sum(p.numel() for p in load_model(m).parameters()) for m in args.sizes}
    return [
        cell(args, task, method, n, "--method", method, model=model)
        for task in args.tasks or THREE
        for model, n in parameters.items()
        for method in ("hybrid", "ptuning2", "lora", "finetune")
    ]


def transfer(args):
    """Tuned on one format, asked in another, and on longer and new words (Lester et al. 2021, section 5)."""
    others = {
        "addition": ("addition:symbolic", "addition:plain"),
        "addition:symbolic": ("addition", "addition:plain"),
        "symbolic_sum": ("symbolic_sum:sequence",),
        "word_reversal": (),
        "last_letter": (),
    }
    cells = []
    for task in args.tasks or others:
        for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune-top2", "finetune"):
            cells += unhelped_and_helped(args, task, method, then=others.get(task, ()))
    return cells


def unseen_skill(args):
    """Skills that the base has shown in other formats, and one that it never saw (Petrov et al. 2023), in one pass and
    in the five that a transformer from scratch makes."""
    return [
        cell(args, task, f"{method}{', 5 passes' * bool(passes)}", None, "--method", method, *passes)
        for task in args.tasks or ("word_reversal", "addition", "next_letter")
        for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune", "scratch")
        for passes in ((), ("--epochs", 5))
        if passes or method != "scratch"
    ]


def length_generalization(args):
    """What keeps a prompt right beyond the lengths it was tuned on: from the default, one thing changed at a time."""
    changes = [
        ("default: 24 random + example", []),
        *((f"{n} random + example", ["--n-random", n]) for n in (0, 96)),
        ("65 random", ["--n-random", 65, "--trigger", "none"]),
        ("24 random + instruction", ["--trigger", "instruction"]),
        ("default, MLP", ["--mlp", "--lr", 0.003]),
        *((f"{n} examples", ["--examples", n]) for n in (1000, 20000)),
        ("L2-SP 10", ["--l2-sp", 10]),
        ("the last state, not the best", ["--validation", 0]),
        ("20000 examples, the last state", ["--examples", 20000, "--validation", 0]),
        ("20000 examples, L2-SP 10", ["--examples", 20000, "--l2-sp", 10]),
        ("1 shot behind it", ["--shots", 1]),
        ("keys, values: example", ["--method", "ptuning2", "--n-random", 0]),
        ("keys, values: 24 random + example", ["--method", "ptuning2"]),
        ("keys, values: 65 random", ["--method", "ptuning2", "--n-random", 65, "--trigger", "none"]),
        ("adapter", ["--method", "adapter"]),
        ("adapter, 1 shot", ["--method", "adapter", "--shots", 1]),
        ("LoRA", ["--method", "lora"]),
        ("LoRA, 1 shot", ["--method", "lora", "--shots", 1]),
        ("LoRA, lr 1e-3, 1 shot", ["--method", "lora", "--lr", 1e-3, "--shots", 1]),
        ("fine-tuned", ["--method", "finetune"]),
        ("fine-tuned, 1 shot", ["--method", "finetune", "--shots", 1]),
        ("fine-tuned, lr 1e-4, 1 shot", ["--method", "finetune", "--lr", 1e-4, "--shots", 1]),
        ("from scratch", ["--method", "scratch"]),
    ]
    names = args.tasks or ["addition"]
    return [cell(args, task, series, None, *flags) for task in names for series, flags in changes]


def init_from(args):
    """Which task's prompt is a good start for which (Vu et al. 2022): the prompt of each task, tuned further on a tenth
    of the examples of each, four times over, beside the default start and random rows tuned alike."""
    names, cells = args.tasks or TASKS, []
    tenth = "--examples", max(1, args.examples // 10), "--epochs", 4
    for task in names:
        cells.append(cell(args, task, "hybrid, example", None, then=names, how=(*tenth, "--init-from")))
        cells.append(cell(args, task, "hybrid, example, a tenth", None, *tenth))
        cells.append(cell(args, task, "65 random rows, a tenth", None, "--n-random", 65, "--trigger", "none", *tenth))
    return cells


def distill(args):
    """2, 8 and 32 worked examples distilled into 8, 16 and 65 keys and values of each layer, beside the same examples
    in the context, where they fit, and beside as many keys and values tuned on their labels for as many steps."""
    cells = []
    for task in args.tasks or TWO:
        for k in (2, 8, 32):
            if fits(args, task, k):
                cells.append(
                    cell(args, task, f"{k} examples as text", None, "--method", "text", "--trigger-examples", k)
                )
            for n in (8, 16, 65):
                text = "--trigger-examples", k
                labels = "--trigger", "none", "--examples", k, "--epochs", max(1, args.examples // 32)
                cells += [
                    cell(args, task, f"{k} examples distilled", n, "--method", "cartridge", "--n-random", n, *text),
                    cell(args, task, f"{k} examples' labels", n, "--method", "ptuning2", "--n-random", n, *labels),
                ]
    return cells


def fits(args, name, k):
    """Whether the base's context holds the first k training examples of a task and the longest question and answer."""
    model, task = load_model(args.model), tasks.load(name)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, task.tokenize)
    tests = [e for r in task.ranges for e in task.examples(args.questions, r)]
    for seed in range(args.seeds):
        examples = task.examples(args.examples, split="train", seed=seed)
        longest = max(len(tokenizer.encode_task(e.question + e.answer)) for e in [*examples, *tests])
        if len(tokenizer.encode_task(as_text(examples[:k]))) + longest > model.config.block_size:
            return False
    return True


STUDIES = {
    f.__name__: f
    for f in (
        *(methods, headline, length, capacity, init, prompt_position, data_efficiency, steps),
        *(base_size, transfer, unseen_skill, length_generalization, init_from, distill),
    )
}
AXES = {  # what x is, in the studies that have it
    "length": "rows",
    "capacity": "rows for 256 names",
    "distill": "rows",
    "data_efficiency": "examples",
    "steps": "steps",
    "base_size": "parameters of the base",
}
LEARNED_FROM = {  # in the studies whose runs do not all learn from --examples
    "capacity": "256 names to tune on, 150 times over, and all of them asked",
    "data_efficiency": "examples as stated, {questions} questions a range",
    "steps": "32 new examples a step, {questions} questions a range",
}

# ---------------------------------------------------------------- running them


def source_hash():
    """Eight hex digits of every source file that a run's numbers depend on."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    others = ("compare.py", "bench.py", "sample.py", "pretrain.py", "peft_io.py", "claim.py", "cluster.py")
    others += ("report.py", "plots.py", "page.py", "attention.py", "speedrun.py")
    for folder in (root, root / "data", root / "tasks", root / "eval"):
        for file in sorted(folder.glob("*.py")):
            if file.name not in others:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def run_folder(folder, line, model, source):
    """Where the run of a command line belongs: a readable name, and a hash of all that its numbers depend on."""
    key = hashlib.sha256(json.dumps([line, model, source]).encode()).hexdigest()[:8]
    words = [a.removeprefix("--").replace("/", "-") for a in line if a not in ("--beside", "none", "--task")]
    return folder / f"{'_'.join(words)[:120]}_{key}"


def start_worker(threads):
    """Let a process of the pool end with the one that started it, however that ends: no run is left on its own."""
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    parent_process().join()
    os._exit(1)


def one(out, line):
    """One run without a word, in a process that imports torch once for many."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return cluster.do_run(out, line)


def do_all(runs, submit, most, pause, bar):
    """Do the runs of {folder: command line} and return [why it failed] of those that failed. Those that another machine
    is doing, or this one's other processes, are waited for, and taken over where it dies.

    submit: called with a folder and its command line; returns a job or future of `cluster.do_run`.
    most: how many are submitted at once. pause: seconds between looks at them.
    """
    waiting, jobs, seen, failed = dict(runs), {}, {}, []
    try:
        while waiting or jobs:
            for out in list(waiting):
                if resume.is_finished(out):
                    del waiting[out]
                    bar.update()
                elif len(jobs) < most and is_free(out, seen):
                    jobs[out] = submit(out, waiting.pop(out))
            time.sleep(pause)
            for out in [out for out, job in jobs.items() if job.done()]:
                result = why_failed(out, jobs.pop(out))
                if result is None:
                    waiting[out] = runs[out]
                    continue
                failed += result
                bar.update()
    finally:  # of an interrupt: what is finished is kept, and what was begun is saved
        for job in jobs.values():
            job.cancel()
        if jobs:
            print(f"\ncanceled {len(jobs)} runs; the same command goes on", file=sys.stderr)
    return failed


def why_failed(out, job):
    """What `do_run` returned in a process that may have been killed, for instance for lack of memory."""
    try:
        return job.result()
    except BrokenExecutor:
        raise ValueError(f"{out.name}: its process was killed: the same command goes on; try a lower --jobs") from None
    except RuntimeError as error:  # of submitit, which names the job's log
        return [f"{out.name}: {' '.join(str(error).split())[:500]}"]


def run_all(cells, args, folder):
    """Run what is not finished, and return each cell's results, a list over the seeds. Raises ValueError with what was
    wrong with the first run that failed; those that did not fail are kept."""
    first, second = {}, {}  # folder of a run: its command line; the second take up what the first learned
    source, bases = source_hash(), {}
    for c in cells:
        c["runs"] = []
        bases[c["model"]] = bases.get(c["model"]) or fingerprint(load_model(c["model"]))
        for seed in range(args.seeds):
            line = [*c["args"], "--seed", str(seed), "--device", args.device]
            out = run_folder(folder, line, bases[c["model"]], source)
            first[out] = line
            c["runs"].append([out])
            for other in c["then"]:
                how = "".join(f"_{a.removeprefix('--')}" for a in c["how"] if a != "--load")
                c["runs"][-1].append(out.with_name(f"{out.name}{how}_on_{other.replace(':', '-')}"))
                second[c["runs"][-1][-1]] = [*line, *c["how"], str(out / "prefix.safetensors"), "--task", other]
    every, failed = first | second, []
    waiting = {out: line for out, line in every.items() if not resume.is_finished(out)}
    bar = tqdm(total=len(every), initial=len(every) - len(waiting), desc="runs", unit=" runs", smoothing=0.05)
    if args.cluster:
        pool = cluster.open_executor(args, folder.with_name("jobs"))
        submit, most, pause = partial(cluster.submit, pool, args.cpus), args.jobs, 2
    else:
        threads = max(1, os.cpu_count() // args.jobs)
        pool = ProcessPoolExecutor(args.jobs, get_context("spawn"), start_worker, (threads,))
        submit, most, pause = partial(pool.submit, one), len(every), 0.2
    try:
        for wave in (first, second):
            failed += do_all({out: wave[out] for out in wave if out in waiting}, submit, most, pause, bar)
    finally:
        if not args.cluster:
            pool.shutdown(wait=False, cancel_futures=True)
        bar.close()
    if failed:
        raise ValueError(f"{len(failed)} of {len(every)} runs failed; {failed[0]}")
    return [[[read_results(out) for out in outs] for outs in c["runs"]] for c in cells]


def read_results(out):
    return schemas.read_json(out / "results.json", schemas.Results, "remove its folder, and it is run again")


def spread(values):
    """[mean, lowest, highest]"""
    return [statistics.mean(values), min(values), max(values)]


def summary(cells, results):
    """A row for each cell: accuracy by range before and after tuning, and what tuning added, each over the seeds its
    mean, lowest and highest in %, with what it cost."""
    rows = []
    for c, runs in zip(cells, results):
        before, after, added = {}, {}, {}
        for first, *others in runs:
            (by_range,) = first["accuracy"].values()
            start = next(iter(first["before"].values()), {})
            for r in others:  # of another task its first range
                (there,) = r["accuracy"].values()
                by_range[f"on {r['task']}"] = next(iter(there.values()))
                for before_there in r["before"].values():
                    start[f"on {r['task']}"] = next(iter(before_there.values()))
            for name, a in by_range.items():
                after.setdefault(name, []).append(100 * a["correct"] / a["n"])
                if name in start:
                    before.setdefault(name, []).append(100 * start[name]["correct"] / start[name]["n"])
                    added.setdefault(name, []).append(after[name][-1] - before[name][-1])
        rows.append(
            {
                "task": c["task"],
                "series": c["series"],
                "x": c["x"],
                "accuracy": {name: spread(v) for name, v in after.items()},
                "before": {name: spread(v) for name, v in before.items()},
                "added": {name: spread(v) for name, v in added.items()},
                "trainable": sum(runs[0][0]["trainable"].values()),
                "seconds": statistics.mean(sum(first["seconds"].values()) for first, *_ in runs),
            }
        )
    return rows


def read_earlier(path, settings):
    """The rows that study.json has of earlier commands. Raises ValueError where they were measured otherwise."""
    if not path.exists():
        return []
    earlier = schemas.read_json(path, schemas.Study, "leave out --add, and it is written again")
    if earlier["settings"] != settings:
        raise ValueError(f"{path}: measured with {earlier['settings']}, not with {settings}: leave out --add")
    return earlier["rows"]


def merged(earlier, rows, cells):
    """The rows measured now and those of earlier commands that were not measured again, in the order of the study's
    cells and then the contexts."""
    now, order = {place(r) for r in rows}, {place(c): i for i, c in enumerate(cells)}
    rows = [r for r in earlier if place(r) not in now] + rows
    return sorted(rows, key=lambda r: order.get(place(r), len(order)))


def place(row):
    """Where in a study a row or a cell stands."""
    return row["task"], row["series"], row["x"]


def main(argv=None):
    args = parse_args(argv)
    if args.list:
        for name, study in STUDIES.items():
            print(f"{name:<22}{' '.join(study.__doc__.split())}")
        return
    from eval import plots  # imported here, so that --help need not wait for matplotlib

    for name in args.studies:
        folder = Path(args.out) / (f"{name}-full" if args.full else name)
        every = STUDIES[name](args)
        known = list(dict.fromkeys(c["series"] for c in every))
        if unknown := set(args.series or ()) - set(known):
            raise ValueError(f"--series {min(unknown)}: {name} has {', '.join(known)}")
        cells = [c for c in every if c["series"] in (args.series or known)]
        settings = {key: getattr(args, key) for key in ("model", "examples", "questions", "seeds")}
        cells += context_cells(args, cells)
        earlier = read_earlier(folder / "study.json", settings) if args.add else []
        folder.mkdir(parents=True, exist_ok=True)
        resume.remove_leftovers(folder)
        started = time.monotonic()
        print(f"{name}: {' '.join(STUDIES[name].__doc__.split())}", flush=True)
        rows = merged(earlier, summary(cells, run_all(cells, args, Path(args.out) / "runs")), every)
        learned = LEARNED_FROM.get(name, "{examples:,} examples to tune on, {questions} questions a range")
        text = report.study_table(rows, args, learned.format(**settings), AXES.get(name, ""))
        print(f"\n{text}")
        minutes = (time.monotonic() - started) / 60
        write_text(folder / "table.md", text)
        write_json(folder / "study.json", {"settings": settings, "rows": rows})
        plots.plot_study(rows, folder, AXES.get(name, ""))
        if name == "init_from":
            plots.plot_heat(rows, folder / "heat.png")
        print(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} to {folder} after {minutes:.0f} minutes")


if __name__ == "__main__":
    run(main, "compare.py")
