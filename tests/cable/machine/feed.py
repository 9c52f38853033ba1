"""What a client is owed of one stream under one identifier, and what reached it (P3)."""

from __future__ import annotations

from collections.abc import Callable

from tests.cable.machine.ledger import Ledger, Message

__all__ = ["Feed"]


class Feed:
    """A subscription to a stream from the subscriber's side, over all connections of its session.

    It is owed every message after ``start``, save those for which *excused* says otherwise. Everything up to ``upto``
    has reached the client or need not any more. ``holes`` were passed over while the client had no chance to hear of
    them yet: it must be told in the end.
    """

    def __init__(self, ledger: Ledger, identifier: str, stream: str, start: int) -> None:
        self.identifier = identifier
        self.stream = stream
        self.start = self.upto = start
        self.got: set[int] = set()
        self.holes: set[int] = set()
        #: It started at a time that the client named, and has to name again.
        self.timed = False
        self._ledger = ledger

    def missing(self, before: int, excused: Callable[[Message], bool]) -> list[int]:
        """What is owed of the messages before that offset and has not come."""
        offsets = range(self.upto + 1, before)
        return [o for o in offsets if o not in self.got and not excused(self._ledger.at(self.stream, o))]

    def take(self, offset: int) -> None:
        """A message came; what is missing before it has been judged."""
        self.got.add(offset)
        self.upto = max(self.upto, offset)

    def told(self, upto: int) -> None:
        """The client was told that it may have missed messages, up to that offset."""
        self.upto = max(self.upto, upto)
        self.holes.clear()
