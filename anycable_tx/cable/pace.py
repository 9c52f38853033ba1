"""How fast a client may send: one number for each session, and no timers."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BURST", "Pace"]

#: So many seconds' worth of commands may come at once: a client that comes back subscribes to everything it had.
BURST = 10.0


class Pace:
    """At most *rate* commands a second in the long run, and BURST seconds' worth of them at once.

    *now* gives the time. A session keeps what ``spent`` answered: the time at which nothing it sent counts any more.
    """

    __slots__ = ("_interval", "_now")

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._interval = 1 / rate
        self._now = now

    def spent(self, clear: float) -> float:
        """One more command from a client that is clear at *clear*: the new time, or -1 if that is too much."""
        now = self._now()
        clear = (clear if clear > now else now) + self._interval
        return clear if clear <= now + BURST else -1.0
