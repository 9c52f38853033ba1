"""The memory broker's stream logs, the counters of streams that are gone, and the publications' ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from anycable_tx.cable.expiry import DeadlineQueue
from anycable_tx.cable.messages import HistoryRequest, StreamMessage
from anycable_tx.cable.rules import Rules
from anycable_tx.cable.stream_log import StreamLog

__all__ = ["IDLE_FACTOR", "MAX_COUNTERS", "MAX_IDS", "RecentIds", "StreamLogs"]

#: A stream that was idle for this many times its ttl is dropped to its counter.
IDLE_FACTOR = 10
#: How many counters of dropped streams are kept one by one.
MAX_COUNTERS = 100_000
#: How many publications' ids are remembered.
MAX_IDS = 100_000

# A counter and the time of the stream's newest message, in one int: 40 bytes instead of a tuple's 120.
_TIME_BITS = 40


class StreamLogs:
    """All logs of one epoch. No offset of a stream is ever issued twice, whatever was forgotten in between.

    A dropped stream leaves its counter. When there are more than *max_counters* of these the oldest is folded into
    ``floor``, the highest offset of any stream whose counter is gone: a stream nothing is known of goes on after
    it. ``floor_time`` is the like for the time of the newest message. *evicted* is called for each one folded.
    """

    def __init__(self, rules: Rules, max_counters: int = MAX_COUNTERS, evicted: Callable[[], None] = lambda: None):
        self.floor = 0
        self.floor_time = -1
        self._rules = rules
        self._max_counters = max_counters
        self._evicted = evicted
        self._logs: dict[str, StreamLog] = {}
        self._counters: OrderedDict[str, int] = OrderedDict()  # a dict is slow to lose its first
        self._deadlines: DeadlineQueue[str] = DeadlineQueue()

    def keeps(self, stream: str) -> bool:
        """Whether messages of *stream* are stored at all."""
        return self._rules.rule_for(stream).limit > 0

    def append(self, message: StreamMessage, now: float, wall: float) -> None:
        """Store *message* in the log of its stream, which gives it offset, link and time."""
        log = self._logs.get(message.stream)
        if log is None:
            log = self._logs[message.stream] = self._unseen(message.stream, now)
            self._counters.pop(message.stream, None)
            log.append(message, now, wall)
            self._deadlines.add(message.stream, self._deadline(log))
        else:
            log.append(message, now, wall)

    def last(self, stream: str) -> int:
        """The newest offset of *stream*; of one nothing is known of, the one it would go on after."""
        log = self._logs.get(stream)
        return log.last if log is not None else self._unseen(stream, 0).last

    def prove(
        self, stream: str, request: HistoryRequest, epoch: str, now: float, wall: float, slack: float
    ) -> list[StreamMessage]:
        """``StreamLog.prove`` for *stream*. Of a stream that was dropped its counter proves what it can."""
        log = self._logs.get(stream) or self._unseen(stream, now)
        return log.prove(request, epoch, now, wall, slack)

    def sweep(self, now: float) -> None:
        """Forget old messages, and drop streams that were idle for long."""
        for stream in self._deadlines.due(now):
            log = self._logs[stream]
            log.expire(now)
            deadline = self._deadline(log)
            if log.entries or deadline > now:
                self._deadlines.add(stream, deadline)
            else:
                del self._logs[stream]
                self._remember(stream, log.last, max(log.lost, 0))

    def dump(self, now: float) -> Iterator[list[Any]]:
        """Everything as rows of JSON values."""
        yield ["floor", self.floor, self.floor_time]
        for stream, counter in self._counters.items():
            yield ["counter", stream, *_unpacked(counter)]
        for stream, log in self._logs.items():
            log.expire(now)
            entries = [
                [age, m.time, m.payload.decode("latin-1"), m.exclude_socket, m.broadcast_type, m.id]
                for age, m in zip(log.ages(now), log.entries, strict=True)
            ]
            yield ["stream", stream, log.last, log.trimmed, log.lost, now - log.touched, entries]

    def restore(self, row: list[Any], epoch: str, now: float, down: float) -> None:
        """Take back a row that ``dump`` made *down* seconds ago. Raises ValueError, TypeError or IndexError."""
        kind = row[0]
        if kind == "floor":
            _, self.floor, self.floor_time = row
        elif kind == "counter":
            _, stream, last, time = row
            self._remember(stream, last, time)
        elif kind == "stream":
            _, stream, last, trimmed, lost, idle, entries = row
            rule = self._rules.rule_for(stream)
            if not rule.limit:  # the rules have changed: only the counter is of use
                self._remember(stream, last, max(lost, *(int(entry[1]) for entry in entries), 0))
                return
            log = StreamLog(rule.limit, rule.ttl, now - idle - down, last, lost)
            log.trimmed = trimmed
            for offset, (age, time, payload, exclude, type_, id_) in enumerate(entries, last + 1 - len(entries)):
                message = StreamMessage(
                    stream, payload.encode("latin-1"), offset, offset - 1, epoch, time, exclude, type_, id_
                )
                log.restore(message, now - age - down)
            self._logs[stream] = log
            self._deadlines.add(stream, self._deadline(log))
        else:
            raise ValueError(f"a row of the unknown kind {kind!r}")

    def _deadline(self, log: StreamLog) -> float:
        return log.deadline(IDLE_FACTOR * log.ttl)

    def _unseen(self, stream: str, now: float) -> StreamLog:
        """An empty log for a stream that has none: it goes on where the stream was, as far as that is known."""
        rule = self._rules.rule_for(stream)
        counter = self._counters.get(stream)
        if counter is not None:
            log = StreamLog(rule.limit, rule.ttl, now, *_unpacked(counter))
            log.trimmed = 0  # its messages grew too old
            return log
        if not rule.limit:  # never stored, so no offset was ever issued
            return StreamLog(0, rule.ttl, now)
        return StreamLog(rule.limit, rule.ttl, now, self.floor, self.floor_time)

    def _remember(self, stream: str, last: int, time: int) -> None:
        self._counters[stream] = last << _TIME_BITS | time
        if len(self._counters) > self._max_counters:
            last, time = _unpacked(self._counters.popitem(last=False)[1])
            self.floor = max(self.floor, last)
            self.floor_time = max(self.floor_time, time)
            self._evicted()


def _unpacked(counter: int) -> tuple[int, int]:
    return counter >> _TIME_BITS, counter & ((1 << _TIME_BITS) - 1)


class RecentIds:
    """The ids of publications stored in the last *ttl* seconds, each with the offset its message got.

    At most *max_ids*; beyond that the oldest is forgotten before its time and *evicted* is called.
    """

    def __init__(self, ttl: float, max_ids: int = MAX_IDS, evicted: Callable[[], None] = lambda: None):
        self._ttl = ttl
        self._max_ids = max_ids
        self._evicted = evicted
        self._seen: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # by deadline

    def offset(self, stream: str, id: str, now: float) -> int | None:
        """The offset of the message of *stream* that was stored with *id*, or None."""
        seen = self._seen.get((stream, id))
        return seen[0] if seen is not None and now < seen[1] else None

    def add(self, stream: str, id: str, offset: int, now: float) -> None:
        """Remember that the publication *id* got *offset*."""
        if self._ttl <= 0:
            return
        self._seen.pop((stream, id), None)
        self._seen[stream, id] = (offset, now + self._ttl)
        if len(self._seen) > self._max_ids:
            self._seen.popitem(last=False)
            self._evicted()

    def forget(self, stream: str, id: str) -> None:
        """The publication *id* may be tried again."""
        self._seen.pop((stream, id), None)

    def sweep(self, now: float) -> None:
        """Forget the ids whose time is over."""
        while self._seen:
            key = next(iter(self._seen))
            if now < self._seen[key][1]:
                break
            del self._seen[key]

    def dump(self, now: float) -> Iterator[list[Any]]:
        """Everything as rows of JSON values."""
        for (stream, id), (offset, deadline) in self._seen.items():
            if now < deadline:
                yield ["id", stream, id, offset, deadline - now]

    def restore(self, row: list[Any], now: float, down: float) -> None:
        """Take back a row that ``dump`` made *down* seconds ago. Raises ValueError, TypeError or IndexError."""
        _, stream, id, offset, left = row
        if left > down:
            self._seen[stream, id] = (offset, now + min(left - down, self._ttl))
