"""Nothing is lost: a run saves its state, and --resume goes on from there to the same numbers, bit for bit.

checkpoint.safetensors in the run's folder holds the results so far, and of what is being tuned the weights, those of
its best state so far, the optimizers' state and the random generators. checkpoint-before.safetensors is what it held
one save earlier: it is used where a checksum says that the newest one is broken. Both go once the run is finished.

A run saves every few minutes, after each measurement, and when it gets SIGUSR1. Ctrl-C and SIGTERM end it after the
step or measurement that it is in, with exit code 130 or 143; a second one ends it at once. So does SIGUSR2, with 140,
which a cluster sends before a job's time is up.
"""

import hashlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

from files import schemas
from files.errors import UserError
from files.safe import flush, read_tensors, trained, write_tensors
from run import processes as distributed
from run import record

NEWEST, BEFORE, LOCK, LOG = "checkpoint.safetensors", "checkpoint-before.safetensors", ".lock", "log.jsonl"
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Saved(NamedTuple):
    state: dict
    tensors: dict  # {name: tensor}
    log_size: int  # of log.jsonl, in bytes
    finished: bool
    from_before: bool = False  # whether the newest checkpoint is gone or broken


class Checkpoint:
    """`with Checkpoint(folder, state, minutes) as checkpoint:` a run that is alone in its folder and saves its state.

    state: a dict that JSON can hold, with {"seconds": {}} in it: the time that each part of the run took.
    modules: {name: module}, whose weights are saved with it; the run adds and removes them.
    best: {name: tensor} of the best state so far of what is being tuned, which is saved as well.
    saved: what `load` returned, of the run that goes on; None begins a new one.
    log: "wandb" or "trackio", which get the lines of log.jsonl as well.
    Raises UserError where the folder cannot be written to, or another run is in it.
    """

    def __init__(self, folder, state, minutes, saved=None, log=None):
        self.folder, self.state, self.minutes, self.modules = Path(folder), state, minutes, {}
        self.saved = saved or Saved(state, {}, 0, finished=False)
        self.tensors, self.is_new = dict(self.saved.tensors), saved is None
        self.best = self.take("best/")
        self.signal = self.part = self.lock = None
        self.log, self.tracker = log, None
        self.part_began = self.last_save = time.monotonic()  # not time.time(), which jumps when the clock is set

    def __enter__(self):
        distributed.wait()  # all processes have read what is in the folder; from now on the first one writes
        if not distributed.is_main():
            self.handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (*STOP, signal.SIGUSR1)}
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / LOCK)  # of the operating system: it ends with its process
            self.lock.acquire(timeout=0)
            remove_leftovers(self.folder)
            if (self.folder / LOG).exists():  # it may say more than the checkpoint
                os.truncate(self.folder / LOG, min(self.saved.log_size, (self.folder / LOG).stat().st_size))
            if self.saved.from_before:  # a broken newest must not take its place at the next save
                os.replace(self.folder / BEFORE, self.folder / NEWEST)
            if self.is_new:
                (self.folder / BEFORE).unlink(missing_ok=True)
                (self.folder / NEWEST).unlink(missing_ok=True)
                self.save()  # from now on the folder holds an unfinished run, whatever else is in it
        except Timeout:
            raise UserError(f"another run is at work in {self.folder}: let it end, or give another --out") from None
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror}): give another --out") from None
        if self.log:
            self.tracker = record.tracker(self.log, self.folder, self.state["args"])
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # no other may set them
            self.handlers = {number: signal.signal(number, self.on_signal) for number in (*STOP, signal.SIGUSR1)}
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.lock:
            self.lock.release()
        if self.tracker:
            self.tracker.finish()
        if kind is SystemExit:
            print("stopped; the same command with --resume goes on", file=sys.stderr)

    def on_signal(self, number, frame):
        if self.signal in STOP and number in STOP:
            raise SystemExit(128 + number)
        self.signal = number
        if number in STOP:  # not print, which must not be interrupted by itself
            os.write(2, b"\nstopping after this step or measurement; once more stops at once\n")

    def begin(self, part):
        """From now on the time is counted as that of a part of the run."""
        self.part, self.part_began = part, time.monotonic()

    def end(self):
        """Count the time of the part that ends, and save, unless no more than a second of work would be lost."""
        self.count()
        self.part = None
        if self.signal or time.monotonic() - self.last_save >= min(1, 60 * self.minutes):
            self.save()

    def count(self):
        """Add the time since the last count to the part's."""
        if self.part:
            now, seconds = time.monotonic(), self.state["seconds"]
            seconds[self.part] = seconds.get(self.part, 0.0) + now - self.part_began
            self.part_began = now

    def after_step(self, optimizers, row):
        """Save what is being tuned if it is time. Every 50 steps `row` becomes a line of log.jsonl."""
        if not distributed.is_main():
            return
        if row["step"] % 50 == 0:
            with open(self.folder / LOG, "a") as file:
                file.write(json.dumps(row) + "\n")
            if self.tracker:
                self.tracker.log(row)
        if self.signal or time.monotonic() - self.last_save >= 60 * self.minutes:
            self.save(optimizers)

    def save(self, optimizers=()):
        """Write the state, the modules' weights and generators, and the optimizers' state. Stop if a signal says so."""
        self.count()
        if not distributed.is_main():
            return
        tensors = {}
        for name, module in self.modules.items():
            tensors |= {f"weights/{name}/{key}": t for key, t in trained(module).items()}
            tensors |= {f"generator/{name}/{key}": random_state(g) for key, g in generators(module)}
        tensors |= {f"best/{key}": t for key, t in self.best.items()}
        for key, state, _ in optimizer_states(optimizers):
            tensors |= {f"optimizer/{key}/{part}": t for part, t in state.items()}
        log = self.folder / LOG
        write(self.folder, self.state, tensors, log.stat().st_size if log.exists() else 0)
        self.last_save = time.monotonic()
        number, self.signal = self.signal, None
        if number in STOP:
            raise SystemExit(128 + number)

    def restore(self, name, module):
        """Put back the weights and generators of a module, where the checkpoint has them."""
        weights, states = self.take(f"weights/{name}/"), self.take(f"generator/{name}/")
        if weights:
            module.load_state_dict(weights, strict=False)
            for key, generator in generators(module):
                set_random_state(generator, states[key])
            self.modules[name] = module

    def restore_optimizers(self, optimizers):
        """Put back the state of the optimizers of what was being tuned."""
        for key, state, p in optimizer_states(optimizers):
            for part, t in self.take(f"optimizer/{key}/").items():
                state[part] = t.to(p.device) if t.dim() else t  # AdamW's count of steps stays on the CPU

    def take(self, prefix):
        """{rest of the name: tensor} of the loaded tensors whose names begin with `prefix`, which are then let go."""
        return {key.removeprefix(prefix): self.tensors.pop(key) for key in list(self.tensors) if key.startswith(prefix)}

    def finish(self):
        """The run has written its results: what it needs to go on is removed."""
        flush(self.folder)
        (self.folder / BEFORE).unlink(missing_ok=True)
        (self.folder / NEWEST).unlink()


