"""Processes that are none: they say what a test lets them say, and end when it lets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from anycable_tx.workers.handover import CONTROL, REPORTS, Handover
from anycable_tx.workers.process import WorkerProcess


class Child:
    """The transport of a worker's protocol."""

    def __init__(self, protocol: WorkerProcess, command: list[str], environment: dict[str, str], fds: Any) -> None:
        self.protocol = protocol
        self.command = command
        self.environment = environment
        self.fds = fds
        self.pid: int | None = 4711
        self.given = b""
        self.orders: list[str] = []
        self.obedient = True

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        """The parent gives or tells it something."""
        assert descriptor == CONTROL
        if self.pid is None:
            raise KeyError(descriptor)
        if not self.given:
            self.given = data
            return
        self.orders.append(data.decode().strip())
        if self.obedient and self.orders[-1] in ("stop", "hurry"):
            self.end()

    def signalProcess(self, name: str) -> None:
        """The parent kills it."""
        assert name == "KILL"
        if self.pid is None:
            raise ProcessExitedAlready
        self.orders.append("KILL")
        self.end(signal=9)

    def say(self, **report: Any) -> None:
        """Tell the parent."""
        self.protocol.childDataReceived(REPORTS, json.dumps(report).encode() + b"\n")

    def end(self, status: int = 0, signal: int | None = None) -> None:
        """It has ended."""
        if self.pid is None:
            return
        self.pid = None
        value = ProcessTerminated(status, signal) if status or signal else ProcessDone(0)
        self.protocol.processEnded(Failure(value))

    @property
    def handover(self) -> Handover:
        """What it was given."""
        import io

        from anycable_tx.workers.handover import unpack

        return unpack(io.BytesIO(self.given))  # type: ignore[arg-type]


class Reactor(Clock):
    """A clock that spawns such processes, and runs when told."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Child] = []
        self._waiting: list[Callable[[], Any]] = []
        self.runs = False

    def spawnProcess(
        self, protocol: WorkerProcess, executable: str, args: list[str], env: dict[str, str], childFDs: Any
    ) -> Child:
        """Make one."""
        child = Child(protocol, args, env, childFDs)
        self.children.append(child)
        protocol.makeConnection(child)  # type: ignore[arg-type]
        return child

    def callWhenRunning(self, function: Callable[..., Any], *args: Any) -> None:
        """At once, or when it runs."""
        if self.runs:
            function(*args)
        else:
            self._waiting.append(lambda: function(*args))

    def run(self) -> None:
        """From now on it runs."""
        self.runs = True
        for call in self._waiting:
            call()
