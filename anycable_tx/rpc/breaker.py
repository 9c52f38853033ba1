"""A circuit breaker: when calls fail again and again, no more are made for a while."""

from __future__ import annotations

__all__ = ["Breaker"]

#: Closed: of at least so many results within so many seconds, this share has to be failures for it to open.
ENOUGH = 10
WINDOW = 10.0
SHARE = 0.8
#: Seconds it stays open before some calls are let through, on trial.
OPEN = 5.0
#: That many, and so many successes in a row close it; a single failure opens it again.
TRIALS = 5


class Breaker:
    """Counts what becomes of calls. *now* is a time in seconds that never goes back.

    ``admit`` before a call; if it gives a pass, then exactly one of ``succeeded``, ``failed`` and ``dropped`` with
    that pass. A result counts only in the period its call began in: what was under way when the breaker opened
    says nothing about the trials.
    """

    def __init__(self) -> None:
        self._period = 0
        self._until: float | None = None  # open until then; None: closed
        self._trying = False
        self._begin(-WINDOW)

    def admit(self, now: float) -> int | None:
        """A pass for one call, None while no call may be made."""
        self._turn(now)
        if self._until is not None or (self._trying and self._admitted >= TRIALS):
            return None
        self._admitted += 1
        return self._period

    def succeeded(self, admitted: int, now: float) -> None:
        """The call was answered."""
        self._turn(now)
        if admitted != self._period:
            return
        self._successes += 1
        if self._trying and self._successes >= TRIALS:
            self._trying = False
            self._begin(now)

    def failed(self, admitted: int, now: float) -> bool:
        """The call was not answered, or with a server's error. True if the breaker opened."""
        self._turn(now)
        if admitted != self._period:
            return False
        self._failures += 1
        results = self._successes + self._failures
        if not self._trying and (results < ENOUGH or self._failures / results < SHARE):
            return False
        self._trying = False
        self._begin(now)
        self._until = now + OPEN
        return True

    def dropped(self, admitted: int) -> None:
        """The call was given up before anything could be told of it."""
        if admitted == self._period:
            self._admitted -= 1

    def open_for(self, now: float) -> float:
        """Seconds until calls are made again, 0 when they are."""
        self._turn(now)
        return 0.0 if self._until is None else self._until - now

    def _turn(self, now: float) -> None:
        """A new period begins when the present one is over."""
        if self._until is not None:
            if now >= self._until:
                self._until = None
                self._trying = True
                self._begin(now)
        elif not self._trying and now >= self._began + WINDOW:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._period += 1
        self._began = now
        self._admitted = self._successes = self._failures = 0
