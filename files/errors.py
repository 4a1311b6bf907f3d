"""Faults of input, and how a command ends.

A broken file, flag or folder is a `UserError`: one line on stderr that names the input and the remedy, exit code 2.
Every other exception is a fault of the code and keeps its traceback.
"""

import os
import sys


class UserError(Exception):
    """An input is wrong: its message says which one and what to do."""


def run_main(main, program, argv=None):
    """Call main(argv) as the command `program`. Exits with code 2 after a UserError, with 130 after Ctrl-C, and
    silently where the reader of stdout has seen enough, as `head` has at some point."""
    try:
        main(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can still be reported
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        message = explain(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(2)


def explain(error):
    """The line for an error that comes from an input or from the machine, None where it comes from the code."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write'}: {error.strerror}" if error.strerror else None
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"the memory of this machine is too small: choose smaller sizes ({text[:500]})"
    if isinstance(error, UserError):
        return text[:1000]
    of_a_peer = "gloo" in text or "NCCL" in text or type(error).__name__.startswith("Dist")
    if of_a_peer and "TORCHELASTIC_RUN_ID" in os.environ:
        return f"another process has ended: its own message says why ({text[:200]})"
    return None
