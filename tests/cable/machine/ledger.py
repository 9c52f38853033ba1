"""The model of all streams: a list each, from which nothing is ever removed."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.task import Clock

__all__ = ["Ledger", "Message"]


@dataclass(slots=True, eq=False)
class Message:
    """One publication. ``offset`` is 0 for a transient one; ``excluded`` is the sid that must not get it."""

    id: int
    stream: str
    offset: int
    time: float
    excluded: str


class Ledger:
    """Everything that was published, and what a broker with this *limit* and *ttl* still has to have of it."""

    def __init__(self, clock: Clock, limit: int, ttl: float) -> None:
        self.messages: list[Message] = []
        self._streams: dict[str, list[Message]] = {}
        self._clock = clock
        self._limit = limit
        self._ttl = ttl

    def add(self, stream: str, excluded: str, transient: bool) -> Message:
        """The next publication; its id is its number."""
        stored = self._streams.setdefault(stream, [])
        offset = 0 if transient else len(stored) + 1
        message = Message(len(self.messages), stream, offset, self._clock.seconds(), excluded)
        self.messages.append(message)
        if not transient:
            stored.append(message)
        return message

    def top(self, stream: str) -> int:
        """The newest offset, 0 before the first."""
        return len(self._streams.get(stream, ()))

    def at(self, stream: str, offset: int) -> Message:
        """The message there."""
        return self._streams[stream][offset - 1]

    def lowest(self, stream: str) -> int:
        """The oldest offset that is kept, or the next one to come."""
        top = self.top(stream)
        lowest = max(1, top - self._limit + 1)
        oldest = self._clock.seconds() - self._ttl
        while lowest <= top and self.at(stream, lowest).time < oldest:
            lowest += 1
        return lowest

    def before(self, stream: str, since: int) -> int:
        """The offset after which everything is from the second *since* or later."""
        offset = self.top(stream)
        while offset and int(self.at(stream, offset).time) >= since:
            offset -= 1
        return offset
