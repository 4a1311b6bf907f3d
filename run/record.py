"""Versions, hardware and data of a run, and how two runs differ."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from files.errors import UserError


def record(device, dtype, data):
    """What a run's numbers depend on besides its command line and its base: results.json holds it under "record".

    data: [Example], those to learn from and those to test on.
    """
    digest = hashlib.sha256()
    for e in data:
        digest.update(f"{len(e.question)} {e.question}{e.answer}\n".encode())
    commit, changed = source()
    packages = {name: version(name) for name in ("torch", "numpy", "tiktoken", "safetensors")}
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"  # which instructions torch uses
    return {
        "commit": commit,
        "changed_since_commit": changed,
        "versions": {"python": platform.python_version()} | packages,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "data": digest.hexdigest()[:16],
    }


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
    """(commit, whether a Python file differs from it) of this source, or (None, None) outside of a git repository."""
    root = Path(__file__).resolve().parent.parent
    try:
        top, commit = git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != root:  # a repository that only holds a copy of this one
            return None, None
        return commit, git(root, "status", "--porcelain", "--", "*.py") != ""
    except (OSError, subprocess.CalledProcessError):
        return None, None


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout


def differences(before, after):
    """A line for each value in which two results.json differ, but the seconds and the command: first what the runs were
    made with, then what came of them."""
    before, after = (flat({"record": r["record"]} | r) for r in (before, after))
    lines = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        if a == b or name.startswith("seconds.") or name == "command":
            continue
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            unequal = [(x, y) for x, y in zip(a, b) if x != y]
            lines.append(f"{name}: {len(unequal)} of {len(a)} differ, first {unequal[0][0]} and {unequal[0][1]}")
        else:
            lines.append(f"{name}: {a} and {b}")
    return lines


def flat(value, name=""):
    """{path: number or text} of a nest of dicts and lists; a list of numbers is one value."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}[{i}]").items()}
    return {name: value}
