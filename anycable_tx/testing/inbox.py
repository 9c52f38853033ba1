"""Frames that arrived and were not taken yet, and waiting for the ones a test expects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Frame", "Inbox"]

Frame = dict[str, Any]


class Inbox:
    """Keeps frames in order of arrival; whoever waits looks again when ``changed`` is called."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something a waiter may be waiting for has happened."""
        self._changed.set()

    async def until(self, condition: Callable[[], bool], within: float) -> None:
        """Return once *condition* holds. Raises TimeoutError after *within* seconds."""
        deadline = time.monotonic() + within
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))

    async def take(self, within: float, **fields: Any) -> Frame:
        """Take the first frame with these *fields*. Raises TimeoutError, naming what is there instead."""
        found: list[Frame] = []

        def look() -> bool:
            for index, frame in enumerate(self.frames):
                if all(key in frame and frame[key] == value for key, value in fields.items()):
                    found.append(self.frames.pop(index))
                    return True
            return False

        try:
            await self.until(look, within)
        except TimeoutError:
            raise TimeoutError(f"no frame with {fields} within {within} s; there are {self.frames[-10:]}") from None
        return found[0]

    async def take_messages(self, identifier: str, count: int, within: float) -> list[Any]:
        """Take the next *count* messages of *identifier*. Raises TimeoutError, saying how many there are."""

        def there() -> list[Frame]:
            return [
                f for f in self.frames if f.get("identifier") == identifier and "message" in f and "type" not in f
            ]

        try:
            await self.until(lambda: len(there()) >= count, within)
        except TimeoutError:
            raise TimeoutError(f"{len(there())} messages instead of {count} within {within} s") from None
        taken = there()[:count]
        self.frames = [frame for frame in self.frames if not any(frame is one for one in taken)]
        return [frame["message"] for frame in taken]

    async def silence(self, seconds: float) -> None:
        """Raises AssertionError if anything but pings is there or arrives within *seconds*."""
        await asyncio.sleep(seconds)
        frames = [frame for frame in self.frames if frame.get("type") != "ping"]
        if frames:
            raise AssertionError(f"expected silence, got {frames}")
