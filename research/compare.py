"""Studies that redraw what the literature claims: the same base, questions and budget for every method.

    python -m research.compare methods             every method on every task, hours on two cores
    python -m research.compare length init steps   more of them
    python -m research.compare methods --slurm "--partition=gpu --gpus=1 --time=60"     each run a job of SLURM

A study is a grid of command lines of train_task.py, each run once while its arguments, its base and the source stay the
same. The same command goes on where it was stopped, also on several machines that share a folder.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

import tasks
from eval import report
from files import schemas
from files.errors import UserError, run_main
from files.safe import write_json, write_text
from files.weights import fingerprint, load_model
from research.studies import PROMPT, STUDIES, context_cells
from run import resume
from run.flags import DEFAULT_BASE, Parser, at_least
from run.resume import is_finished

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = "output.txt"  # in a run's folder: what it printed
# what a run's numbers depend on
SOURCES = "kernels model llama generate prefix train_task files tasks data methods run eval research/measure".split()
# exit codes of a run that saved its state because the time of its job was up, or another job took its place
AGAIN = 128 + getattr(signal, "SIGUSR2", 0), 128 + signal.SIGTERM


def parse_args(argv=None):
    p = Parser(__doc__)
    p.epilog = "studies:\n" + "\n".join(f"  {name:<22}{s.about}" for name, s in STUDIES.items())
    p.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help="see below")
    p.add_argument("--model", metavar="BASE", default=DEFAULT_BASE, help="the base (default %(default)s)")
    p.add_argument("--tasks", nargs="+", help="instead of the study's own")
    p.add_argument("--series", nargs="+", help="these rows of the table alone, for instance adapter 'adapter, 1 shot'")
    p.add_argument("--seeds", type=at_least(1, 100), default=3, help="(default %(default)s)")
    p.add_argument("--examples", type=at_least(1), default=1000, help="to tune on (default %(default)s)")
    p.add_argument("--questions", type=at_least(1, 100_000), default=200, help="per range (default %(default)s)")
    p.add_argument("--jobs", type=at_least(1, 1000), help="runs at once (default: a core each; a GPU: 1; SLURM: 64)")
    p.add_argument("--out", default="out/compare", help="(default %(default)s)")
    p.add_argument("--slurm", metavar="FLAGS", help="each run is a job of SLURM, started by srun with these flags")
    args = p.parse_args(argv)
    args.jobs = args.jobs or (64 if args.slurm else os.cpu_count() if args.device == "cpu" else 1)
    return args


def digest(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def source_hash(root=ROOT):
    """Eight hex digits of the files that a run's numbers depend on, their paths and contents."""
    files = [root / "data" / "words.txt"]
    for name in SOURCES:
        files += (root / name).rglob("*.py") if (root / name).is_dir() else [root / f"{name}.py"]
    found = {f.relative_to(root).as_posix(): f.read_text(encoding="utf-8") for f in files if f.exists()}
    return digest(*sorted(found.items()))


def plan(cells, args, folder):
    """Returns the jobs, {folder of its first run: {folder: [module, *arguments]}}, and for each cell the folders of its
    runs, [[first, *those that need its prompt]] over seeds. A run's folder is named by its arguments and a hash of
    these, its base and the source."""
    jobs, places, source, base = {}, [], source_hash(), fingerprint(load_model(args.model))
    for c in cells:
        places.append([])
        for seed in range(args.seeds):
            on = ["--model", args.model, "--seed", str(seed)]
            on += [] if args.slurm else ["--device", args.device]  # the nodes of a cluster may have another
            words = "_".join(w.removeprefix("--") for w in c.line + on if w not in ("--task", "--beside", "none"))
            name = f"{re.sub('[^a-zA-Z0-9_.-]+', '-', words)[:120]}_{digest(c.line, on, base, source)}"
            first = folder / name
            runs = jobs.setdefault(first, {first: ["train_task", *c.line, *on, "--resume", "--overwrite"]})
            places[-1].append([first])
            for other, line in c.then.items():
                out = folder / f"{name}_on_{other.replace(':', '-')}_{digest(line)}"
                line = [str(first / "prefix.safetensors") if word == PROMPT else word for word in line]
                runs[out] = [*line, *on, "--overwrite"]
                places[-1][-1].append(out)
    return jobs, places


def do_all(jobs, args):
    """Do the jobs that are not finished, args.jobs at once: the runs of a job in order, each as a process of its own.
    Where a run fails, those behind it are not done."""
    waiting, running = [runs for runs in jobs.values() if not all(map(is_finished, runs))], []
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="runs", unit=" runs", smoothing=0.05)
    try:
        while waiting or running:
            for runs in waiting[: args.jobs - len(running)]:
                waiting.remove(runs)
                out = next((out for out in runs if not is_finished(out)), None)
                if out is None:
                    bar.update()
                elif resume.is_busy(out):  # another machine does it, or a process whose study was killed
                    waiting.append(runs)
                else:
                    running.append((start(out, runs[out], args), out, runs))
            time.sleep(0.2)
            for process, out, runs in [r for r in running if r[0].poll() is not None]:
                running.remove((process, out, runs))
                if is_finished(out) or process.returncode in AGAIN or resume.is_busy(out):
                    waiting.insert(0, runs)
                else:
                    bar.update()
    finally:
        for process, *_ in running:
            process.terminate()
        bar.close()


def start(out, line, args):
    """The process of a run [module, *arguments], which prints to a file of its folder."""
    out.mkdir(parents=True, exist_ok=True)
    # SLURM sends SIGUSR2 two minutes before the time is up
    job = ["srun", "--signal=USR2@120", *shlex.split(args.slurm)] if args.slurm else []
    threads = {} if args.slurm else {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))}
    command = [*job, sys.executable, "-m", *line, "--out", str(out)]
    with open(out / OUTPUT, "w") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        return subprocess.Popen(command, **streams, env=os.environ | threads)


def read_results(out):
    return schemas.read_json(out / "results.json", schemas.Results, "remove its folder, and it is run again")


def table_row(c, runs):
    """A row of the study's table: accuracy by range before and after tuning in %, each [mean, lowest, highest] over
    seeds. runs: [[first, *others]] of results.json."""
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
    where = {"task": runs[0][0]["task"], "series": c.series, "x": c.x}
    return where | measured | {"trainable": trainable, "seconds": seconds}


def do_study(name, args):
    """Do the runs of a study and write its table and figures. Returns what the runs that failed have printed."""
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

    failed = [out / OUTPUT for runs in jobs.values() for out in runs if not is_finished(out)]
    failed = [path for path in failed if path.exists()]  # those behind it were not done
    whole = [(c, runs) for c, runs in zip(cells, places) if all(is_finished(out) for outs in runs for out in outs)]
    shown = {c.task for c, _ in whole if c.series == "best context"}  # no table without it
    rows = [table_row(c, [[*map(read_results, outs)] for outs in runs]) for c, runs in whole if c.task in shown]
    settings = {key: getattr(args, key) for key in ("examples", "questions", "seeds", "model")}
    text = report.study_table(rows, settings, args.jobs, study.learned_from.format(**settings), study.axis)
    for path in failed:
        why = path.read_text(errors="replace").strip().splitlines() or ["it left no message"]
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
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # do_all then ends its runs
    for task in args.tasks or ():
        if Path(task).suffix.lower() not in tasks.ENDINGS:  # your own data are read by each run
            tasks.load(task)
    if any([do_study(name, args) for name in args.studies]):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
