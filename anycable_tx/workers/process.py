"""A worker as its parent sees it: told what to do through one pipe, heard through another, seen to end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from socket import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure

from anycable_tx.children import ReapedProtocol
from anycable_tx.workers.handover import CONTROL, REPORTS, Handover, descriptors, pack
from anycable_tx.workers.reports import Lines, WorkerFailed, event_of, failure_of

__all__ = ["WorkerProcess"]


class WorkerProcess(ReapedProtocol):
    """One process. *publish* gets its log records.

    ``started`` fires when it serves, and fails with what its start failed with; ``ended`` fires with how it ended: a
    few words, which are the label of a counter too.
    """

    log = Logger()

    def __init__(self, handover: Handover, reactor: Any, publish: Callable[[LogEvent], None]) -> None:
        super().__init__(reactor, (CONTROL, REPORTS))
        self._reactor = reactor
        self.node_id: str = handover.settings["node_id"]
        self.started: Deferred[None] = Deferred()
        self.ended: Deferred[str] = Deferred()
        self._handover = handover
        self._publish = publish
        self._lines = Lines(self._heard)

    def spawn(self, sockets: Sequence[socket]) -> None:
        """Start it. One that cannot be started has ended."""
        # Neither -c nor the environment tells it anything: what it is given comes through a pipe.
        command = [sys.executable, "-P", "-m", "anycable_tx.workers", self.node_id]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        stdin = os.open(os.devnull, os.O_RDONLY)
        try:
            self._reactor.spawnProcess(
                self, sys.executable, command, environment, childFDs=descriptors(stdin, sockets)
            )
        except OSError as e:
            self._settle(WorkerFailed(f"the worker {self.node_id} cannot be started: {e}"))
            self.ended.callback("not started")
        finally:
            os.close(stdin)

    @property
    def pid(self) -> int:
        """Its process id; 0 once it has ended."""
        return getattr(self.transport, "pid", None) or 0

    # -- what it is told

    def tell(self, order: str) -> None:
        """``stop``, ``hurry`` or ``renew``; nothing, if it does not listen any more."""
        with suppress(KeyError):
            self._write(order.encode() + b"\n")

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.writeToChild(CONTROL, data)

    def kill(self) -> None:
        """End it, whatever it is doing."""
        assert self.transport is not None
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    # -- what it tells

    def connectionMade(self) -> None:
        """For Twisted: it runs."""
        self._write(pack(self._handover))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """For Twisted: it says something."""
        if childFD == REPORTS:
            self._lines.feed(data)

    def _heard(self, report: dict[str, Any]) -> None:
        if "record" in report:
            self._publish(event_of(report["record"]))
        elif "lost" in report:
            self.log.warn(
                "log records were lost", attrs={"context": "workers", "worker": self.node_id, "num": report["lost"]}
            )
        elif "ready" in report:
            self._settle(None)
        elif "failed" in report:
            self._settle(failure_of(report))

    def _settle(self, problem: Exception | None) -> None:
        if self.started.called:
            return
        if problem is None:
            self.started.callback(None)
        else:
            self.started.errback(problem)

    def processEnded(self, reason: Failure) -> None:
        """For Twisted: it has ended, and all it said was heard."""
        super().processEnded(reason)
        how = _ending(reason)
        self._settle(WorkerFailed(f"the worker {self.node_id} ended ({how}) before it served"))
        self.ended.callback(how)


def _ending(reason: Failure) -> str:
    number = getattr(reason.value, "signal", None)
    if number is None:
        return f"status {getattr(reason.value, 'exitCode', None) or 0}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
