"""What goes through a worker's pipe: whole lines, without waiting, and the same records at the other end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from anycable_tx.errors import ConfigurationError
from anycable_tx.logs import Observer, make_observer
from anycable_tx.metrics import Metrics
from anycable_tx.workers.reports import BOUND, Lines, ReportPipe, WorkerFailed, event_of, failure_of, record


class Reactor:
    """Remembers who wants to write."""

    def __init__(self) -> None:
        self.writers: set[Any] = set()

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)


class Ends:
    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.reactor, self.metrics = Reactor(), Metrics()
        self.pipe = ReportPipe(self.reactor, writer, self.metrics)
        self.heard: list[dict[str, Any]] = []
        self._lines = Lines(self.heard.append)

    def read(self) -> None:
        """The parent reads what is there."""
        self._lines.feed(os.read(self.reader, 1 << 20))

    def read_all(self) -> None:
        """The parent reads until nothing waits."""
        while self.pipe.waiting:
            self.read()
            self.pipe.doWrite()
        self.read()


@pytest.fixture
def ends() -> Iterator[Ends]:
    it = Ends()
    yield it
    os.close(it.pipe.fileno())
    if it.reader >= 0:
        os.close(it.reader)


def test_a_line_goes_at_once(ends: Ends) -> None:
    ends.pipe.ready()
    ends.pipe.write('{"record": 1}\n')
    assert ends.reactor.writers == set()
    ends.read()
    assert ends.heard == [{"ready": True}, {"record": 1}]


def test_a_parent_that_does_not_read_costs_records_and_no_time(ends: Ends) -> None:
    line = json.dumps({"record": "x" * 1000}) + "\n"
    for _ in range(3000):
        ends.pipe.write(line)
    lost = ends.metrics.value("dropped_log_records_total")
    assert lost > 1000
    assert ends.pipe.waiting <= BOUND
    ends.read_all()
    ends.pipe.write(line)
    ends.read_all()
    assert ends.heard.count({"record": "x" * 1000}) == 3001 - lost
    assert ends.heard[-2] == {"lost": lost}


def test_what_waits_at_the_end_is_written_as_far_as_somebody_reads(ends: Ends) -> None:
    for _ in range(100):
        ends.pipe.write(json.dumps({"record": "x" * 1000}) + "\n")
    waiting = ends.pipe.waiting
    assert waiting
    ends.pipe.drain(0.0)
    assert ends.pipe.waiting == waiting
    ends.read()
    ends.pipe.drain(5.0)
    assert ends.pipe.waiting == 0


def test_a_parent_that_is_gone_harms_nobody(ends: Ends) -> None:
    os.close(ends.reader)
    ends.reader = -1
    ends.pipe.write("{}\n")
    ends.pipe.ready()
    ends.pipe.drain(1.0)
    assert ends.pipe.waiting == 0


def test_lines_come_whole_however_they_are_cut() -> None:
    heard: list[Any] = []
    lines = Lines(heard.append)
    for byte in b'{"ready": true}\nnonsense\n[1]\n{"lost": 2}\n':
        lines.feed(bytes([byte]))
    assert heard == [{"ready": True}, {"lost": 2}]


def test_a_line_without_an_end_is_not_kept() -> None:
    heard: list[Any] = []
    lines = Lines(heard.append)
    for _ in range(100):
        lines.feed(b"x" * 65536)
    assert len(lines._rest) < 1 << 20
    lines.feed(b'\n{"ready": true}\n')
    assert heard[-1] == {"ready": True}


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_record_looks_as_if_it_had_been_written_by_the_worker(format: str) -> None:
    """Except that the parent's level, format and sink apply."""
    here, there = StringIO(), StringIO()
    direct = make_observer(here, format=format, level="debug", node_id="me-1")
    parent = make_observer(there, format=format, level="debug", node_id="me")
    lines = Lines(lambda report: parent(event_of(report["record"])))

    class Pipe:
        def write(self, text: str) -> None:
            lines.feed(text.encode())

        def flush(self) -> None:
            pass

    worker = Observer(Pipe(), record, "debug", "me-1")

    def both(event: Any) -> None:
        direct(event)
        worker(event)

    log = Logger(namespace="anycable_tx.x", observer=both)
    log.info("to {who}\nand more", who="you", attrs={"context": "a b", "ids": ("x", "y"), "n": 1.5, "o": object})
    log.error("{no} braces", no="{}")
    try:
        raise ValueError("odd")
    except ValueError:
        log.failure("it failed", attrs={"sid": "s"})
    assert there.getvalue() == here.getvalue()
    assert "Traceback" in there.getvalue()


def test_a_level_that_is_not_wanted_is_not_sent() -> None:
    texts: list[str] = []

    class Pipe:
        write = staticmethod(texts.append)

        def flush(self) -> None:
            pass

    worker = Observer(Pipe(), record, "warn", "me-1")
    for level in (LogLevel.info, LogLevel.error):
        Logger(namespace="x", observer=worker).emit(level, level.name)  # type: ignore[arg-type]
    assert [json.loads(text)["record"]["text"] for text in texts] == ["error"]


def test_a_failed_start_is_told_with_a_traceback_only_when_it_is_a_surprise(ends: Ends) -> None:
    for error in (ConfigurationError("key: no"), ValueError("odd"), ValueError()):
        try:
            raise error
        except Exception:
            ends.pipe.failed(Failure())
    ends.read()
    expected, surprise, silent = map(failure_of, ends.heard)
    assert (type(expected), str(expected)) == (ConfigurationError, "key: no")
    assert isinstance(surprise, WorkerFailed)
    assert str(surprise).startswith("odd\n\nTraceback")
    assert str(silent).startswith("ValueError\n\nTraceback")
