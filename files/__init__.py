"""Everything that is read or written. A command imports this first, before torch: it says how the command begins."""

import os
import signal
import sys

main_file = getattr(sys.modules["__main__"], "__file__", None)  # not yet there where python -m imports a package
is_command = sys.argv[:1] == ["-m"] or os.path.dirname(os.path.abspath(main_file or "/")) == os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
)
interrupts = {"are errors": False, "seen": 0}  # Ctrl-C ends a command at once but while its main function is at work


def interrupt(number, frame):
    """Ctrl-C: KeyboardInterrupt in a main function. An import could swallow it, or say what it was in the middle of."""
    if not interrupts["are errors"]:
        os._exit(130)
    interrupts["seen"] += 1
    raise KeyboardInterrupt


if is_command and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupt)
# Threads of torch that wait for each other sleep soon. OpenMP lets them spin for a while, which beside another process
# takes the core from the thread that is waited for. What a user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from files import errors

if is_command:
    sys.excepthook = errors.report
