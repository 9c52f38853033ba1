"""The queue of Disconnect calls: paced, bounded, tried again, and emptied when the server stops."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx.background import Background
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.calls import CANCELLED
from anycable_tx.rpc.transport import CallFailed, RpcReply, RpcStatus

__all__ = ["AGAIN_AFTER", "MAX_AGAIN", "MAX_REPORTED", "Disconnector"]

#: A call that failed is made again so often, each time after so many seconds (RA-39).
MAX_AGAIN = 3
AGAIN_AFTER = 5.0
#: What a late timer or a slow backend cost is made up for, up to so many seconds of calls.
SLACK = 0.05
#: Of so many resumable sessions it is known that their end was reported: of five minutes at 200 a second.
MAX_REPORTED = 60_000


class _Entry:
    """One session's end. ``born`` orders them by age; ``tries`` counts the calls made."""

    __slots__ = ("born", "due", "request", "resumable", "sid", "size", "tries", "waiting", "withdrawn")

    def __init__(self, sid: str, request: dict[str, Any], born: int, *, resumable: bool) -> None:
        self.sid = sid
        self.request = request
        self.born = born
        self.resumable = resumable
        self.size = _size(sid) + _size(request)
        self.due = 0.0
        self.tries = 0
        self.withdrawn = False
        #: Who waits for the call under way.
        self.waiting: list[Deferred[None]] = []


#: A line of entries. Everything in it waits for equally long, so the first is always the next.
_Line = OrderedDict[str, _Entry]


