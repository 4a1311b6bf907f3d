"""Kill small runs at random moments, go on with --resume, and compare the final bytes with those of a run left alone.

    python -m tests.heavy.torture --kills 1000     what make torture does; the test suite kills 10 times

A run is a forked copy of this process, which has torch imported already, and gets SIGKILL: after a random time, or from
within a write, before or after its n-th fsync, rename or save, of which one leaves half a file. Some of the newest
checkpoints are then cut off or changed in a byte, so that the one before has to serve.
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
from research import compare, documents, pretrain
from run import resume
from tests import undrawn

# files with times, or of which there are as many as starts
DIFFERENT = (resume.LOCK, resume.BEFORE, "report.html", "table.md", "README.md")


def commands(folder):
    """{program: (main, seconds between its saves, its arguments)} of small runs on files made in a folder."""
    torch.manual_seed(0)
    base, prose = folder / "little", folder / "prose"
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=128, n_layer=1, n_head=2, n_embd=16)), base)
    shutil.copy("data/nano-2/encoding.json", base)
    prose.mkdir()
    words, rng = [w for group in documents.BY_LETTERS.values() for w in group], random.Random(0)
    for i in range(3):
        (prose / f"{i}.txt").write_text(" ".join(rng.choices(words, k=500)))
    few = f"--model {base} --device cpu --examples"
    tuning = f"{few} 96 --batch-size 4 --task word_reversal --test-examples 3 --n-random 4"
    size = "--vocab-size 257 --block-size 32 --n-layer 1 --n-head 1 --n-embd 16"
    study = f"prompt_position --series after --tasks word_reversal --seeds 1 --questions 3 --jobs 1 {few} 32"
    found = {
        "hybrid": (train_task, 0, f"{tuning} --beside lora"),
        "hard": (train_task, 0.03, f"{tuning} --method hard --beside none"),
        "cartridge": (train_task, 0.03, f"{tuning} --method cartridge --beside none"),
        "pretrain": (pretrain, 0, f"--text {prose} {size} --batch-tokens 128 --tokens 4000 --eval-interval 16"),
        "compare": (compare, 600, study),
    }
    return {name: (program.main, seconds, line.split()) for name, (program, seconds, line) in found.items()}


def start(main, save_seconds, argv, log, limit=600, die_at=None):
    """Exit code of a run in a process of its own, negative the signal that killed it: SIGKILL after `limit` seconds, or
    at die_at = (function, n, "before" or "after" or "half"), the n-th call of a function that writes."""
    if pid := os.fork():
        end, done = time.monotonic() + limit, 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        if not done:
            os.kill(pid, signal.SIGKILL)  # the run alone: what it has started has to end by itself
            _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        os.setsid()
        for output in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), output)
        compare.get_context = lambda method: get_context("fork")  # so that torch need not be imported again
        plots.write, resume.SAVE_SECONDS = undrawn.write, save_seconds
        if die_at:
            kill_in_write(*die_at)
        run_main(main, "program", argv)
        os._exit(0)
    except BaseException as error:
        os.write(2, repr(error).encode())
    os._exit(1)


def kill_in_write(function, n, when):
    """Let the n-th call of os.fsync, os.replace or safe.save_file be the last thing that this process does."""
    owner, calls = safe if function == "save_file" else os, []
    original = getattr(owner, function)

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == n and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args, **kwargs)
        if len(calls) == n:
            if when == "half" and function == "save_file":
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, function, dying)


def damage(folder, rng):
    """Cut off or change a newest checkpoint under a folder, where the one before can take its place."""
    for before in sorted(folder.glob(f"**/{resume.BEFORE}"))[:1]:
        newest = before.with_name(resume.NEWEST)
        content = bytearray(newest.read_bytes()) if newest.exists() else bytearray(1)
        i = rng.randrange(len(content))
        content[i] ^= 1 << rng.randrange(8)
        newest.write_bytes(content[: rng.choice([i, None])])
        return True
    return False


def final(folder):
    """{file: content} of all that finished runs leave, without times."""
    found = {}
    for path in folder.glob("**/*.*"):
        if path.name.endswith(".json"):
            content = json.loads(path.read_text())
            for timed in [content, *content.get("rows", [])] if isinstance(content, dict) else []:
                for key in ("seconds", "record", "command"):
                    timed.pop(key, None)
            found[path.relative_to(folder)] = content
        elif path.is_file() and path.name not in DIFFERENT and not path.name.startswith(".claim-"):
            found[path.relative_to(folder)] = path.read_bytes()
    return found


def torture(folder, name, main, save_seconds, argv, kills, rng):
    """Kill runs of one program so often. Returns the numbers of kills, of those in a write, of damaged checkpoints and
    of finished runs. Raises AssertionError where a run does not go on, or ends in other bytes."""
    alone, out, log = (folder / f"{name}{end}" for end in (" alone", " killed", ".log"))
    began, count = time.monotonic(), {"kills": 0, "in a write": 0, "damaged": 0, "runs": 0}
    assert start(main, save_seconds, [*argv, "--out", str(alone)], log) == 0, log.read_text()
    seconds, argv = time.monotonic() - began, [*argv, "--out", str(out), *(["--resume"] if name != "compare" else [])]
    while count["kills"] < kills:
        shutil.rmtree(out, ignore_errors=True)
        code = None
        while code != 0:
            how = {}
            if count["kills"] < kills and rng.random() < 0.4 and name != "compare":  # a study itself writes little
                writing = rng.choice(["fsync", "replace", "save_file"]), rng.randint(1, 15)
                how["die_at"] = (*writing, rng.choice(["before", "after", "half"]))
            elif count["kills"] < kills:
                how["limit"] = rng.uniform(0, 1.1 * seconds)
            code = start(main, save_seconds, argv, log, **how)
            assert code in (0, -signal.SIGKILL), f"{name}, exit code {code}: {log.read_text()}"
            if code:
                count["kills"] += 1
                count["in a write"] += "die_at" in how
                count["damaged"] += rng.random() < 0.2 and damage(out, rng)
        count["runs"] += 1
        want, got = final(alone), final(out)
        different = [str(file) for file in want.keys() | got.keys() if want.get(file) != got.get(file)]
        assert not different, f"{name}: after kills these differ: {', '.join(different)}"
    return count


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=1000)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, program) in enumerate((programs := commands(Path(folder))).items()):
            kills = args.kills // len(programs) + (i < args.kills % len(programs))
            count = torture(Path(folder), name, *program, kills, random.Random(f"{args.seed} {name}"))
            print(f"{name}: {', '.join(f'{what} {n}' for what, n in count.items())}, failures 0", flush=True)


if __name__ == "__main__":
    main()
