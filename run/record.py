"""Versions, hardware and data of a run, and how two runs differ."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from eval import accuracy
from files.errors import UserError


def record(device, data):
    """What a run's numbers depend on besides its command line and its base: results.json holds it under "record".

    data: [Example], those to learn from and those to test on.
    """
    digest = hashlib.sha256()
    for e in data:
        digest.update(f"{len(e.question)} {e.question}{e.answer}\n".encode())
    packages = {name: version(name) for name in ("torch", "numpy", "tiktoken", "safetensors")}
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"  # which instructions torch uses
    return {
        "commit": source(),
        "versions": {"python": platform.python_version()} | packages,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": {"tuning": torch.get_num_threads(), "measuring": accuracy.THREADS},
        "data": digest.hexdigest()[:16],
    }


def peak_memory(device):
    """The peak memory of this process on its device in GB; 0 on Windows, which does not tell it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return 0.0
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def check_same(folder, before, now):
    """Raise UserError where a folder's run was begun with other arguments, weights or data than this one."""
    try:
        known, args = before["args"], now["args"]
        pairs = {f"its --{key.replace('_', '-')}": (known.get(key), args[key]) for key in args}
        pairs["the base's weights"] = before["base"]["fingerprint"], now["base"]["fingerprint"]
        pairs["the examples"] = before["record"]["data"], now["record"]["data"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder} holds no results of this version: give another --out") from None
    for what, (a, b) in pairs.items():
        if json.dumps(a) != json.dumps(b):
            raise UserError(f"{folder} holds another run, {what} differs: give another --out")


def source():
    """The commit of this source, with "-dirty" behind it where a file differs from it; None outside of a repository."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    try:
        done = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    except OSError:  # without git
        return None
    return done.stdout.strip() or None


def differences(before, after):
    """A line for each value in which two results.json differ, but seconds, memory and the command: first what the runs
    were made with, then what came of them."""
    before, after = ({f"record.{k}": v for k, v in r["record"].items()} | r for r in (before, after))
    without = "record", "record.peak_gb", "seconds", "command"
    names = [n for n in before | after if n not in without and before.get(n) != after.get(n)]
    return [f"{name}: {str(before.get(name))[:400]} and {str(after.get(name))[:400]}" for name in names]
