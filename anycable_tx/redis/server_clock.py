"""The time at the Redis servers, estimated between two looks at it."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["ServerClock"]


class ServerClock:
    """Follows the answers to TIME; until the first one, this machine's clock. Never goes back."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._offset = time.time() - reactor.seconds()
        self._latest = 0.0

    def read(self, answer: list[bytes], sent: float, received: float) -> None:
        """TIME was asked at *sent* and answered at *received*, both in the reactor's seconds."""
        seconds, microseconds = answer
        self._offset = int(seconds) + int(microseconds) / 1e6 - (sent + received) / 2

    def now(self) -> float:
        """Unix time in seconds."""
        self._latest = max(self._latest, self._reactor.seconds() + self._offset)
        return self._latest
