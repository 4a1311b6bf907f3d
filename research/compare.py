"""Studies that redraw what the literature claims: the same base, questions and budget for every method.

    python -m research.compare methods             every method on every task, hours on two cores
    python -m research.compare length init steps   more of them
    python -m research.compare methods --cluster slurm --gpus 1     each run a job of its own

A study is a grid of runs of train_task.py, a few at once, each in its own folder. The same command goes on where it
was stopped, and several processes or machines may share a folder: each run is done once while its arguments, its base
and the source stay the same. Every table shows the best context of a few worked examples and each prompt's own start.
"""

import hashlib
import json
import os
import re
import statistics
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
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
from research.studies import PROMPT, STUDIES, context_cells
from run.flags import DEFAULT_BASE, Parser, at_least
from run.resume import is_finished

ROOT = Path(__file__).resolve().parent.parent
# what a run's numbers depend on, and what they do not
SOURCES = "kernels model llama generate prefix train_task files tasks data methods run eval research/measure".split()
NO_SOURCES = "eval/report.py", "eval/plots.py", "eval/page.py"


def parse_args(argv=None):
    p = Parser(__doc__)
    p.epilog = "studies:\n" + "\n".join(f"  {name:<22}{s.about}" for name, s in STUDIES.items())
    p.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help="see below")
    p.add_argument(
        "--model",
        nargs="+",
        default=[DEFAULT_BASE],
        help=f"the base, or several of one size: every mean is then over these as well (default {DEFAULT_BASE})",
    )
    p.add_argument("--sizes", nargs="+", metavar="MODEL", help="the bases of base_size, one or several of each size")
    p.add_argument("--tasks", nargs="+", help="instead of the study's own")
    p.add_argument("--series", nargs="+", help="these rows of the table alone, for instance adapter 'adapter, 1 shot'")
    p.add_argument("--seeds", type=at_least(1, 100), default=3, help="(default %(default)s)")
    p.add_argument("--examples", type=at_least(1), default=4000, help="to tune on (default %(default)s)")
    p.add_argument("--questions", type=at_least(1, 100_000), default=200, help="per range (default %(default)s)")
    p.add_argument("--jobs", type=at_least(1, 1000), help="runs at once (default: a core each; a GPU: 1; SLURM: 256)")
    p.add_argument("--out", default="out/compare", help="(default %(default)s)")
    cluster.add_flags(p)
    args = p.parse_args(argv)
    if args.cluster:  # its machines need not be like this one
        args.device = "cuda" if args.gpus else "cpu"
    args.jobs = args.jobs or (256 if args.cluster == "slurm" else os.cpu_count() if args.device == "cpu" else 1)
    return args


