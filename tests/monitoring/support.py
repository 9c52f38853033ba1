"""What the tests of the monitoring share: what is logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import LogEvent, formatEvent, globalLogPublisher


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    """The events that the package logs in the block."""
    events: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("anycable_tx."):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)


def texts(events: list[LogEvent]) -> list[str]:
    """What the events say."""
    return [formatEvent(event) for event in events]
