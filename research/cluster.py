"""One job of a study, and how it runs on SLURM through submitit (https://github.com/facebookincubator/submitit).

    python -m research.compare methods --cluster slurm --partition gpu --gpus 1
    python -m research.compare methods --cluster local     # the same jobs as processes of this machine: a rehearsal

submitit pickles a function's name and plain arguments into its own folder. SLURM sends SIGUSR2 two minutes before a
job's time is up: the run saves its state and ends, and the job is requeued and goes on from there.
"""

import importlib
import signal
import traceback

import torch
from filelock import FileLock, Timeout

from files.errors import UserError
from files.safe import write_text
from run import resume
from run.flags import at_least

LOCK, ERROR = ".job.lock", "error.txt"


def do_job(runs, wait=False):
    """Do the runs {folder: [program, *arguments]} in order, without those that are finished.

    Returns False where another process is at one of them, unless `wait` says to wait for its end, and else True. The
    lock is the operating system's and ends with its process. A run that fails leaves its traceback, or what was wrong
    with its input, in error.txt, and the runs behind it are not done.
    """
    for out, (program, *arguments) in runs.items():
        out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / LOCK, timeout=-1 if wait else 0):
                if not resume.is_finished(out):
                    (out / ERROR).unlink(missing_ok=True)
                    importlib.import_module(program).main([*arguments, "--out", str(out)])
        except Timeout:
            return False
        except Exception as error:
            write_text(out / ERROR, f"{error}\n" if isinstance(error, UserError) else traceback.format_exc())
            break
    return True


def run_job(threads, runs):
    """`do_job` as a job of submitit, which has set a handler of SIGUSR2 that requeues the job."""
    requeue = signal.getsignal(signal.SIGUSR2)
    torch.set_num_threads(threads)
    try:
        return do_job(runs, wait=True)
    except SystemExit as stop:  # of the run, after it has saved its state
        if stop.code == 128 + signal.SIGUSR2:
            requeue(signal.SIGUSR2, None)
        raise


def same_job(*args):
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(run_job, *args)


run_job.checkpoint = same_job  # what submitit does in a requeued job


def add_flags(p):
    g = p.add_argument_group("on a cluster", "SLURM reads what else it needs from SBATCH_ACCOUNT, SBATCH_QOS, ...")
    g.add_argument("--cluster", choices=["slurm", "local"], help="submit each run as a job")
    g.add_argument("--partition", help="of SLURM (default: the cluster's)")
    g.add_argument("--time-limit", type=at_least(5), default=60, metavar="MINUTES", help="of a job (default 60)")
    g.add_argument("--cpus", type=at_least(1), default=1, help="of a job (default 1)")
    g.add_argument("--gpus", type=at_least(0, 1), default=0, help="of a job, 0 or 1 (default 0)")


def open_executor(args, folder):
    """submitit's executor, which writes its files to a folder."""
    try:
        import submitit

        executor = submitit.AutoExecutor(folder, args.cluster, slurm_max_num_timeout=1000)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--cluster {args.cluster}: {error} It needs submitit, and slurm its commands") from None
    job = {"timeout_min": args.time_limit, "cpus_per_task": args.cpus, "gpus_per_node": args.gpus or None}
    slurm = {"slurm_partition": args.partition, "slurm_signal_delay_s": 120}
    executor.update_parameters(name="nanoprompt", **job, **slurm)
    return executor
