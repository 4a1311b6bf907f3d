"""How a command begins: importing `files`, the first thing that each does, imports this before torch."""

import os
import signal
import sys

interrupts = {"are errors": False, "seen": 0}  # Ctrl-C ends a command at once but while its main function is at work


def is_command():
    """Whether Python runs one of our programs, and not pytest or a notebook."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    file = getattr(sys.modules["__main__"], "__file__", None)  # not yet there where python -m imports a package
    return sys.argv[:1] == ["-m"] or bool(file) and os.path.dirname(os.path.abspath(file)) == root


def interrupt(number, frame):
    """Ctrl-C: KeyboardInterrupt in a main function. An import could swallow it, or say what it was in the middle of."""
    if not interrupts["are errors"]:
        os._exit(130)
    interrupts["seen"] += 1
    raise KeyboardInterrupt


if is_command() and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupt)
# Threads of torch that wait for each other sleep soon. OpenMP lets them spin for a while, which beside another process
# takes the core from the thread that is waited for. What a user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
