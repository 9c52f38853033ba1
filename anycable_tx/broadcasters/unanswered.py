"""The ids of publications whose publisher never learned the outcome."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

__all__ = ["Unanswered"]


class Unanswered:
    """Remembers which id a body had, so that the same publisher sending it again publishes it once (P6).

    Kept are the newest MAX_KEPT, for KEPT_FOR seconds of *now*. A publisher is its address; without an id of
    its own this is all there is to recognise it by.
    """

    KEPT_FOR = 60
    MAX_KEPT = 1000

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ids: dict[tuple[str, bytes], tuple[float, str]] = {}

    def remember(self, publisher: str, body: bytes, id: str) -> None:
        """*publisher* left, or was refused, with the outcome of *body* under *id* unknown."""
        key = publisher, sha256(body).digest()
        self._ids.pop(key, None)
        self._ids[key] = self._now() + self.KEPT_FOR, id
        while len(self._ids) > self.MAX_KEPT:
            del self._ids[next(iter(self._ids))]

    def recall(self, publisher: str, body: bytes) -> str:
        """The id under which this *body* may be stored already, or ''."""
        if not self._ids:
            return ""
        expires, id = self._ids.get((publisher, sha256(body).digest()), (0.0, ""))
        return id if expires > self._now() else ""

    def forget(self, publisher: str, body: bytes) -> None:
        """The publisher has been told; an equal body is a new publication from now on."""
        if self._ids:
            self._ids.pop((publisher, sha256(body).digest()), None)
