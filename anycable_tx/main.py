"""The ``anycable-tx`` command: the same as ``twistd -n anycable``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the server in the foreground with the process's arguments; no pid file is written."""
    from twisted.scripts.twistd import run

    sys.argv[1:1] = ["--nodaemon", "--pidfile=", "anycable"]
    run()
