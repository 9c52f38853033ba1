"""Work on many keys: for each key one piece after another, and not too many at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredLock, FirstError, gatherResults

from anycable_tx.errors import BrokerUnavailable

__all__ = ["Turns", "each"]

T = TypeVar("T")

#: So many pieces of work are done at a time.
_MOST = 32


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
