"""A run is done once, by however many processes and machines share its folder: by the one that claims it.

A claim is a file .claim-N in the run's folder, and the highest N counts. Its holder touches it every ten seconds, and
sets its time to 0 at the end. Who finds no claim, or one that has ended, creates the next number, which a file system
lets exactly one process do (O_EXCL, on NFS as well). No claim is removed, so that no number is created twice.

A holder that was killed ends nothing, so the next one to look does: at once on the same machine, where its lock on the
file went with it, and on another when no touch was seen for a minute. The one who waits counts that minute on its own
monotonic clock, and no times of two machines are compared. A holder that was only asleep finds the next number when it
wakes, and its process ends before its next touch.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

BEAT, DEAD = 10, 60  # seconds: between touches; without a touch until the holder counts as dead
BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells machines of one name apart
MACHINE = f"{socket.gethostname()} {BOOT.read_text().strip() if BOOT.exists() else ''}"


@contextlib.contextmanager
def claim(folder):
    """`with claim(folder) as is_mine:` whether the run in a folder is this process's to do, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    number = newest(folder)
    path, following = folder / f".claim-{number + 1}", folder / f".claim-{number + 2}"
    try:
        file = open(path, "x") if is_free(folder, {}) else None
    except FileExistsError:  # another was faster
        file = None
    if file is None:
        yield False
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # before the file says on which machine it is locked
        file.write(MACHINE)
        file.flush()
        os.fsync(file.fileno())
        stop = threading.Event()
        beat = threading.Thread(target=touch_regularly, args=(path, following, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            end(path)


def touch_regularly(path, following, stop):
    while not stop.wait(BEAT):
        if following.exists():
            os._exit(1)
        with contextlib.suppress(OSError):  # the next touch may succeed
            os.utime(path)


def is_free(folder, seen):
    """Whether nobody does the run in a folder. `seen` is a dict that the caller keeps between its looks:
    {claim: (its time, when it was first seen with that time)}."""
    path = folder / f".claim-{newest(folder)}"
    try:
        with open(path, "r+") as file:  # opened anew, so that NFS asks its server for the time
            touched = os.fstat(file.fileno()).st_mtime_ns
            is_dead = is_unlocked(file) if file.read() == MACHINE else None
    except FileNotFoundError:
        return True
    if seen.get(path, (None,))[0] != touched:
        seen[path] = touched, time.monotonic()
    if is_dead is None:
        is_dead = time.monotonic() - seen[path][1] > DEAD
    if is_dead and touched:
        end(path)
    return is_dead or touched == 0


def is_unlocked(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end(path):
    with contextlib.suppress(FileNotFoundError):  # the folder was removed
        os.utime(path, (0, 0))


def newest(folder):
    return max((int(p.name.removeprefix(".claim-")) for p in folder.glob(".claim-*")), default=0)
