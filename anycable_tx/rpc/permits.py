"""Turns: how many calls run at a time, and which of those that wait is next."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from twisted.internet.defer import Deferred

from anycable_tx.metrics import Metrics
from anycable_tx.rpc.transport import CallFailed, Code

__all__ = ["DISCONNECT_TURN", "AdaptiveLimit", "Limit", "Permits"]

#: While both wait, every so manieth turn is a Disconnect's (RA-26).
DISCONNECT_TURN = 8


class Limit:
    """How many calls may run at a time: always the same number."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def answered(self, waiting: int) -> None:
        """The backend dealt with a call while *waiting* others had no turn."""

    def exhausted(self, running: int) -> None:
        """The backend said that it has too much to do, with *running* calls at it."""


class AdaptiveLimit(Limit):
    """A limit that follows what the backend can take, between *least* and *most* (RA-32).

    It grows by one for as many answers as it allows calls, provided that others wait: an idle server proves
    nothing. It shrinks by a quarter when the backend is exhausted, and then not again before as many outcomes came
    as calls were running: those were made under the old limit.
    """

    def __init__(self, initial: int, least: int, most: int) -> None:
        super().__init__(min(max(initial, least), most))
        self._least = least
        self._most = most
        self._earned = 0
        self._old = 0

    def answered(self, waiting: int) -> None:
        """One step towards a greater limit if others wait."""
        self._old = max(0, self._old - 1)
        if not waiting:
            return
        self._earned += 1
        if self._earned >= self.capacity:
            self._earned = 0
            self.capacity = min(self._most, self.capacity + 1)

    def exhausted(self, running: int) -> None:
        """A smaller limit, unless that outcome is an old one's."""
        self._earned = 0
        if self._old:
            self._old -= 1
            return
        self._old = running - 1
        self.capacity = max(self._least, self.capacity * 3 // 4)


class _Waiter:
    """One call that waits, and the timer that ends that."""

    __slots__ = ("line", "sid", "timer", "turn")

    def __init__(self, sid: str, line: OrderedDict[_Waiter, None]) -> None:
        self.sid = sid
        self.line = line
        self.turn: Deferred[None] = Deferred()
        self.timer: Any = None


class Permits:
    """Hands out ``limit.capacity`` turns, first come first served.

    Disconnect calls stand in a line of their own and have every DISCONNECT_TURN-th turn while others wait (RA-26).
    At most *size* calls wait in both lines together, and none for longer than *patience* seconds (0: no limit).
    """

    def __init__(self, limit: Limit, reactor: Any, metrics: Metrics, *, size: int, patience: float = 0.0) -> None:
        self.limit = limit
        #: Turns that were given and not given back.
        self.running = 0
        self._reactor = reactor
        self._size = size
        self._patience = patience
        self._commands: OrderedDict[_Waiter, None] = OrderedDict()
        self._disconnects: OrderedDict[_Waiter, None] = OrderedDict()
        #: The commands that wait, by session.
        self._by_sid: dict[str, list[_Waiter]] = {}
        self._turns = 0
        self._granting = False
        metrics.gauge("rpc_pending_num", lambda: self.waiting)
        if isinstance(limit, AdaptiveLimit):
            metrics.gauge("rpc_capacity_num", lambda: limit.capacity)

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return len(self._commands) + len(self._disconnects)

    async def acquire(self, sid: str, *, disconnect: bool = False) -> None:
        """Done when it is the caller's turn, which ends with ``release``.

        Raises CallFailed, and then there is no turn: QUEUE_FULL when too many wait or the wait was too long,
        CANCELED when the session was ``gone`` meanwhile.
        """
        if self.running < self.limit.capacity and not self.waiting:
            self.running += 1
            return
        if self.waiting >= self._size:
            raise CallFailed(Code.QUEUE_FULL, f"{self._size} calls wait already", delivered=False)
        waiter = _Waiter(sid, self._disconnects if disconnect else self._commands)
        waiter.line[waiter] = None
        if not disconnect:
            self._by_sid.setdefault(sid, []).append(waiter)
        if self._patience:
            waiter.timer = self._reactor.callLater(self._patience, self._expire, waiter)
        self._grant()
        try:
            await waiter.turn
        except BaseException:
            self._remove(waiter)  # it may have been cancelled
            raise

    def release(self) -> None:
        """A turn is over; the next one begins."""
        self.running -= 1
        self._grant()

    def gone(self, sid: str) -> None:
        """The session ended: its calls that wait, Disconnects excepted, raise CANCELED now. Never raises."""
        for waiter in list(self._by_sid.get(sid, ())):
            self._remove(waiter)
            waiter.turn.errback(CallFailed(Code.CANCELED, "the session ended", delivered=False))

    def _expire(self, waiter: _Waiter) -> None:
        waiter.timer = None
        self._remove(waiter)
        text = f"it was not its turn within {self._patience:g} s"
        waiter.turn.errback(CallFailed(Code.QUEUE_FULL, text, delivered=False))

    def _grant(self) -> None:
        """Give the free turns away. A call that ends at once gives its turn to the loop, not to a deeper stack."""
        if self._granting:
            return
        self._granting = True
        try:
            while self.waiting and self.running < self.limit.capacity:
                waiter = self._next()
                self._remove(waiter)
                self.running += 1
                waiter.turn.callback(None)
        finally:
            self._granting = False

    def _next(self) -> _Waiter:
        if self._commands and self._disconnects:
            self._turns += 1
            line = self._disconnects if self._turns % DISCONNECT_TURN == 0 else self._commands
        else:
            line = self._commands or self._disconnects
        return next(iter(line))

    def _remove(self, waiter: _Waiter) -> None:
        if waiter not in waiter.line:
            return
        del waiter.line[waiter]
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None
        others = self._by_sid.get(waiter.sid)
        if others is not None and waiter in others:
            others.remove(waiter)
            if not others:
                del self._by_sid[waiter.sid]
