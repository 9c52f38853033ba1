"""The nats-server as a child process: its life, and what it says."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from anycable_tx.background import done_within
from anycable_tx.children import ReapedProtocol

__all__ = ["Child", "understood"]

#: ``[process id] date time [level] text``; a trace has more in front of the text.
_LINE = re.compile(r"\[\d+\] \S+ \S+ \[([A-Z]{3})\] ?(.*)")
_LEVELS = {"WRN": LogLevel.warn, "ERR": LogLevel.error, "FTL": LogLevel.error}
_CHATTER = ("INF", "DBG", "TRC")
_MONITOR = re.compile(r"Starting http monitor on \S+:(\d+)$")
_ACCEPTS = "Server is ready"
_DUPLICATE = "has a duplicate name"
#: It warns of what it answers to us, who ask because we wait for it.
_ASKED = "Healthcheck failed"
#: So much of a line is kept.
_LONGEST = 2000
_BOUND = Path(__file__).with_name("bound.py")


def understood(line: str) -> tuple[str, str]:
    """The level and the text of a line; '' for the level of one that is not of the log, such as of a crash."""
    match = _LINE.match(line)
    return (match[1], match[2]) if match else ("", line)


class Child(ReapedProtocol):
    """One run of *command*, which reads *configuration* and ends with this process, whatever ends that.

    What it says is logged, without *secrets*, and its chatter as *chatter*. A file to *lock* is locked as long as
    it runs.
    """

    log = Logger()

    def __init__(self, reactor: Any, *, secrets: Sequence[str] = (), chatter: LogLevel = LogLevel.debug) -> None:
        super().__init__(reactor)
        self._reactor = reactor
        self._secrets = secrets
        self._chatter = chatter
        self._rest = b""
        self._process: Any = None
        self._waiting: list[Deferred[None]] = []
        #: Where it can be watched, as soon as that is known.
        self.monitor_port = 0
        #: Clients can connect.
        self.accepts = False
        #: Another server of the cluster has its name.
        self.duplicate = False
        #: The last thing it said was wrong.
        self.complaint = ""
        #: How it ended; '' while it runs.
        self.end = ""

    def run(self, command: Sequence[str], configuration: bytes, lock: str = "") -> None:
        """Start it."""
        bound = [sys.executable, "-I", "-S", str(_BOUND), str(os.getpid()), lock, *command]
        # Its environment is ours, without what is meant for us alone.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANYCABLE_")}
        try:
            self._process = self._reactor.spawnProcess(self, bound[0], bound, env=environment)
        except OSError as e:
            self.end = f"it cannot be run: {e.strerror}"
            return
        self._process.write(configuration)
        self._process.closeStdin()

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self._process.pid)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        try:
            if not self.end:
                self._process.signalProcess(number)
        except ProcessExitedAlready:
            pass

    async def ended(self) -> None:
        """Wait for its end."""
        if not self.end:
            self._waiting.append(Deferred())
            await self._waiting[-1]

    async def ends_within(self, seconds: float) -> bool:
        """Wait for its end, but not longer. Has it ended?"""
        if not self.end:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await done_within(self._reactor, seconds, waiting)
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        return bool(self.end)

    # -- told by the reactor

    def outReceived(self, data: bytes) -> None:
        """It writes its log to the other pipe; this is for what is no log."""
        self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        """Log whole lines; of those without an end so much."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._said(line[:_LONGEST].decode("utf-8", "replace").rstrip())
        self._rest = self._rest[:_LONGEST]

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        super().processEnded(reason)
        value: Any = reason.value
        if value.signal is not None:
            self.end = f"it was ended by signal {value.signal}"
        else:
            self.end = "it ended" if isinstance(value, ProcessDone) else f"it ended with status {value.exitCode}"
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _said(self, line: str) -> None:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        level, text = understood(line)
        if match := _MONITOR.match(text):
            self.monitor_port = int(match[1])
        elif text == _ACCEPTS:
            self.accepts = True
        elif _DUPLICATE in text:
            self.duplicate = True
        if level not in _CHATTER and level != "WRN" and text:
            self.complaint = text
        if text:
            chatter = level in _CHATTER or text.startswith(_ASKED)
            shown = self._chatter if chatter else _LEVELS.get(level, LogLevel.warn)
            self.log.emit(shown, "{text}", text=text, attrs={"context": "enats", "service": "nats"})
