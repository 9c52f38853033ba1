"""Work on many keys: for each key one piece after another, not too many at a time, and when it is due."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, FirstError, gatherResults

from anycable_tx.cable.expiry import DeadlineQueue
from anycable_tx.errors import BrokerUnavailable

__all__ = ["Agenda", "Turns", "each", "for_a_while"]

T = TypeVar("T")

#: So many pieces of work are done at a time.
_MOST = 32
#: So many seconds further work is begun before others have their turn.
_AT_ONCE = 1.0


class Turns:
    """Locks that exist as long as somebody has them or waits for them."""

    def __init__(self) -> None:
        self._locks: dict[str, DeferredLock] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Nobody else is in a block with this *key*; first come, first served."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = DeferredLock()
        await lock.acquire()
        try:
            yield
        finally:
            if not lock.waiting:
                del self._locks[key]
            lock.release()


class Agenda:
    """When keys are due, up to a second late; a key has one time. *reactor* tells the time."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._times: dict[str, float] = {}
        self._queue: DeadlineQueue[str] = DeadlineQueue()

    def __contains__(self, key: str) -> bool:
        return key in self._times

    def __len__(self) -> int:
        return len(self._times)

    def put(self, key: str, seconds: float) -> None:
        """*key* is due in so many *seconds*, and not before."""
        time = self._times[key] = self._reactor.seconds() + seconds
        self._queue.add(key, time)

    def drop(self, key: str) -> None:
        """*key* is not due any more."""
        self._times.pop(key, None)

    def due(self) -> Iterator[str]:
        """The keys that are due; each is due again a second later until it is dropped or put off."""
        now = self._reactor.seconds()
        for key in self._queue.due(now):
            time = self._times.get(key)
            if time is None:
                continue
            if time <= now:
                self.put(key, 1.0)
                yield key
            else:
                self._queue.add(key, time)


def for_a_while(reactor: Any, items: Iterable[T]) -> Iterator[T]:
    """As many of *items* as are taken within a second; the others are not touched."""
    until = reactor.seconds() + _AT_ONCE
    for item in items:
        yield item
        if reactor.seconds() > until:
            return


async def each(items: Iterable[T], work: Callable[[T], Awaitable[object]], most: int = _MOST) -> None:
    """Do *work* with each of *items*, *most* at a time.

    When the broker is unavailable for some, no more are begun; that is raised once those under way have ended.
    """
    iterator = iter(items)
    errors: list[BrokerUnavailable] = []
    done = False

    async def lane() -> None:
        nonlocal done
        while not (done or errors):
            try:
                item = next(iterator)
            except StopIteration:
                done = True
                return
            try:
                await work(item)
            except BrokerUnavailable as e:
                errors.append(e)

    lanes: list[Deferred[None]] = []
    while not (done or errors) and len(lanes) < most:
        lanes.append(Deferred.fromCoroutine(lane()))
    try:
        await gatherResults(lanes, consumeErrors=True)
    except FirstError as e:
        e.subFailure.raiseException()
    if errors:
        raise errors[0]