def digest(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def source_hash(root=ROOT):
    """Eight hex digits of the files that a run's numbers depend on, their paths and contents."""
    files = [root / "data" / "words.txt"]
    for name in SOURCES:
        files += (root / name).rglob("*.py") if (root / name).is_dir() else [root / f"{name}.py"]
    found = {f.relative_to(root).as_posix(): f.read_text(encoding="utf-8") for f in files if f.exists()}
    return digest(*sorted(item for item in found.items() if item[0] not in NO_SOURCES))


def plan(cells, args, folder):
    """Returns the jobs, {folder of its first run: {folder: [program, *arguments]}}, and for each cell the folders of
    its runs, [[first, *those that need its prompt]] over bases and seeds. A run's folder is named by its arguments and
    a hash of these, its base and the source."""
    jobs, places, source, bases = {}, [], source_hash(), {}
    for c in cells:
        places.append([])
        for base, seed in product(c.bases, range(args.seeds)):
            bases[base] = bases.get(base) or fingerprint(load_model(base))
            on = ["--model", base, "--seed", str(seed), "--device", args.device]
            words = "_".join(w.removeprefix("--") for w in c.line + on if w not in ("--task", "--beside", "none"))
            name = f"{re.sub('[^a-zA-Z0-9_.-]+', '-', words)[:120]}_{digest(c.line, on, bases[base], source)}"
            first = folder / name
            runs = jobs.setdefault(first, {first: ["train_task", *c.line, *on, "--resume", "--overwrite"]})
            places[-1].append([first])
            for other, line in c.then.items():
                out = folder / f"{name}_on_{other.replace(':', '-')}_{digest(line)}"
                line = [str(first / "prefix.safetensors") if word == PROMPT else word for word in line]
                runs[out] = [*line, *on, "--overwrite"]
                places[-1][-1].append(out)
    return jobs, places


def start_worker(threads):
    """Let a process of the pool print nothing, and end with its parent, however that ends."""
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def do_all(jobs, args):
    """Do the jobs that are not finished, args.jobs at once. A job that another process is at is looked at again."""
    waiting, running = [runs for runs in jobs.values() if not all(map(is_finished, runs))], []
    if args.cluster:
        executor = cluster.open_executor(args, Path(args.out) / "jobs")
        submit, pause = partial(executor.submit, cluster.run_job, args.cpus), 2
    else:
        threads = max(1, os.cpu_count() // args.jobs)
        pool = ProcessPoolExecutor(args.jobs, get_context("spawn"), start_worker, (threads,))
        submit, pause = partial(pool.submit, cluster.do_job), 0.2
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="runs", unit=" runs", smoothing=0.05)
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                runs = waiting.pop(0)
                running.append((submit(runs), runs))
            time.sleep(pause)
            for job, runs in [pair for pair in running if pair[0].done()]:
                running.remove((job, runs))
                done = is_done(job, runs)
                bar.update(done)
                waiting += [runs] * (not done)
    finally:
        for job, _ in running:
            job.cancel()
        if not args.cluster:
            pool.shutdown(wait=False, cancel_futures=True)
        bar.close()


def is_done(job, runs):
    """What `do_job` returned in a process that may have been killed, for instance for lack of memory."""
    try:
        return job.result()
    except BrokenExecutor:
        raise UserError("the process of a run was killed: the same command goes on; try a lower --jobs") from None
    except RuntimeError as error:  # of submitit, which names the job's log
        write_text(next(out for out in runs if not is_finished(out)) / cluster.ERROR, f"{error}\n")
        return True


def read_results(out):
    return schemas.read_json(out / "results.json", schemas.Results, "remove its folder, and it is run again")


def table_row(c, runs):
    """A row of the study's table: accuracy by range before and after tuning in %, each [mean, lowest, highest] over
    bases and seeds. runs: [[first, *others]] of results.json."""
    found = {"before": {}, "accuracy": {}}
    for first, *others in runs:
        for when, by_range in found.items():
            for name, score in next(iter(first[when].values()), {}).items():
                by_range.setdefault(name, []).append(report.percent(score))
            for other in others:  # of another task its first range
                for scores in other[when].values():
                    by_range.setdefault(f"on {other['task']}", []).append(report.percent(next(iter(scores.values()))))
    measured = {when: {n: [statistics.mean(v), min(v), max(v)] for n, v in d.items()} for when, d in found.items()}
    seconds = statistics.mean(sum(first["seconds"].values()) for first, *_ in runs)
    trainable = sum(runs[0][0]["trainable"].values())
    return {"task": c.task, "series": c.series, "x": c.x, **measured, "trainable": trainable, "seconds": seconds}


def do_study(name, args):
    """Do the runs of a study and write its table and figures. Returns the folders of the runs that failed."""
    from eval import plots  # imported here, so that --help need not wait for matplotlib

    study, folder, started = STUDIES[name], Path(args.out) / name, time.monotonic()
    cells = [c for task in args.tasks or study.tasks for c in study(args, task)]
    known = list(dict.fromkeys(c.series for c in cells))
    if unknown := set(args.series or ()) - set(known):
        raise UserError(f"--series {min(unknown)}: {name} has {', '.join(known)}")
    cells = [c for c in cells if c.series in (args.series or known)]
    cells += context_cells(args, cells)
    print(f"{name}: {study.about}", flush=True)
    jobs, places = plan(cells, args, Path(args.out) / "runs")
    do_all(jobs, args)

    failed = [out for runs in jobs.values() for out in runs if (out / cluster.ERROR).exists()]
    whole = [(c, runs) for c, runs in zip(cells, places) if all(is_finished(out) for outs in runs for out in outs)]
    shown = {c.task for c, _ in whole if c.series == "best context"}  # no table without it
    rows = [table_row(c, [[*map(read_results, outs)] for outs in runs]) for c, runs in whole if c.task in shown]
    settings = {key: getattr(args, key) for key in ("examples", "questions", "seeds")}
    settings["model"] = ", ".join(args.sizes if name == "base_size" else args.model)
    text = report.study_table(rows, settings, args.jobs, study.learned_from.format(**settings), study.axis)
    for path in (out / cluster.ERROR for out in failed):
        why = path.read_text(errors="replace").splitlines() or ["it left no message"]
        text += f"\nA row is left out, since a run failed: {why[-1]} ({path})\n"
    print(f"\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", text)
    write_json(folder / "study.json", {"settings": settings, "rows": rows})
    plots.plot_study(rows, folder, study.axis)
    minutes = (time.monotonic() - started) / 60
    print(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} to {folder} after {minutes:.0f} minutes")
    return failed


def main(argv=None):
    args = parse_args(argv)
    failed = [out for name in args.studies for out in do_study(name, args)]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main, "compare.py")
