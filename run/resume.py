"""Nothing is lost: a run saves its state, and --resume goes on from there to the same numbers, bit for bit.

checkpoint.safetensors in the run's folder holds the results so far, and of what is being tuned the weights, those of
its best checkpoint so far, the optimizers' state and the random generators. A finished run has none.

A run saves every ten minutes and after each measurement. A signal of STOP ends it after the step or measurement that it
is in, with exit code 128 + the signal's number; a second one ends it at once.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

from files import schemas
from files.errors import UserError
from files.safe import flush, read_tensors, trained, write_tensors
from run import processes

NEWEST, LOCK, LOG = "checkpoint.safetensors", ".lock", "log.jsonl"
SAVE_SECONDS = 600
# Ctrl-C, the end of a job, a closed terminal, and a cluster's warning: Windows has only the first two
STOP = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2") if hasattr(signal, name)]


class Saved(NamedTuple):
    state: dict
    tensors: dict  # {name: tensor}
    finished: bool


class Checkpoint:
    """`with Checkpoint(folder, state, saved) as checkpoint:` a run that is alone in its folder and saves its state.

    state: a function that returns what JSON can hold. seconds: a dict within it, the time of each part of the run.
    saved: what `load` returned, of the run that goes on; None, or an empty state, begins a new one.
    modules: {name: module}, whose weights are saved; the run adds and removes them.
    best: {name: tensor} of the best checkpoint so far of what is being tuned, saved as well.
    Raises UserError where the folder cannot be written to, or another run is in it.
    """

    def __init__(self, folder, state, seconds, saved=None):
        self.folder, self.state, self.seconds, self.modules = Path(folder), state, seconds, {}
        self.saved, self.is_new = saved, not (saved and saved.state)
        self.tensors = dict(saved.tensors) if saved else {}
        self.best = self.take("best/")
        self.signal, self.lock, self.handlers = None, None, {}
        self.part_name, self.last_save = None, time.monotonic()  # not time.time(), which jumps when the clock is set

    def __enter__(self):
        processes.wait()  # all processes have read what is in the folder; from now on the first one writes
        if processes.is_main():
            self.open_folder()
        if threading.current_thread() is threading.main_thread():  # no other may set them
            handler = self.on_signal if processes.is_main() else signal.SIG_IGN
            heard = [n for n in STOP if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores SIGHUP
            self.handlers = {number: signal.signal(number, handler) for number in heard}
        return self

    def open_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / LOCK)  # of the operating system: it ends with its process
            self.lock.acquire(timeout=1)  # is_busy may look at it
            for path in filter(is_half_file, self.folder.iterdir()):
                path.unlink()
            if self.is_new and self.saved and load(self.folder).state:
                raise UserError(f"another run has been at work in {self.folder}: the same command again goes on")
            if self.is_new:
                (self.folder / LOG).unlink(missing_ok=True)
                self.save()  # from now on the folder holds an unfinished run, whatever else is in it
        except Timeout:
            raise UserError(f"another run is at work in {self.folder}: let it end, or give another --out") from None

    def __exit__(self, kind, error, traceback):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.lock:
            if kind and self.is_new and not self.seconds:  # nothing is done that could go on
                (self.folder / NEWEST).unlink(missing_ok=True)
            self.lock.release()
        if kind is SystemExit:
            print("stopped; the same command with --resume goes on", file=sys.stderr)

    def on_signal(self, number, frame):
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        # not print, which must not be interrupted by itself
        os.write(2, b"\nstopping after this step or measurement; once more stops at once\n")

    @contextmanager
    def part(self, name):
        """`with checkpoint.part(name):` counts the seconds of a part of the run, and saves at its end, unless no more
        than a second of work would be lost."""
        self.part_name, self.part_began = name, time.monotonic()
        yield
        self.count()
        self.part_name = None
        if self.signal or time.monotonic() - self.last_save >= min(1, SAVE_SECONDS):
            self.save()

    def count(self):
        """Add the time since the last count to that of the part."""
        if self.part_name:
            now = time.monotonic()
            self.seconds[self.part_name] = self.seconds.get(self.part_name, 0.0) + now - self.part_began
            self.part_began = now

    def after_step(self, optimizers, row):
        """Save what is being tuned if it is time. Every 50 steps `row` becomes a line of log.jsonl; after a kill, steps
        that were not saved stand there twice."""
        if not processes.is_main():
            return
        if row["step"] % 50 == 0:
            with open(self.folder / LOG, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.signal or time.monotonic() - self.last_save >= SAVE_SECONDS:
            self.save(optimizers)

    def save(self, optimizers=()):
        """Write the state, the modules' weights and generators, and the optimizers' state. Stop if a signal says so."""
        self.count()
        if not processes.is_main():
            return
        tensors = {f"best/{key}": t for key, t in self.best.items()}
        for name, module in self.modules.items():
            tensors |= {f"weights/{name}/{key}": t for key, t in trained(module).items()}
            for key, g in generators(module):
                state = torch.tensor(g.getstate()[1]) if isinstance(g, random.Random) else g.get_state()
                tensors[f"generator/{name}/{key}"] = state
        for key, state, _ in optimizer_states(optimizers):
            tensors |= {f"optimizer/{key}/{part}": t for part, t in state.items()}
        write_tensors(self.folder / NEWEST, tensors, {"state": json.dumps(self.state())})
        self.last_save = time.monotonic()
        if self.signal:
            raise SystemExit(128 + self.signal)

    def restore(self, name, module):
        """Put back the weights and generators of a module, where the checkpoint has them."""
        weights, states = self.take(f"weights/{name}/"), self.take(f"generator/{name}/")
        if weights:
            module.load_state_dict(weights, strict=False)
            for key, g in generators(module):
                if isinstance(g, random.Random):
                    g.setstate((random.Random.VERSION, tuple(states[key].tolist()), None))
                else:
                    g.set_state(states[key])
            self.modules[name] = module

    def restore_optimizers(self, optimizers):
        for key, state, p in optimizer_states(optimizers):
            for part, t in self.take(f"optimizer/{key}/").items():
                state[part] = t.to(p.device) if t.dim() else t  # AdamW's count of steps stays on the CPU

    def take(self, prefix):
        """{rest of the name: tensor} of the loaded tensors whose names begin with `prefix`, which are then released."""
        return {key.removeprefix(prefix): self.tensors.pop(key) for key in list(self.tensors) if key.startswith(prefix)}

    def finish(self):
        """Remove what the run needs to go on: it has written its results."""
        flush(self.folder)
        (self.folder / NEWEST).unlink()


def generators(module):
    """[(name, generator)] of all that a module draws from while it is tuned: its attributes, torch's and Python's."""
    return [(name, g) for name, g in vars(module).items() if isinstance(g, (torch.Generator, random.Random))]


def optimizer_states(optimizers):
    """[(key, state, parameter)] of each parameter of each optimizer; state is a dict of tensors."""
    return [
        (f"{i}/{j}", optimizer.state[p], p)
        for i, optimizer in enumerate(optimizers)
        for j, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    ]


def load(folder):
    """What is Saved of the run in a folder: its checkpoint, or its results where it is finished, or nothing."""
    folder = Path(folder)
    if os.path.lexists(folder / NEWEST):
        header, tensors = read_tensors(folder / NEWEST)
        state = schemas.decode(header.get("state", ""), dict, folder / NEWEST, "begin again in another --out")
        return Saved(state, tensors, finished=False)
    if not (folder / "results.json").exists():
        return Saved({}, {}, finished=False)
    return Saved(schemas.read_json(folder / "results.json", dict, "give another --out"), {}, finished=True)


def output_folder(args, name, model):
    """The run's folder. Raises UserError where something else is in it."""
    out = Path(args.out or f"out/{name.replace(':', '-')}-{model.name.rpartition('/')[2]}")
    known = args.overwrite or args.resume and (is_stopped(out) or (out / "results.json").exists())
    if out.is_file():
        raise UserError(f"{out} is a file: give another --out")
    # a run that never started leaves these
    if out.exists() and not (out.is_dir() and (known or all(p.name == LOCK or is_half_file(p) for p in out.iterdir()))):
        raise UserError(f"{out} is already in use: give another --out, --resume to go on, or --overwrite it")
    return out


def is_stopped(folder):
    """True where a run in the folder began and has not finished."""
    return (Path(folder) / NEWEST).exists()


def is_finished(folder):
    return (Path(folder) / "results.json").exists() and not is_stopped(folder)


def is_busy(folder):
    if not Path(folder).exists():
        return False
    try:
        with FileLock(Path(folder) / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def is_half_file(path):
    """True where a process was killed while it wrote this file: safe.py names it tmp-..., safetensors .tmpXXXXXX."""
    return path.name.startswith("tmp-") or re.fullmatch(r"\.tmp\w{6}", path.name) is not None
