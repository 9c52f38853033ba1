"""Pings, pong deadlines and handshake deadlines of all connections, on one timer.

A connection stands in the bucket of the tick at which it is next due; the bucket is visited, not the connection.
Long intervals are visited every half minute so that closed connections do not linger in a far bucket.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from anycable_tx.metrics import Metrics

__all__ = ["Heartbeat", "Pinged"]

_log = Logger()
#: Seconds per tick.
TICK = 0.05
#: No bucket is farther away than this many ticks.
FARTHEST = 600


class Pinged(Protocol):
    """What the heartbeat needs of a connection."""

    pong_due: float

    def is_alive(self) -> bool:
        """Still connected?"""

    def ping(self) -> None:
        """Send a ping."""

    def pong_missing(self) -> None:
        """The client was silent for too long."""

    def opening_timed_out(self) -> None:
        """The request head did not arrive in time, or it did and this means nothing."""


class Heartbeat:
    """Visits connections when they are due. ``pong_timeout`` 0: nobody has to answer."""

    def __init__(self, reactor: Any, metrics: Metrics, *, pong_timeout: float, handshake_timeout: float) -> None:
        self._reactor = reactor
        self._metrics = metrics
        self._pong_timeout = pong_timeout
        self._handshake_timeout = handshake_timeout
        self._buckets: dict[int, dict[tuple[int, int], list[Pinged]]] = {}
        self._tick = 0
        self._start = 0.0
        self._deadlines: deque[tuple[float, Pinged]] = deque()
        self._opening: deque[tuple[float, Pinged]] = deque()
        self._loop = LoopingCall(self._run)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin."""
        self._start = self._reactor.seconds()
        self._loop.start(TICK, now=False)

    def stop(self) -> None:
        """End; nobody is pinged any more."""
        if self._loop.running:
            self._loop.stop()

    def opened(self, connection: Pinged) -> None:
        """A connection was accepted; its request head must arrive in time."""
        self._opening.append((self._reactor.seconds() + self._handshake_timeout, connection))

    def add(self, connection: Pinged, interval: float) -> None:
        """Ping *connection* every *interval* seconds, first after between a half and one and a half (CP-130)."""
        ticks = max(1, round(interval / TICK))
        self._put(connection, ticks, max(1, round(ticks * random.uniform(0.5, 1.5))))

    def _put(self, connection: Pinged, interval: int, wait: int) -> None:
        step = min(wait, FARTHEST)
        bucket = self._buckets.setdefault(self._tick + step, {})
        bucket.setdefault((interval, wait - step), []).append(connection)

    def expect_pong(self, connection: Pinged) -> None:
        """*connection* was pinged and has to show life in time; the deadline of an earlier ping stands."""
        if self._pong_timeout and not connection.pong_due:
            connection.pong_due = self._reactor.seconds() + self._pong_timeout
            self._deadlines.append((connection.pong_due, connection))

    def _run(self) -> None:
        now = self._reactor.seconds()
        while self._opening and self._opening[0][0] <= now:
            self._tell(self._opening.popleft()[1].opening_timed_out)
        while self._deadlines and self._deadlines[0][0] <= now:
            due, connection = self._deadlines.popleft()
            if connection.pong_due == due and connection.is_alive():
                self._tell(connection.pong_missing)
        last = int((now - self._start) / TICK)
        while self._tick < last:
            self._tick += 1
            bucket = self._buckets.pop(self._tick, None)
            if bucket:
                self._visit(bucket)

    def _tell(self, visit: Callable[[], None]) -> None:
        """An error in one connection must not end the pings of all others."""
        try:
            visit()
        except Exception:
            self._metrics.count("internal_errors_total")
            _log.failure("unexpected error")

    def _visit(self, bucket: dict[tuple[int, int], list[Pinged]]) -> None:
        for (interval, wait), connections in bucket.items():
            alive = [c for c in connections if c.is_alive()]
            if not alive:
                continue
            step = min(wait or interval, FARTHEST)
            rest = (wait or interval) - step
            self._buckets.setdefault(self._tick + step, {}).setdefault((interval, rest), []).extend(alive)
            if not wait:
                for connection in alive:
                    self._tell(connection.ping)
