"""The metrics in the log: one record a rotation."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from anycable_tx.monitoring.rotation import Snapshot, Writer

__all__ = ["LogPrinter"]


class LogPrinter(Writer):
    """Writes a record without text, with an attribute for each metric, sorted; of *only* those when there are any."""

    _log = Logger()

    def __init__(self, only: Sequence[str] = ()) -> None:
        self._only = frozenset(only)

    def start(self) -> None:
        """Nothing to do."""

    def write(self, snapshot: Snapshot) -> None:
        """Write the record."""
        values = snapshot.counters | snapshot.gauges
        shown = {name: values[name] for name in sorted(values) if not self._only or name in self._only}
        self._log.info("", attrs=shown)

    async def stop(self) -> None:
        """Nothing to do."""
