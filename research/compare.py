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
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch
from tqdm import tqdm

from eval import report
from files import schemas
from files.errors import UserError, run_main
from files.safe import write_json, write_text
from files.weights import fingerprint, load_model
from research import cluster
from research.claim import is_free
from research.studies import AXES, LEARNED_FROM, STUDIES, context_cells
from run import resume
from run.flags import DEFAULT_BASE, Parser, at_least

BUDGET = {  # of each run: what it learns from, what it is tested on, with how many seeds
    False: {"examples": 4000, "questions": 200, "seeds": 3},
    True: {"examples": 20000, "questions": 1000, "seeds": 5},
}


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("studies", nargs="*", help=", ".join(STUDIES))
    p.add_argument("--list", action="store_true", help="what each study asks")
    p.add_argument("--full", action="store_true", help="more examples, questions and seeds")
    p.add_argument(
        "--model",
        nargs="+",
        default=[DEFAULT_BASE],
        help=f"the base, or several that differ by their seed, which every mean is then over (default {DEFAULT_BASE})",
    )
    sizes = [DEFAULT_BASE]
    p.add_argument(
        "--sizes",
        nargs="+",
        default=sizes,
        metavar="MODEL",
        help="bases of base_size, one or several of each size (default: %(default)s)",
    )
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
            raise UserError(f"no study {name!r}: choose from {', '.join(STUDIES)}")
    if not args.studies and not args.list:
        raise UserError(f"name a study: {', '.join(STUDIES)}")
    for name, value in BUDGET[args.full].items():
        setattr(args, name, getattr(args, name) or value)
    if args.cluster:  # what it runs on need not be in this machine
        args.device = "cuda" if args.gpus else "cpu"
    default = 256 if args.cluster == "slurm" else 1 if args.device == "cuda" else os.cpu_count()
    args.jobs = args.jobs or default
    return args


# ---------------------------------------------------------------- running them


def source_hash():
    """Eight hex digits of every source file that a run's numbers depend on."""
    digest, root = hashlib.sha256(), Path(__file__).parent.parent
    others = ("compare.py", "studies.py", "bench.py", "speedrun.py", "sample.py", "pretrain.py", "peft_io.py")
    others += ("claim.py", "cluster.py", "report.py", "plots.py", "page.py", "attention.py")
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
        raise UserError(f"{out.name}: its process was killed: the same command goes on; try a lower --jobs") from None
    except RuntimeError as error:  # of submitit, which names the job's log
        return [f"{out.name}: {' '.join(str(error).split())[:500]}"]


def run_all(cells, args, folder):
    """Run what is not finished, and return each cell's results, a list over its bases and seeds. Raises UserError with
    what was wrong with the first run that failed; those that did not fail are kept."""
    first, second = {}, {}  # folder of a run: its command line; the second take up what the first learned
    source, bases = source_hash(), {}
    for c in cells:
        c["runs"] = []
        for base, seed in product(c["bases"], range(args.seeds)):
            bases[base] = bases.get(base) or fingerprint(load_model(base))
            line = [*c["args"], "--model", base, "--seed", str(seed), "--device", args.device]
            out = run_folder(folder, line, bases[base], source)
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
        raise UserError(f"{len(failed)} of {len(every)} runs failed; {failed[0]}")
    return [[[read_results(out) for out in outs] for outs in c["runs"]] for c in cells]


def read_results(out):
    return schemas.read_json(out / "results.json", schemas.Results, "remove its folder, and it is run again")


def spread(values):
    """[mean, lowest, highest]"""
    return [statistics.mean(values), min(values), max(values)]


def summary(cells, results):
    """A row for each cell: accuracy by range before and after tuning, and what tuning added, each over the bases and
    seeds its mean, lowest and highest in %, with what it cost."""
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
    """The rows that study.json has of earlier commands. Raises UserError where they were measured otherwise."""
    if not path.exists():
        return []
    earlier = schemas.read_json(path, schemas.Study, "leave out --add, and it is written again")
    if earlier["settings"] != settings:
        raise UserError(f"{path}: measured with {earlier['settings']}, not with {settings}: leave out --add")
    return earlier["rows"]


def merged(earlier, rows, cells):
    """The rows measured now and those of earlier commands that were not measured again: the tasks as they came, and of
    each the order of the study's cells and then the contexts."""
    now, order = {place(r) for r in rows}, {place(c): i for i, c in enumerate(cells)}
    names = list(dict.fromkeys(r["task"] for r in [*earlier, *rows]))
    rows = [r for r in earlier if place(r) not in now] + rows
    return sorted(rows, key=lambda r: (names.index(r["task"]), order.get(place(r), len(order))))


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

    # one base is first loaded where its runs are made
    if len(args.model) > 1 and len({sum(p.numel() for p in load_model(name).parameters()) for name in args.model}) > 1:
        raise UserError(f"--model {' '.join(args.model)}: they are not of one size, which base_size --sizes compares")
    for name in args.studies:
        folder = Path(args.out) / (f"{name}-full" if args.full else name)
        every = STUDIES[name](args)
        known = list(dict.fromkeys(c["series"] for c in every))
        if unknown := set(args.series or ()) - set(known):
            raise UserError(f"--series {min(unknown)}: {name} has {', '.join(known)}")
        cells = [c for c in every if c["series"] in (args.series or known)]
        settings = {key: getattr(args, key) for key in ("examples", "questions", "seeds")}
        settings["model"] = ", ".join(args.sizes if name == "base_size" else args.model)
        cells += context_cells(args, cells)
        earlier = read_earlier(folder / "study.json", settings) if args.add else []
        folder.mkdir(parents=True, exist_ok=True)
        resume.remove_leftovers(folder)
        started = time.monotonic()
        print(f"{name}: {' '.join(STUDIES[name].__doc__.split())}", flush=True)
        rows = merged(earlier, summary(cells, run_all(cells, args, Path(args.out) / "runs")), every)
        learned = LEARNED_FROM.get(name, "{examples:,} examples to tune on, {questions} questions a range")
        text = report.study_table(rows, settings, args.jobs, learned.format(**settings), AXES.get(name, ""))
        print(f"\n{text}")
        minutes = (time.monotonic() - started) / 60
        write_text(folder / "table.md", text)
        write_json(folder / "study.json", {"settings": settings, "rows": rows})
        plots.plot_study(rows, folder, AXES.get(name, ""))
        if name == "init_from":
            plots.plot_heat(rows, folder / "heat.png")
        print(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} to {folder} after {minutes:.0f} minutes")


if __name__ == "__main__":
    run_main(main, "compare.py")
