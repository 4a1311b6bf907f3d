"""A study on a SLURM of one node: its jobs are stopped while they run, and end as those of a study without SLURM.

    python tests/heavy/slurm.py     as root, in a container to throw away; make torture runs it

It starts the daemons of Debian's packages slurm-wlm and munge on the loopback, without cgroups and without accounting.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from files.weights import save_model
from model import GPT, GPTConfig

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=small Nodes={host} Default=YES MaxTime=60 State=UP
"""


@contextlib.contextmanager
def slurm(folder):
    """SLURM's daemons, until the block ends; SLURM_CONF says where they are."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=folder, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munged = ["munged", "-F", "--force", "--num-threads=1", f"--socket={folder}/munge.socket", *files]
    with contextlib.ExitStack() as running:
        for command in (munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            log = running.enter_context(open(folder / f"{command[0]}.out", "w"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
            running.callback(lambda daemon=daemon: (daemon.terminate(), daemon.wait(60)))
            time.sleep(2)
        until(lambda: ask("sinfo", "-h", "-o", "%T") in ("idle", "mixed"), 60)
        yield
        subprocess.run(["scancel", "--user", "root"])  # the daemons wait for their jobs
        until(lambda: ask("squeue", "-h") == "", 60)


def ask(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def until(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.5)


def n_logged(run):
    """How many lines the run has written to its log, one every 50 steps."""
    return (run / "log.jsonl").read_text().count("\n") if (run / "log.jsonl").exists() else 0


def final(folder):
    """What a study leaves, without times: its rows and the prompts."""
    rows = json.loads((folder / "transfer" / "study.json").read_text())["rows"]
    prompts = {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/prefix.safetensors")}
    return [row | {"seconds": 0} for row in rows], prompts


def main():
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.geteuid() != 0:
        print("SLURM is not tested: it needs root, in a container to throw away, and apt-get install slurm-wlm munge")
        return
    with tempfile.TemporaryDirectory() as name, slurm(Path(name) / "slurm"), contextlib.ExitStack() as at_end:
        folder = Path(name)
        torch.manual_seed(0)
        save_model(GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=1, n_head=2, n_embd=32)), folder / "little")
        shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", folder / "little")
        # one tuned run, whose prompt a second one measures, and two contexts
        study = [sys.executable, "-m", "research.compare", "transfer", "--series", "hybrid", "--tasks", "symbolic_sum"]
        study += ["--seeds", "1", "--questions", "3", "--examples", "20000", "--model", str(folder / "little")]
        study += ["--jobs", str(os.cpu_count())]
        jobs = ["--slurm", "--partition=small --time=30 --cpus-per-task=1"]
        environment, out, alone = os.environ | {"OMP_NUM_THREADS": "1"}, folder / "out", folder / "alone"
        subprocess.run([*study, "--device", "cpu", "--out", out], cwd=ROOT, env=environment, check=True)
        out.rename(alone)  # results.json names the prompt's file, so both studies have one path
        (tuned,) = [p.parent for p in (alone / "runs").glob("*_hybrid_*/prefix.safetensors")]

        head = subprocess.Popen([*study, *jobs, "--out", out], cwd=ROOT, env=environment)
        at_end.callback(head.kill)
        # as preemption does, and as SLURM does before the time is up
        lines, tuned = 0, out / "runs" / tuned.name
        for number in ("TERM", "USR2"):
            until(lambda lines=lines: n_logged(tuned) > lines, 300)
            job = min(ask("squeue", "-h", "-o", "%i").split(), key=int)
            print(f"\nSIG{number} to job {job}", flush=True)
            subprocess.run(["scancel", f"--signal={number}", job], check=True)
            until(lambda job=job: job not in ask("squeue", "-h", "-o", "%i").split(), 60)
            lines = n_logged(tuned)
        assert head.wait(300) == 0
        assert final(alone) == final(out)
        print("stopped twice, the study ended in the same rows and prompts")

        # Ctrl-C leaves no job behind
        head = subprocess.Popen([*study, *jobs, "--out", folder / "stopped"], cwd=ROOT, env=environment)
        at_end.callback(head.kill)
        until(lambda: ask("squeue", "-h", "-t", "R") and list((folder / "stopped" / "runs").glob("*")), 120)
        head.send_signal(signal.SIGINT)
        assert head.wait(60) == 130
        until(lambda: ask("squeue", "-h") == "", 120)
        print("Ctrl-C: no job is left in the queue")


if __name__ == "__main__":
    main()
