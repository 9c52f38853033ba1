"""Commands between nodes over Redis: each node carries out each one once, also one sent while it was cut off."""

from __future__ import annotations

from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.pubsub.commands import KEPT, KEPT_FOR, SeenCommands, encode
from anycable_tx.redis.api import Arg, Redis, RedisError

__all__ = ["Commands"]

#: A Redis stream of the latest commands, in which a node that was cut off finds what it missed.
LOG = "ac:cmd"
#: A node that lost the bus looks back so many seconds further: the loss was noticed late.
LOOK_BACK = 15.0


class Commands(SeenCommands):
    """What is sent on the internal *channel*, and what of that this node has seen."""

    def __init__(self, redis: Redis, channel: str) -> None:
        super().__init__()
        self._redis = redis
        self._channel = channel

    async def send(self, command: RemoteCommand) -> None:
        """Publish it and keep it for a while. Raises RedisUnavailable or RedisError."""
        text = encode(command)
        keep: tuple[Arg, ...] = ("XADD", LOG, "MAXLEN", "~", KEPT, "*", "c", text)
        answers = await self._redis.pipeline(LOG, [keep, ("PUBLISH", self._channel, text)])
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer

    async def missed(self, since: float) -> list[bytes]:
        """What was sent since that Unix time, or a little before. Raises RedisUnavailable or RedisError."""
        begin = max(since - LOOK_BACK, self._redis.now() - KEPT_FOR)
        entries = await self._redis.execute(LOG, "XRANGE", LOG, max(int(1000 * begin), 0), "+")
        return [fields[1] for _, fields in entries if fields]