def generators(module):
    """[(name, generator)] of all that a module draws from while it is tuned: its attributes, torch's and Python's."""
    return [(name, g) for name, g in vars(module).items() if isinstance(g, (torch.Generator, random.Random))]


def random_state(generator):
    """The state of a torch.Generator or a random.Random as a tensor, (bytes) or (625)."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return torch.tensor(generator.getstate()[1])


def set_random_state(generator, state):
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.setstate((random.Random.VERSION, tuple(state.tolist()), None))


def optimizer_states(optimizers):
    """[(key, state, parameter)] of each parameter of each optimizer; state is a dict of tensors."""
    return [
        (f"{i}/{j}", optimizer.state[p], p)
        for i, optimizer in enumerate(optimizers)
        for j, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    ]


# ---------------------------------------------------------------- the file


def write(folder, state, tensors, log_size):
    """Write a checkpoint; the one that was the newest becomes the one before."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"state": json.dumps(state), "log_size": str(log_size)}
    write_tensors(folder / NEWEST, tensors, header | {"sha256": checksum(header, tensors)}, keep=folder / BEFORE)


def load(folder):
    """What is Saved of the run in a folder: its newest checkpoint that is whole, or its results where it is finished,
    or None. Raises UserError where all checkpoints are broken.
    """
    broken = []
    for path in (Path(folder) / NEWEST, Path(folder) / BEFORE):
        if not os.path.lexists(path):
            continue
        try:
            header, tensors = read_tensors(path)
            if "sha256" not in header:
                raise UserError(f"{path} is no checkpoint of this version")
            if header.pop("sha256") != checksum(header, tensors):
                raise UserError(f"{path} is not as it was written")
        except ValueError as error:
            broken.append(str(error))
            continue
        if broken and distributed.is_main():
            print(f"{broken[0]}; going on from {path.name}", file=sys.stderr)
        return Saved(json.loads(header["state"]), tensors, int(header["log_size"]), False, path.name == BEFORE)
    if broken:
        raise UserError(f"{broken[0]}; no other checkpoint is left: begin again in another --out")
    results = Path(folder) / "results.json"
    if not results.exists():
        return None
    return Saved(schemas.read_json(results, dict, "give another --out"), {}, 0, finished=True)


def is_stopped(folder):
    """Whether a run in the folder began and has not finished."""
    return (Path(folder) / NEWEST).exists() or (Path(folder) / BEFORE).exists()


def is_finished(folder):
    return (Path(folder) / "results.json").exists() and not is_stopped(folder)


def is_half_file(path):
    """Whether a process was killed while it wrote this file: `replacing` calls it tmp-..., safetensors .tmpXXXXXX."""
    return path.name.startswith("tmp-") or re.fullmatch(r"\.tmp\w{6}", path.name) is not None


def is_leftover(path):
    """Whether a file is what a run leaves that never began."""
    return path.name == LOCK or path.name.startswith(".claim-") or is_half_file(path)


def remove_leftovers(folder):
    for path in Path(folder).iterdir():
        if is_half_file(path):
            path.unlink()


def checksum(header, tensors):
    """SHA-256 of all that a checkpoint holds, in hex digits."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)} ".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
