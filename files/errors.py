"""Faults of input, and how a command begins and ends.

A broken file, flag or folder is a `UserError`: one line on stderr that names the input and the remedy, exit code 2.
Every other exception is a fault of the code and keeps its traceback.
"""

import argparse
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from traceback import walk_tb

from files.start import interrupts, is_command

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """An input is wrong: its message says which one and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse with the program's docstring as its help, and errors as UserError."""

    def __init__(self, doc, **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=command(), description=doc, formatter_class=formatter, **kwargs)

    def error(self, message):
        raise UserError(f"{message}; --help shows what there is")


def command():
    """How a user calls the program that runs: train_task.py, or python -m research.compare."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def report(kind, error, traceback):
    """An exception of a command that is still importing: one line where it is a library's."""
    if message := explain(error):
        print(f"{command()}: {message}", file=sys.stderr, flush=True)
        os._exit(2)
    sys.__excepthook__(kind, error, traceback)


if is_command():
    sys.excepthook = report


def run_main(main, program=None, argv=None):
    """Call main(argv) as a command, which messages call `program`. Exits with code 2 after a UserError and with 130
    after Ctrl-C. A closed pipe, as `head` leaves one, is no error."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # progress bars write to it
    interrupts.update({"are errors": True, "seen": 0})
    try:
        main(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can still be reported
    except (KeyboardInterrupt, Exception) as error:
        if interrupts["seen"]:  # even where a library has made another error of it
            with suppress(OSError, AttributeError):
                sys.stdout.flush()
            os._exit(130)  # Python's own end takes a second
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        message = explain(error)
        if message is None:
            raise
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # Python would flush once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        for bar in list(sys.modules["tqdm"].tqdm._instances) if "tqdm" in sys.modules else ():
            bar.close()  # so that the message stands on a line of its own
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # process 0 reports what all of them would, and torchrun then ends this one
            message = f"process {os.environ['RANK']}: {message}"
        print(f"{program or command()}: {message}", file=sys.stderr)
        sys.exit(2)
    finally:
        interrupts["are errors"] = False


@cache
def note(line):
    """Print a line on stderr, once in a process."""
    print(line, file=sys.stderr)


@contextmanager
def saying(line, after=3):
    """`with saying(line):` print a line on stderr where the block takes longer than some seconds."""
    timer = threading.Timer(after, print, [line], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def explain(error):
    """The line for an error that comes from an input or from the machine, None for one that comes from the code."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text if len(text) < 1000 else text[:1000] + " ..."
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write'}: {error.strerror}" if error.strerror else None
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"the memory of this machine is too small: choose smaller sizes ({text[:500]})"
    of_a_peer = "gloo" in text or "NCCL" in text or type(error).__name__.startswith("Dist")
    if of_a_peer and "TORCHELASTIC_RUN_ID" in os.environ:
        return f"another process has ended: its own message says why ({text[:200]})"
    if library := broken_library(error):
        read = [f"{name}={value}" for name, value in os.environ.items() if repr(value) in text]
        return f"cannot import {library} ({text[:500]}): {f'unset {read[0]}' if read else 'install it again'}"
    return None


def broken_library(error):
    """The library that raised an error while it was imported, or that is not there, or None."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    importing = frames[-1].f_globals.get("__name__", "") if frames else "__main__"
    name = ((isinstance(error, ImportError) and error.name) or importing).partition(".")[0]
    is_ours = name == "__main__" or (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
    return None if is_ours or importing.startswith(("tasks.", "methods.")) else name  # of a task: its traceback
