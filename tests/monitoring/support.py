"""What the tests of the monitoring share: the log as it is written, and a UDP server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import LogEvent, formatEvent, globalLogPublisher


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    """The events that are logged in the block."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(events.append)


def texts(events: list[LogEvent]) -> list[str]:
    """What the events say."""
    return [formatEvent(event) for event in events]
