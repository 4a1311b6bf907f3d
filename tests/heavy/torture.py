"""Kill small runs at random moments, go on with --resume, and compare the final bytes with those of a run left alone.

    python tests/torture.py --kills 1000     what make torture does; the test suite kills 10 times

A run is a forked copy of this process, which has torch imported already, and gets SIGKILL: after a random time, or from
within a write, before or after its n-th fsync, rename or save, of which one leaves half a file. Some of the newest
checkpoints are then cut off or changed in a byte, so that the one before has to serve.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has no threads but one

import torch
import torch._dynamo  # noqa: F401  an optimizer imports it: once here, not in every run
import undrawn

import train_task
from eval import plots
from files import errors as cli
from files import weights as checkpoint
from model import GPT, GPTConfig
from research import cluster, compare, documents, pretrain
from run import resume

torch.set_num_threads(1)
TIMINGS = ("seconds", "record", "command")


def commands(folder):
    """{program: (main, its arguments)} of small runs on files made in a folder."""
    torch.manual_seed(0)
    base = folder / "little"
    checkpoint.save_model(GPT(GPTConfig(vocab_size=1024, block_size=128, n_layer=1, n_head=2, n_embd=16)), base)
    shutil.copy(Path(__file__).parent.parent / "data" / "nano-2" / "encoding.json", base)
    (folder / "prose").mkdir()
    words, rng = [w for group in documents.BY_LETTERS.values() for w in group], random.Random(0)
    for i in range(3):
        (folder / "prose" / f"{i}.txt").write_text(" ".join(rng.choices(words, k=500)))
    few = ["--model", base, "--device", "cpu", "--examples", 96, "--batch-size", 4]
    tuning = ["--task", "word_reversal", "--test-examples", 3, "--n-random", 4, *few]
    size = ["--vocab-size", 257, "--block-size", 32, "--n-layer", 1, "--n-head", 1, "--n-embd", 16]
    length = ["--batch-tokens", 128, "--tokens", 4000, "--eval-interval", 16]
    alone = ["--beside", "none", "--save-minutes", 0.0005]
    found = {
        "hybrid": (train_task.main, [*tuning, "--beside", "lora", "--save-minutes", 0]),
        "hard": (train_task.main, [*tuning, "--method", "hard", *alone]),
        "cartridge": (train_task.main, [*tuning, "--method", "cartridge", *alone]),
        "pretrain": (pretrain.main, ["--text", folder / "prose", *size, *length, "--save-minutes", 0]),
        "compare": (
            compare.main,
            ["prompt_position", "--series", "after", "--tasks", "word_reversal", "--seeds", 1, "--questions", 3]
            + ["--examples", 32, "--jobs", 1, "--model", base, "--device", "cpu"],
        ),
    }
    return {name: (main, [str(a) for a in arguments]) for name, (main, arguments) in found.items()}


# ---------------------------------------------------------------- the run that is killed


def begin(main, arguments, log, die_at=None):
    """Fork a run; returns its process number. die_at: (function, n, "before" or "after" or "half"), the call of a
    function that writes, at which it kills itself."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        compare.get_context = lambda method: get_context("fork")  # so that torch need not be imported again
        plots.write = undrawn.write
        if die_at:
            kill_in_write(*die_at)
        cli.run_main(main, "program", arguments)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code or 0)


def kill_in_write(function, n, when):
    """Let the n-th call of os.fsync, os.replace or checkpoint.save_file be the last thing that this process does."""
    owner = checkpoint if function == "save_file" else os
    original, calls = getattr(owner, function), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == n and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == n:
            if when == "half" and function == "save_file":
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, function, dying)


