"""The runs of a study as jobs: of SLURM, or of submitit's stand-in for it on one machine, which is called alike.

    python compare.py methods --cluster slurm --partition gpu --gpus 1
    python compare.py methods --cluster local                # each run in a process of its own, as a rehearsal

submitit (https://github.com/facebookincubator/submitit) writes the call of each job to a file with pickle, for itself.
What it writes here is a name, run_job, and plain arguments. Our own files hold no pickle.

SLURM sends SIGUSR2 two minutes before the time of a job is up, and SIGTERM when it is preempted, requeued or canceled.
Either way the run saves its state after the step that it is in, and ends its claim. After SIGUSR2 the job then asks
SLURM to requeue it. A requeued job makes the same call, which goes on where the run was.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import torch

import train_task
from files.errors import UserError
from research.claim import BEAT, DEAD, claim, is_free
from run import resume
from run.flags import at_least

MOST_STARTS = 1000  # of one job whose time was up


def add_flags(p):
    g = p.add_argument_group("on a cluster", "SLURM reads what else it needs from SBATCH_QOS, SBATCH_CONSTRAINT, ...")
    g.add_argument("--cluster", choices=["slurm", "local"], help="each run is a job, of SLURM or of this machine")
    g.add_argument("--partition", help="of SLURM (default: the cluster's)")
    g.add_argument("--account", help="of SLURM (default: the user's)")
    g.add_argument(
        "--time-limit", type=at_least(5, 100_000), default=60, metavar="MINUTES", help="of a job (default %(default)s)"
    )
    g.add_argument("--cpus", type=at_least(1, 1024), default=1, help="of a job (default %(default)s)")
    g.add_argument("--gpus", type=at_least(0, 1), default=0, help="of a job, 0 or 1 (default %(default)s)")


def open_executor(args, folder):
    """submitit's executor, whose files go to a folder. It has `submit`, and its jobs `done`, `result` and `cancel`, as
    in concurrent.futures."""
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster needs submitit: pip install submitit") from None
    if args.cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError("--cluster slurm: sbatch is not found: start the study where SLURM's jobs are submitted")
    root = str(Path(__file__).resolve().parent.parent)  # a job imports this file by its name
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    executor = submitit.AutoExecutor(folder, args.cluster, slurm_max_num_timeout=MOST_STARTS)
    executor.update_parameters(
        name="nanoprompt",
        timeout_min=args.time_limit,
        cpus_per_task=args.cpus,
        gpus_per_node=args.gpus or None,
        slurm_partition=args.partition,
        slurm_account=args.account,
        slurm_signal_delay_s=120,
    )
    return executor


def submit(executor, threads, out, line):
    try:
        return executor.submit(run_job, out, line, threads)
    except RuntimeError as error:
        raise UserError(f"the job was not accepted: {error}") from None


def run_job(out, line, threads):
    """`do_run` as a job. Where its machine died, its second start finds the claim of the first, and waits until that
    counts as dead."""
    torch.set_num_threads(threads)
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: it calls `same_job`, and asks SLURM for another start
    seen, last_look = {}, time.monotonic() + DEAD + 2 * BEAT
    while not is_free(out, seen) and time.monotonic() < last_look:
        time.sleep(1)
    try:
        return do_run(out, line)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGUSR2:
            requeue(signal.SIGUSR2, None)
        raise


def same_job(*args):
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(run_job, *args)


run_job.checkpoint = same_job  # under this name submitit looks for it


def do_run(out, line):
    """One run of train_task.py; returns [], or [why it failed], or None where another process is at it."""
    with claim(out) as is_mine:
        if not is_mine:
            return None
        if not resume.is_finished(out):  # since the caller looked
            try:
                train_task.main([*line, "--out", str(out), "--overwrite", "--resume"])
            except Exception as error:
                return [f"{out.name}: {error}"]
    return []
