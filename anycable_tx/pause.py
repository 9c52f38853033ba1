"""How long to wait before the next attempt."""

from __future__ import annotations

from random import uniform
from typing import Any

from twisted.internet.defer import Deferred

__all__ = ["GOOD", "Pause"]

_FIRST, _LONGEST = 0.1, 5.0
#: A connection that lasted so many seconds was a good one: its loss is not part of the same trouble.
GOOD = 5.0


class Pause:
    """Doubling from *first* to 5 seconds, with jitter."""

    def __init__(self, reactor: Any, first: float = _FIRST) -> None:
        self._reactor = reactor
        self._first = self._next = first
        self._waiting: Deferred[None] | None = None

    def lasted(self, seconds: float) -> None:
        """There was a connection for so long."""
        if seconds >= GOOD:
            self._next = self._first

    async def wait(self) -> None:
        """Wait as long as it is time for, or until ``skip``."""
        seconds = uniform(self._next / 2, self._next)
        self._next = min(2 * self._next, _LONGEST)
        waiting: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, waiting.callback, None)
        self._waiting = waiting
        try:
            await waiting
        finally:
            self._waiting = None
            if timer.active():
                timer.cancel()

    def skip(self) -> None:
        """Do not wait any longer: something changed."""
        self._next = self._first
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)
