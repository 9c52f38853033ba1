"""Tickets: what a page that has the admin key shows when it opens its connection, where a key has no safe place."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from hashlib import sha256

__all__ = ["LIFETIME", "Tickets"]

#: Seconds that a ticket is good for.
LIFETIME = 30


class Tickets:
    """Makes tickets and takes them: each once, for a while, on every server that has the same *key*.

    *now* is the time in Unix seconds, which servers agree upon.
    """

    def __init__(self, key: str, now: Callable[[], float] = time.time) -> None:
        self._key = sha256(b"anycable-tx admin ticket\0" + key.encode()).digest()
        self._now = now
        #: Those that were taken here and are not over -> when they will be.
        self._taken: dict[str, int] = {}

    def make(self) -> str:
        """A new ticket: letters, digits and dots."""
        words = f"{int(self._now()) + LIFETIME}.{secrets.token_hex(16)}"
        return f"{words}.{self._sign(words)}"

    def take(self, ticket: str) -> bool:
        """Is *ticket* one, in time, and the first of its kind here? The comparison takes the same time for all."""
        words, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(words).encode()):
            return False
        now, over = self._now(), int(words.partition(".")[0])
        self._taken = {taken: end for taken, end in self._taken.items() if end >= now}
        if over < now or words in self._taken:
            return False
        self._taken[words] = over
        return True

    def _sign(self, words: str) -> str:
        return hmac.new(self._key, words.encode(), sha256).hexdigest()
