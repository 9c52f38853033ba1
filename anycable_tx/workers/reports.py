"""What a worker tells its parent: that it is ready, why it cannot start, and its log records, a line of JSON each."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from select import select
from time import monotonic
from typing import Any

from twisted.internet import abstract, fdesc
from twisted.logger import LogEvent, LogLevel
from twisted.python.failure import Failure

from anycable_tx.errors import ConfigurationError
from anycable_tx.logs import plain, traceback_of
from anycable_tx.metrics import Metrics

__all__ = ["Lines", "ReportPipe", "WorkerFailed", "event_of", "failure_of", "record"]

#: So many bytes wait for a parent that does not read; records beyond are lost, and counted.
BOUND = 1024 * 1024
#: So many characters of a text or a traceback are told.
LONGEST = 32 * 1024
#: A line that is longer comes from no worker.
_LONGEST_LINE = 16 * LONGEST


class WorkerFailed(Exception):
    """A worker could not start, for a reason nobody expected; the text has its traceback."""


# -- in the worker


class ReportPipe(abstract.FileDescriptor):
    """The worker's end. Whole lines go at once where there is room, later where there is none; nobody ever waits."""

    def __init__(self, reactor: Any, descriptor: int, metrics: Metrics) -> None:
        super().__init__(reactor)
        self._descriptor = descriptor
        self._metrics = metrics
        self._lost = 0
        self.connected = 1
        fdesc.setNonBlocking(descriptor)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def ready(self) -> None:
        """The worker serves."""
        self._tell({"ready": True})

    def failed(self, failure: Failure) -> None:
        """The worker cannot start."""
        expected = failure.check(ConfigurationError) is not None
        traceback = "" if expected else failure.getTraceback()[-LONGEST:]
        self._tell({"failed": str(failure.value) or type(failure.value).__name__, "traceback": traceback})

    @property
    def waiting(self) -> int:
        """So many bytes the parent has not read."""
        return int(self._tempDataLen + len(self.dataBuffer) - self.offset)

    def write(self, text: str) -> None:  # type: ignore[override]
        """Take a line: this is the stream of the worker's log."""
        line = text.encode()
        if self.waiting + len(line) > BOUND:
            self._lost += 1
            self._metrics.count("dropped_log_records_total")
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._tell({"lost": lost})
        self._put(line)

    def flush(self) -> None:
        """Lines go as soon as they can."""

    def drain(self, seconds: float) -> None:
        """At the worker's end: what waits, if the parent reads within so many seconds."""
        until = monotonic() + seconds
        while self.waiting and self.connected and (left := until - monotonic()) > 0:
            select([], [self._descriptor], [], left)
            if self.doWrite() is not None:
                return

    def _tell(self, report: Mapping[str, Any]) -> None:
        self._put(json.dumps(report).encode() + b"\n")

    def _put(self, line: bytes) -> None:
        if not self.connected:
            return
        taken = 0 if self.waiting else self.writeSomeData(line)
        if taken < 0:  # the parent is gone, and the worker will be
            self.connected = 0
        elif taken < len(line):
            super().write(line[taken:])

    def writeSomeData(self, data: bytes) -> int:
        """For Twisted: write what fits; -1 when nobody reads."""
        taken = fdesc.writeToFD(self._descriptor, data)
        return taken if isinstance(taken, int) and taken >= 0 else -1


def record(event: LogEvent, message: str, attributes: Mapping[str, Any]) -> str:
    """A log record as a line."""
    told = {
        "time": event["log_time"],
        "level": event.get("log_level", LogLevel.info).name,
        "namespace": event.get("log_namespace", ""),
        "text": message[:LONGEST],
        "attrs": {key: plain(value) for key, value in attributes.items()},
    }
    if traceback := traceback_of(event):
        told["traceback"] = traceback[-LONGEST:]
    return json.dumps({"record": told}) + "\n"


# -- in the parent


class Lines:
    """Takes what comes through a pipe, and calls *heard* for each line that means something."""

    def __init__(self, heard: Callable[[dict[str, Any]], None]) -> None:
        self._heard = heard
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Some of it."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST_LINE else b""
        for line in lines:
            try:
                report = json.loads(line)
            except ValueError:  # the end of a line that was too long
                continue
            if isinstance(report, dict):
                self._heard(report)


def event_of(told: Mapping[str, Any]) -> LogEvent:
    """The log event that a worker's record stands for, with the worker's time and name."""
    event: LogEvent = {
        "log_time": told["time"],
        "log_level": LogLevel.lookupByName(told["level"]),
        "log_namespace": told["namespace"],
        "log_format": "{text}",
        "text": told["text"],
        "attrs": told["attrs"],
    }
    if "traceback" in told:
        event["traceback"] = told["traceback"]
    return event


def failure_of(report: Mapping[str, Any]) -> Exception:
    """What the parent's start fails with."""
    if report["traceback"]:
        return WorkerFailed(f"{report['failed']}\n\n{report['traceback']}")
    return ConfigurationError(report["failed"])
