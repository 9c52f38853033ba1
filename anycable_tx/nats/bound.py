"""Run as a program: becomes another one that does not outlive the process which started it.

Arguments: the id of that process, a file to lock ('' for none), and the command. The lock is held for as long as the
command runs, so two that share a directory cannot run at the same time, however the first one was left.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys

#: The exit status when the lock is taken.
TAKEN = 75
_PR_SET_PDEATHSIG = 1


def main(parent: str, lock: str, *command: str) -> None:
    """Does not return. A group of its own, because a terminal's Ctrl-C is for the parent, which stops in order."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)  # it was gone before the kernel knew that this one is to follow it
    if lock:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{lock} is locked: another server uses the directory", file=sys.stderr)
            sys.exit(TAKEN)
        os.set_inheritable(file, True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
