"""The log of one stream: contiguous offsets, and answers that are whole or refused (P4)."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from anycable_tx.cable.messages import HistoryRequest, StreamMessage
from anycable_tx.errors import HistoryRefused

__all__ = ["StreamLog"]


class StreamLog:
    """The newest messages of a stream, and what is known about those that are gone.

    ``last`` is the newest offset ever issued; the next message gets the one after it, so offsets have no holes
    and what is kept is always the end of the stream. It outlives the messages: with it alone a client that has
    everything is told so. ``lost`` is the time (whole Unix seconds) of the newest message that is gone, -1 if
    none is; ``trimmed`` the newest offset that made room for others, the rest of what is gone grew too old.

    Two times are passed in: *now*, seconds of a clock that never jumps, decides how old a message is; *wall*,
    Unix seconds, is what clients name in ``since``.
    """

    __slots__ = ("_stamps", "entries", "last", "limit", "lost", "touched", "trimmed", "ttl")

    def __init__(self, limit: int, ttl: float, now: float, last: int = 0, lost: int = -1) -> None:
        """A log that keeps up to *limit* messages for *ttl* seconds and goes on after offset *last*."""
        self.limit = limit
        self.ttl = ttl
        self.last = self.trimmed = last
        self.lost = lost
        self.touched = now
        self.entries: list[StreamMessage] = []
        self._stamps: array[float] = array("d")  # when each entry was stored, by the clock that never jumps

    def append(self, message: StreamMessage, now: float, wall: float) -> None:
        """Store *message*: gives it its offset, its link to the message before, and its time.

        Times of a stream never go back, so that what is newer than any ``since`` is always the stream's end,
        even when the wall clock was set back in between.
        """
        message.prev = self.last
        message.offset = self.last = self.last + 1
        message.time = max(wall, self.entries[-1].time if self.entries else self.lost)
        self.restore(message, now)
        self.touched = now

    def restore(self, message: StreamMessage, stamp: float) -> None:
        """Put back a message that has its offset already and was stored at *stamp*."""
        self.entries.append(message)
        self._stamps.append(stamp)
        if len(self.entries) > self.limit:
            self.trimmed = self.entries[0].offset
            self._drop(1)

    def expire(self, now: float) -> None:
        """Forget the messages that are too old to be served."""
        self._drop(self._expired(now))

    def deadline(self, idle_ttl: float) -> float:
        """When there is something to do next: the oldest message expires, or the stream was idle too long."""
        return self._stamps[0] + self.ttl if self._stamps else self.touched + idle_ttl

    def ages(self, now: float) -> list[float]:
        """How old each of ``entries`` is, in seconds."""
        return [now - stamp for stamp in self._stamps]

    def prove(
        self, request: HistoryRequest, epoch: str, now: float, wall: float, slack: float = 0
    ) -> list[StreamMessage]:
        """Every message that a client with *request* has not got, ascending.

        Raises HistoryRefused unless it is certain that none is missing: ``unknown_epoch`` when the position is not
        of *epoch*, ``future_offset`` when it was never issued, ``trimmed`` or ``expired`` when what follows it is
        gone, by number or by age. ``since`` is inclusive; one in the future means now, and *slack* seconds are taken
        off it for clients whose clock is ahead.
        """
        expired = self._expired(now)
        if request.position is None:
            since = min(request.since, int(wall)) - slack
            gone = int(self.entries[expired - 1].time) if expired else self.lost
            if gone >= since:
                raise HistoryRefused("expired" if expired or self._first > self.trimmed + 1 else "trimmed")
            return self.entries[bisect_left(self.entries, since, key=_time) :]
        if request.position.epoch != epoch:
            raise HistoryRefused("unknown_epoch")
        offset = request.position.offset
        if offset > self.last:
            raise HistoryRefused("future_offset")
        if offset + 1 < self._first + expired:
            raise HistoryRefused("trimmed" if offset < self.trimmed else "expired")
        return self.entries[offset + 1 - self._first :]

    @property
    def _first(self) -> int:
        """The oldest offset kept, or the next one when none is."""
        return self.last + 1 - len(self.entries)

    def _expired(self, now: float) -> int:
        """How many entries, from the oldest, are too old to be served."""
        oldest = now - self.ttl
        if not self._stamps or self._stamps[0] >= oldest:
            return 0
        return bisect_left(self._stamps, oldest)

    def _drop(self, count: int) -> None:
        if count:
            self.lost = int(self.entries[count - 1].time)
            del self.entries[:count]
            del self._stamps[:count]


def _time(message: StreamMessage) -> float:
    return message.time