def wait(pid, seconds):
    """Exit code of a run, negative the signal that killed it; it gets SIGKILL after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)  # the run alone: what it has started has to end by itself
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def damage(folder, rng):
    """Cut off or change the newest checkpoint under a folder, where the one before can take its place."""
    for newest in sorted(folder.glob(f"**/{resume.NEWEST}")):
        if newest.with_name(resume.BEFORE).exists():
            content = bytearray(newest.read_bytes())
            i = rng.randrange(len(content))
            if rng.random() < 0.5:
                content[i] ^= 1 << rng.randrange(8)
            else:
                del content[i:]
            newest.write_bytes(content)
            return True
    return False


# ---------------------------------------------------------------- what has to be the same


def final(folder):
    """{file: content} of all that finished runs leave, without times."""
    found = {}
    for path in sorted(folder.glob("**/*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in (resume.LOCK, cluster.LOCK, "report.html"):  # the page shows the seconds
            continue
        if path.name == resume.NEWEST:
            header, tensors = checkpoint.read_tensors(path)
            state = json.loads(header["state"]) | {"seconds": None}
            found[name] = state, {key: t.numpy().tobytes() for key, t in tensors.items()}
        elif path.name == "results.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMINGS}
        elif path.name == "study.json":
            found[name] = [row | {"seconds": 0} for row in json.loads(path.read_text())["rows"]]
        elif path.name == "table.md":
            found[name] = re.sub(r"\d+ \|$", "|", path.read_text(), flags=re.M)
        elif path.name == "README.md":
            found[name] = re.sub(r"^# .*|\| time \|.*", "", path.read_text())  # the folder's name stands there too
        elif path.name != resume.BEFORE:
            found[name] = path.read_bytes()
    return found


def torture(folder, kills, seed=0, programs=None):
    """Kill runs `kills` times in all; yields of each program (its name, its counts: kills, of these in a write, damaged
    checkpoints, runs that ended). Raises AssertionError where a run does not go on, or ends in other bytes."""
    every = commands(folder)
    every = {name: every[name] for name in programs or every}
    for number, (name, (main, arguments)) in enumerate(every.items()):
        rng = random.Random(f"{seed} {name}")
        alone, log = folder / f"{name} alone", folder / f"{name}.log"
        started = time.monotonic()
        assert wait(begin(main, [*arguments, "--out", str(alone)], log), 600) == 0, log.read_text()
        seconds, want = time.monotonic() - started, final(alone)
        count = {"kills": 0, "in a write": 0, "damaged": 0, "runs": 0}
        share = kills // len(every) + (number < kills % len(every))
        resumes = [] if name == "compare" else ["--resume"]
        while count["kills"] < share:
            out = folder / f"{name} killed"
            shutil.rmtree(out, ignore_errors=True)
            code = None
            while code != 0:
                in_write = rng.random() < 0.4 and name != "compare"
                writing = rng.choice(["fsync", "replace", "save_file"]), rng.randint(1, 15)
                die_at = (*writing, rng.choice(["before", "after", "half"])) if in_write else None
                # a study's own share of the time is small: its runs are killed with it
                limit = rng.uniform(0, 1.1 * seconds) if count["kills"] < share and not in_write else 600
                if count["kills"] >= share:
                    die_at = None
                code = wait(begin(main, [*arguments, "--out", str(out), *resumes], log, die_at), limit)
                assert code in (0, -signal.SIGKILL), f"{name}, exit code {code}: {log.read_text()}"
                if code:
                    count["kills"] += 1
                    count["in a write"] += in_write
                    count["damaged"] += rng.random() < 0.2 and damage(out, rng)
            count["runs"] += 1
            got = final(out)
            different = [file for file in want.keys() | got.keys() if want.get(file) != got.get(file)]
            assert not different, f"{name}: after kills these differ: {', '.join(different)}"
        yield name, count


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=1000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--programs", nargs="+", choices=["hybrid", "hard", "cartridge", "pretrain", "compare"])
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, count in torture(Path(folder), args.kills, args.seed, args.programs):
            print(f"{name}: {', '.join(f'{what} {n}' for what, n in count.items())}, failures 0", flush=True)


if __name__ == "__main__":
    main()
