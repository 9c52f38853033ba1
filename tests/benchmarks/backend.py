"""The application that servers of the scenario ``rpc`` call: it lets everybody in and echoes.

Run as ``python -m tests.benchmarks.backend IMPL PORT``, where IMPL is ``grpc`` or ``http``.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from anycable_tx.testing.rpc_app import Application


class Echo(Application):
    """Keeps nothing of what it was asked: it is asked too often for that."""

    def handle(self, method: str, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        reply: dict[str, Any] | None = getattr(self, method)(request, sid)
        return reply


def main(impl: str, port: int) -> None:
    """Serve until the process ends."""
    if impl == "grpc":
        from anycable_tx.testing.rpc_grpc_app import GrpcApp as App
    else:
        from anycable_tx.testing.rpc_http_app import HttpApp as App
    with App(Echo(), port=port):
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
