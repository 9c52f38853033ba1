"""Messages to oneself: a bus on which they do not come back is silent, whatever its connection says (F31, F47)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from anycable_tx.background import sleep
from anycable_tx.errors import BrokerUnavailable

__all__ = ["MAX_MISSED", "PROBE_EACH", "Probe"]

#: One is sent so often; when that many have not come back, the bus is silent.
PROBE_EACH = 3.0
MAX_MISSED = 2


class Probe:
    """*send* puts a text on the bus, where it is to come back to ``heard``; *silent* is called when none does."""

    def __init__(self, reactor: Any, send: Callable[[bytes], Awaitable[object]], silent: Callable[[], None]) -> None:
        self._reactor = reactor
        self._send = send
        self._silent = silent
        self._sent = self._returned = self._missed = 0
        #: Nothing is sent while the bus is known to be lost.
        self.paused = False

    def start_over(self) -> None:
        """What was sent so far counts no more."""
        self._returned = self._sent
        self._missed = 0

    def heard(self, text: bytes) -> bool:
        """What came back. Was it sent after the latest ``start_over``?"""
        number = int(text) if text.isdigit() else 0
        if not self._returned < number <= self._sent:
            return False
        self._returned = number
        return True

    async def run(self) -> None:
        """Go on until it is cancelled."""
        while True:
            await sleep(self._reactor, PROBE_EACH)
            if self.paused:
                continue
            self._missed = self._missed + 1 if self._returned < self._sent else 0
            if self._missed >= MAX_MISSED:
                self._missed = 0
                self._silent()
                continue
            await self.send()

    async def send(self) -> None:
        """Send one now."""
        self._sent += 1
        try:
            await self._send(b"%d" % self._sent)
        except BrokerUnavailable:
            self._returned = self._sent  # that it could not be sent says nothing about what could come
