"""Regular looks at the metrics: what happened since the one before, for those that write it somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from anycable_tx.metrics import Metrics

__all__ = ["Rotation", "Snapshot", "Writer"]


@dataclass(frozen=True)
class Snapshot:
    """How much each counter grew since the snapshot before, over all reasons; and the gauges now."""

    counters: dict[str, int]
    gauges: dict[str, int]


class Writer(Protocol):
    """Where snapshots go."""

    def start(self) -> None:
        """Snapshots will come."""

    def write(self, snapshot: Snapshot) -> None:
        """Take one; at once, and without raising for what lies outside this process."""

    async def stop(self) -> None:
        """Nothing more comes. Done when everything is let go of."""


class Rotation:
    """Hands each of the *writers* the same snapshot every *interval* seconds, and a last one at the end.

    A writer that fails is reported, and harms neither the others nor the next snapshot.
    """

    _log = Logger()

    def __init__(self, metrics: Metrics, reactor: Any, interval: float, writers: Sequence[Writer]) -> None:
        self._metrics = metrics
        self._interval = interval
        self._writers = writers
        self._before: dict[str, int] = {}
        self._loop = LoopingCall(self._rotate)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin."""
        for writer in self._writers:
            writer.start()
        self._loop.start(self._interval, now=False)

    async def stop(self) -> None:
        """Write what happened since the last snapshot, and end."""
        if self._loop.running:
            self._loop.stop()
            self._rotate()
        for writer in self._writers:
            await writer.stop()

    def _rotate(self) -> None:
        try:
            snapshot = self._snapshot()
        except Exception:
            self._failed("cannot read the metrics")
            return
        for writer in self._writers:
            try:
                writer.write(snapshot)
            except Exception:
                self._failed("cannot write the metrics")

    def _snapshot(self) -> Snapshot:
        totals = {name: sum(reasons.values()) for name, reasons in self._metrics.counters().items()}
        before, self._before = self._before, totals
        return Snapshot({n: total - before.get(n, 0) for n, total in totals.items()}, self._metrics.gauges())

    def _failed(self, text: str) -> None:
        self._metrics.count("internal_errors_total")
        self._log.failure("{text}", text=text, attrs={"context": "metrics"})
