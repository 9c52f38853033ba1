"""A queue of deadlines whose cost is in proportion to what expires, not to what exists."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import ceil, floor
from typing import Generic, TypeVar

__all__ = ["DeadlineQueue"]

Key = TypeVar("Key")


class DeadlineQueue(Generic[Key]):
    """Keys in buckets of one second each; about 9 bytes an entry, and nothing to do until its second comes.

    A deadline is not moved or removed here. The owner keeps the true deadline with its own record, looks at it
    when the key is handed out, and adds the key again when it has moved. Times are seconds of any one clock
    that does not go back.
    """

    __slots__ = ("_buckets", "_drained", "_seconds")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Key]] = {}
        self._seconds: list[int] = []  # a heap of the seconds that have a bucket
        self._drained: int | None = None

    def add(self, key: Key, deadline: float) -> None:
        """Hand *key* out once, by the first ``due`` at or up to a second after *deadline*.

        A deadline that is already past comes with the next second, so an owner that adds a key again while it
        walks through ``due`` never meets it twice in one walk.
        """
        second = ceil(deadline)
        if self._drained is not None and second <= self._drained:
            second = self._drained + 1
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [key]
            heappush(self._seconds, second)
        else:
            bucket.append(key)

    def due(self, now: float) -> Iterator[Key]:
        """The keys whose deadline has passed, second by second. A key not taken stays for the next walk."""
        self._drained = floor(now)
        while self._seconds and self._seconds[0] <= now:
            bucket = self._buckets[self._seconds[0]]
            while bucket:
                yield bucket.pop()
            del self._buckets[heappop(self._seconds)]

    def __len__(self) -> int:
        """How many keys wait."""
        return sum(map(len, self._buckets.values()))
