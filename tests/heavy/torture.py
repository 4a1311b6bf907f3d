"""Kill small runs at random moments, go on with --resume, and compare the final bytes with those of a run left alone.

    python -m tests.heavy.torture --kills 1000     what make torture does; the test suite kills 10 times

A run is a forked copy of this process, which has torch imported already, and gets SIGKILL: after a random time, or from
within a write, before or after its n-th fsync, rename or save, of which one leaves half a file.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has no threads but one
import torch
import torch._dynamo  # noqa: F401  an optimizer imports it: once here, not in every run

import train_task
from eval import plots
from files import safe
from files.errors import run_main
from files.weights import save_model
from model import GPT, GPTConfig
from run import resume
from tests import undrawn


def commands(folder):
    """{program: (main, seconds between its saves, its flags)} of small runs on files made in a folder."""
    base = folder / "little"
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=128, n_layer=1, n_head=2, n_embd=16)), base)
    shutil.copy("data/nano-2/encoding.json", base)
    few = f"--model {base} --device cpu --examples"
    tuning = f"{few} 60 --batch-size 4 --task word_reversal --test-examples 3 --n-random 4"
    return {
        "hybrid": (train_task.main, 0, f"{tuning} --beside lora"),
        "hard": (train_task.main, 0.03, f"{tuning} --method hard --beside none"),
        "cartridge": (train_task.main, 0.03, f"{tuning} --method cartridge --beside none"),
    }


def run(main, save_seconds, flags, log, limit=600, die_at=None):
    """Exit code of a run in a process of its own, negative the signal that killed it: SIGKILL after `limit` seconds, or
    at die_at = (owner, function, n, "before" or "after" or "half"), the n-th call of a function that writes."""

    def child():
        for output in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), output)
        plots.write, resume.SAVE_SECONDS = undrawn.write, save_seconds
        if die_at:
            kill_in_write(*die_at)
        run_main(main, "program", flags.split())

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(limit)
    process.kill()
    process.join()
    return process.exitcode


def kill_in_write(owner, function, n, when):
    """Let the n-th call of a function that writes be the last thing that this process does."""
    original, calls = getattr(owner, function), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) != n or when != "before":
            original(*args, **kwargs)
        if len(calls) == n:
            if when == "half" and function == "save_file":
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, function, dying)


def final(folder):
    """{file: content} of all results and tensors that finished runs leave, without times."""

    def untimed(values):
        return {key: value for key, value in values.items() if key not in ("seconds", "record", "command")}

    def content(path):
        return path.read_bytes() if path.suffix != ".json" else json.loads(path.read_bytes(), object_hook=untimed)

    paths = [path for end in ("json", "safetensors") for path in folder.glob(f"**/*.{end}")]
    return {str(path.relative_to(folder)): content(path) for path in paths}


def torture(folder, name, main, save_seconds, flags, kills, rng):
    """Kill runs of one program so often. Returns the numbers of kills, of those in a write, and of finished runs.
    Raises AssertionError where a run does not go on, or ends in other bytes."""
    alone, out, log = (folder / f"{name}-{end}" for end in ("alone", "killed", "log"))
    began, count = time.monotonic(), {"kills": 0, "in a write": 0, "runs": 0}
    assert run(main, save_seconds, f"{flags} --out {alone}", log) == 0, log.read_text()
    seconds, flags = time.monotonic() - began, f"{flags} --out {out}" + " --resume"
    while count["kills"] < kills:
        shutil.rmtree(out, ignore_errors=True)
        while True:
            how = {"limit": rng.uniform(0, 1.1 * seconds)} if count["kills"] < kills else {}
            if how and rng.random() < 0.4:
                write = rng.choice([(os, "fsync"), (os, "replace"), (safe, "save_file")])
                how = {"die_at": (*write, rng.randint(1, 15), rng.choice(["before", "after", "half"]))}
            code = run(main, save_seconds, flags, log, **how)
            assert code in (0, -signal.SIGKILL), f"{name}, exit code {code}: {log.read_text()}"
            if code == 0:
                break
            count["kills"] += 1
            count["in a write"] += "die_at" in how
        count["runs"] += 1
        want, got = final(alone), final(out)
        different = [file for file in want.keys() | got.keys() if want.get(file) != got.get(file)]
        assert not different, f"{name}: after kills these differ: {', '.join(different)}"
    return count


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=1000)
    kills = p.parse_args().kills
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, program) in enumerate(commands(Path(folder)).items()):
            count = torture(Path(folder), name, *program, (kills + 2 - i) // 3, random.Random(name))
            print(f"{name}: {', '.join(f'{what} {n}' for what, n in count.items())}, failures 0", flush=True)


if __name__ == "__main__":
    main()
