"""Interest in subjects: remembered for the next connection, confirmed many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred

from anycable_tx.nats.api import Message, NatsUnavailable
from anycable_tx.nats.connection import Connection

__all__ = ["Interest", "Subscriptions"]


class Subscriptions:
    """All there are. *reactor* lets those of one turn be confirmed together."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._numbers = count(1)
        self._all: dict[int, Interest] = {}
        self._connection: Connection | None = None
        #: Who waits for a confirmation; and those of them whom no ping has been sent for.
        self._waiting: dict[Deferred[None], None] = {}
        self._unasked: list[Deferred[None]] = []

    def add(
        self, subject: str, receive: Callable[[Message], None], lost: Callable[[], None] | None = None
    ) -> Interest:
        """Tell the server, if there is one, and every one that there will be."""
        interest = Interest(self, next(self._numbers), subject, receive, lost)
        self._all[interest.sid] = interest
        if self._connection is not None:
            self._connection.tell(interest.line)
        return interest

    def remove(self, sid: int) -> None:
        """Nothing more of that one."""
        if self._all.pop(sid, None) is not None and self._connection is not None:
            self._connection.tell(b"UNSUB %d\r\n" % sid)

    def get(self, sid: int) -> Interest | None:
        """The one the server calls *sid*."""
        return self._all.get(sid)

    def joined(self) -> Deferred[None]:
        """Done when the server knows of all that were added up to now."""
        done: Deferred[None] = Deferred(lambda it: self._waiting.pop(it, None))
        self._waiting[done] = None
        if self._connection is not None:
            if not self._unasked:
                self._reactor.callLater(0, self._ask)
            self._unasked.append(done)
        return done

    def came(self, connection: Connection, ready: Callable[[], None]) -> None:
        """Tell the server of all there are; *ready* is called when it knows."""
        self._connection = connection
        connection.tell(*[each.line for each in self._all.values()])
        waiting = list(self._waiting)

        def answered() -> None:
            ready()
            self._confirmed(waiting)

        connection.ping(answered)

    def went(self) -> None:
        """There is no connection any more."""
        self._connection = None
        self._unasked = []

    def end(self, why: str) -> None:
        """There will be none any more, and nobody has to wait for it."""
        self.went()
        self._all.clear()
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            each.errback(NatsUnavailable(why))

    def __iter__(self) -> Iterator[Interest]:
        return iter(list(self._all.values()))

    def _ask(self) -> None:
        asked, self._unasked = self._unasked, []
        if asked and self._connection is not None:
            self._connection.ping(lambda: self._confirmed(asked))

    def _confirmed(self, waiting: list[Deferred[None]]) -> None:
        for each in waiting:
            if each in self._waiting:
                del self._waiting[each]
                each.callback(None)


class Interest:
    """``Subscription``: *receive* is called with each message, *lost* when some were dropped."""

    __slots__ = ("_all", "lost", "receive", "sid", "subject")

    def __init__(
        self, all: Subscriptions, sid: int, subject: str, receive: Callable[[Message], None],
        lost: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        self._all, self.sid, self.subject, self.receive, self.lost = all, sid, subject, receive, lost

    @property
    def line(self) -> bytes:
        """What the server is told."""
        return f"SUB {self.subject} {self.sid}\r\n".encode()

    def end(self) -> None:
        """Nothing more is received. Never waits and never raises."""
        self._all.remove(self.sid)
