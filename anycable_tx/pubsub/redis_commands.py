"""Commands between nodes over Redis: each node carries out each one once, also one sent while it was cut off."""

from __future__ import annotations

from typing import Any

import orjson

from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.redis.api import Arg, Redis, RedisError

__all__ = ["Commands"]

#: A Redis stream of the latest commands, in which a node that was cut off finds what it missed.
LOG = "ac:cmd"
#: So many are kept and remembered; older ones than so many seconds are not carried out any more.
KEPT = 1000
KEPT_FOR = 60.0
#: A node that lost the bus looks back so many seconds further: the loss was noticed late.
LOOK_BACK = 15.0


class Commands:
    """What is sent on the internal *channel*, and what of that this node has seen."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._seen: dict[str, None] = {}

    async def send(self, command: RemoteCommand) -> None:
        """Publish it and keep it for a while. Raises RedisUnavailable or RedisError."""
        document = {"command": command.command, "payload": command.payload, "id": new_sid()}
        text = orjson.dumps(document)
        keep: tuple[Arg, ...] = ("XADD", LOG, "MAXLEN", "~", KEPT, "*", "c", text)
        answers = await self._redis.pipeline(LOG, [keep, ("PUBLISH", self._channel, text)])
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer

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

    async def missed(self, since: float) -> list[bytes]:
        """What was sent since that Unix time, or a little before. Raises RedisUnavailable or RedisError."""
        begin = max(since - LOOK_BACK, self._redis.now() - KEPT_FOR)
        entries = await self._redis.execute(LOG, "XRANGE", LOG, max(int(1000 * begin), 0), "+")
        return [fields[1] for _, fields in entries if fields]