class Disconnector(Background):
    """Tells the backend of the ends of sessions, one call each.

    *call* makes one: it is given request and sid, and raises CallFailed. At most ``disconnect_rate`` are begun in
    a second, evenly (RA-37), and at most *workers* (at least one) run at a time (RA-38). At most
    ``disconnect_backlog_size`` wait, of ``disconnect_backlog_bytes`` together: a further one drops the oldest. What
    is dropped is counted in ``disconnect_dropped_total`` with the reason ``backlog``, ``bytes``, ``failed`` (made
    again MAX_AGAIN times) or ``stopped`` (the server had no more time). *hold* is how many seconds a resumable
    session's end waits for the session to come back.
    """

    log = Logger()

    def __init__(
        self,
        call: Callable[[dict[str, Any], str], Awaitable[RpcReply]],
        settings: Mapping[str, Any],
        reactor: Any,
        metrics: Metrics,
        *,
        workers: Callable[[], int],
        hold: float = 0.0,
    ) -> None:
        super().__init__(reactor, metrics)
        self._call = call
        self._workers = workers
        self._hold = hold
        self._gap = 1 / settings["disconnect_rate"]
        self._max_number: int = settings["disconnect_backlog_size"]
        self._max_bytes: int = settings["disconnect_backlog_bytes"]
        #: Those that may go, those that wait for their session to come back, and those that failed.
        self._ready: _Line = OrderedDict()
        self._held: _Line = OrderedDict()
        self._failed: _Line = OrderedDict()
        self._lines = (self._ready, self._held, self._failed)
        self._bytes = 0
        self._born = 0
        self._called: set[_Entry] = set()
        self._reported: OrderedDict[str, None] = OrderedDict()
        self._next = 0.0
        self._timer: Any = None
        self._pumping = False
        self._overflows = False
        self._draining = False
        self._stopped = False
        self._sent = self._dropped = 0
        self._idle: list[Deferred[None]] = []
        metrics.gauge("disconnect_queue_size", lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """How many ends the backend has not been told of and will be."""
        return sum(map(len, self._lines))

    def enqueue(self, sid: str, request: dict[str, Any], *, resumable: bool = False) -> None:
        """Report the end of *sid* with *request*, the call's body; never waits and never raises.

        While an earlier report of the same session waits, it is replaced.
        """
        if self._stopped:
            self._drop(sid, "stopped")
            return
        self._born += 1
        entry = _Entry(sid, request, self._born, resumable=resumable)
        self._take(sid)
        if resumable and self._hold and not self._draining:
            self._put(self._held, entry, self._hold)
        else:
            self._take_pace()
            self._put(self._ready, entry)
        self._bound()
        self._pump()

    async def withdraw(self, sid: str) -> bool:
        """The session came back: do not report its end if that can be helped.

        True when it was, or may have been, reported; a call under way has ended then. Of those reported long ago
        only MAX_REPORTED are remembered; about any other, and about a session whose end was never queued here,
        the answer is False.
        """
        if self._take(sid) is not None:
            self._rest()
        reported = sid in self._reported
        for running in [entry for entry in self._called if entry.sid == sid]:
            running.withdrawn = True
            ended: Deferred[None] = Deferred()
            running.waiting.append(ended)
            await ended
            reported = True
        return reported

    async def drain(self) -> None:
        """Make all calls that wait, held ones too, at no rate and with nothing made again; done when they ended.

        Cancelled, it gives up those that wait and those under way. Either way nothing is reported afterwards, and
        the log says how many were and how many were not (RA-40).
        """
        self._draining = True
        self._sent = self._dropped = 0
        for line in (self._held, self._failed):
            while line:
                sid, entry = line.popitem(last=False)
                self._ready[sid] = entry
        self._pump()
        try:
            if self.waiting or self._called:
                idle: Deferred[None] = Deferred()
                self._idle.append(idle)
                await idle
        except CANCELLED:
            self._stopped = True
            self.cancel_all()
            raise
        finally:
            self._stopped = True
            self._idle = []
            while self._ready:
                entry = self._ready.popitem(last=False)[1]
                self._bytes -= entry.size
                self._drop(entry.sid, "stopped")
            self.log.info(
                "told the backend of {sent} ended sessions, dropped {dropped}",
                sent=self._sent,
                dropped=self._dropped,
                attrs={"context": "rpc"},
            )

    # -- the lines

    def _put(self, line: _Line, entry: _Entry, delay: float = 0.0) -> None:
        entry.due = self.reactor.seconds() + delay
        line[entry.sid] = entry
        self._bytes += entry.size

    def _take(self, sid: str) -> _Entry | None:
        """Take the session's entry out of the line it waits in."""
        for line in self._lines:
            entry = line.pop(sid, None)
            if entry is not None:
                self._bytes -= entry.size
                return entry
        return None

    def _bound(self) -> None:
        """Drop the oldest until the rest may wait."""
        while (many := self.waiting > self._max_number) or self._bytes > self._max_bytes:
            heads = (next(iter(line.values())) for line in self._lines if line)
            oldest = min(heads, key=lambda entry: entry.born)
            self._take(oldest.sid)
            self._drop(oldest.sid, "backlog" if many else "bytes")
            if not self._overflows:
                self._overflows = True
                self.log.warn(
                    "too many ended sessions wait for the backend to be told: the oldest are dropped",
                    attrs={"context": "rpc", "sid": oldest.sid, "waiting": self.waiting, "bytes": self._bytes},
                )

    def _drop(self, sid: str, reason: str) -> None:
        self._dropped += 1
        self.metrics.count("disconnect_dropped_total", reason=reason)
        self.log.debug("the end of {sid} is not reported: {reason}", sid=sid, reason=reason)

    # -- the calls

    def _pump(self) -> None:
        """Begin what may begin now, and wake up for what comes next."""
        if self._pumping or self._stopped:
            return
        self._pumping = True
        try:
            self._ripen()
            while self._ready and self._is_free() and self._may_begin():
                entry = self._ready.popitem(last=False)[1]
                self._bytes -= entry.size
                self._called.add(entry)
                self.spawn(self._tell(entry))
            if not self._ready:
                self._overflows = False
        finally:
            self._pumping = False
        self._rest()

    def _ripen(self) -> None:
        """Let those go whose time has come."""
        now = self.reactor.seconds()
        for line in (self._held, self._failed):
            while line and next(iter(line.values())).due <= now:
                self._take_pace()
                sid, entry = line.popitem(last=False)
                self._ready[sid] = entry

    def _take_pace(self) -> None:
        """Where nothing was ready the rate applies from here on: a pause is not made up for."""
        if not self._ready:
            self._next = max(self._next, self.reactor.seconds())

    def _is_free(self) -> bool:
        # At the end nobody else needs the backend.
        workers = self._workers() * (2 if self._draining else 1)
        return len(self._called) < max(1, workers)

    def _may_begin(self) -> bool:
        if self._draining:
            return True
        now = self.reactor.seconds()
        if now < self._next:
            return False
        self._next = max(self._next, now - SLACK) + self._gap
        return True

    async def _tell(self, entry: _Entry) -> None:
        entry.tries += 1
        outcome = "failed"
        try:
            reply = await self._call(entry.request, entry.sid)
            if reply.status in (RpcStatus.SUCCESS, RpcStatus.FAILURE):
                outcome = "sent"
        except CallFailed:
            pass  # whoever made the call has logged and counted it
        except CANCELLED:
            outcome = "stopped"
        finally:
            self._called.discard(entry)
            self._settle(entry, outcome)

    def _settle(self, entry: _Entry, outcome: str) -> None:
        """What becomes of an entry whose call ended."""
        if entry.resumable:
            self._reported[entry.sid] = None
            if len(self._reported) > MAX_REPORTED:
                self._reported.popitem(last=False)
        again = entry.tries <= MAX_AGAIN and not self._draining
        if outcome == "sent":
            self._sent += 1
        elif outcome == "failed" and (entry.withdrawn or self._has_later(entry.sid)):
            pass  # the session is back, or a later report of it is on its way
        elif outcome == "failed" and again:
            self._put(self._failed, entry, AGAIN_AFTER)
            self._bound()
        else:
            self._drop(entry.sid, outcome)
        waiting, entry.waiting = entry.waiting, []
        for ended in waiting:
            ended.callback(None)
        self._pump()

    def _has_later(self, sid: str) -> bool:
        return any(sid in line for line in self._lines) or any(entry.sid == sid for entry in self._called)

    def _rest(self) -> None:
        """Wake up when the next entry may go; say so when there is none at all."""
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
        if not self.waiting and not self._called:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
            return
        if self._stopped or self._pumping:
            return
        times = [next(iter(line.values())).due for line in (self._held, self._failed) if line]
        if self._ready and self._is_free():
            times.append(self._next)
        if times:
            delay = max(0.0, min(times) - self.reactor.seconds())
            self._timer = self.reactor.callLater(delay, self._pump)


def _size(value: object) -> int:
    """About how many bytes the strings of a request keep in memory."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0
