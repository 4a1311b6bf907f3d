"""Faults of input, and how a command ends.

A broken file, flag or folder is a `UserError`: one line on stderr that names the input and the remedy, exit code 2.
Every other exception is a fault of the code and keeps its traceback.
"""

import argparse
import os
import sys
import time

from tqdm import tqdm


class UserError(Exception):
    """An input is wrong: its message says which one and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse with the program's docstring as its help, and errors as UserError."""

    def __init__(self, doc, **kwargs):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise UserError(f"{message}; --help shows what there is")


def run_main(main, program, argv=None):
    """Call main(argv) as the command `program`. Exits with code 2 after a UserError and with 130 after Ctrl-C. A closed
    pipe, as `head` leaves one, is no error."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # progress bars write to it
    try:
        main(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can still be reported
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
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
        for bar in list(tqdm._instances):  # so that the message stands on a line of its own
            bar.close()
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # process 0 reports what all of them would, and torchrun then ends this one
            program = f"{program}, process {os.environ['RANK']}"
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(2)


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
    return None
