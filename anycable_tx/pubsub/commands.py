"""Commands between nodes, and how each node carries out each of them once."""

from __future__ import annotations

from typing import Any

import orjson

from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import RemoteCommand

__all__ = ["KEPT", "KEPT_FOR", "SeenCommands", "encode"]

#: So many are kept and remembered; older ones than so many seconds are not carried out any more.
KEPT = 1000
KEPT_FOR = 60.0


def encode(command: RemoteCommand) -> bytes:
    """The JSON of a command as AnyCable servers send it, and an ``id``."""
    return orjson.dumps({"command": command.command, "payload": command.payload, "id": new_sid()})


class SeenCommands:
    """What this node has seen of the commands that were sent."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def read(self, payload: bytes) -> RemoteCommand | None:
        """The command in *payload*, or None if this node has seen it. Raises ValueError if it is none."""
        document: Any = orjson.loads(payload)
        if not isinstance(document, dict) or "stream" in document:
            raise ValueError("it is no object with a 'command'")
        command, content, id = document.get("command"), document.get("payload"), document.get("id")
        if not isinstance(command, str) or not command:
            raise ValueError("'command' is not a text")
        if isinstance(id, str) and id:  # AnyCable's own have none
            if id in self._seen:
                return None
            self._seen[id] = None
            if len(self._seen) > 2 * KEPT:
                del self._seen[next(iter(self._seen))]
        return RemoteCommand(command, content if isinstance(content, dict) else {})
