"""What the official client remembers of its streams in order to ask for what it missed."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Memory"]


class Memory:
    """The last position of each stream, over all identifiers, and a clock that each ping moves on.

    A position is overwritten by whatever message comes, also by an older one, and never forgotten.
    """

    def __init__(self, since: int | bool | None):
        """*since*: seconds since 1970, None for now, False for no clock."""
        self.positions: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, set[str]] = {}
        self.since: int | None = int(time.time()) if since is None else int(since) or None

    def tick(self) -> None:
        """A ping came."""
        if self.since is not None:
            self.since = int(time.time())

    def confirmed(self, identifier: str) -> None:
        """The subscription was confirmed once."""
        self.streams.setdefault(identifier, set())

    def track(self, identifier: str, stream: str, epoch: str, offset: Any) -> None:
        """A message came at this position."""
        self.streams.setdefault(identifier, set()).add(stream)
        self.positions[stream] = {"epoch": epoch, "offset": offset}

    def request(self, identifier: str) -> dict[str, Any] | None:
        """The ``history`` object to ask for what *identifier* missed; None if there is nothing to ask by."""
        streams = {s: self.positions[s] for s in self.streams.get(identifier, ()) if s in self.positions}
        if not streams and self.since is None:
            return None
        request: dict[str, Any] = {"streams": streams}
        if self.since is not None:
            request["since"] = self.since
        return request
