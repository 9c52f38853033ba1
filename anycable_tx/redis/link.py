"""A connection of one's own, for commands that block."""

from __future__ import annotations

from typing import Any

from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.connection import REPLY_LIMIT, Connection

__all__ = ["OwnLink"]


class OwnLink:
    """``Link`` on a Connection, which is lost when an answer is five seconds later than its BLOCK or WAIT time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def command(self, *args: Arg) -> Any:
        """The answer. Raises RedisUnavailable or RedisError. Cancelling closes the link if an answer is due."""
        if not self._connection.alive:
            raise RedisUnavailable("the connection is closed")
        deferred = self._connection.send(args, limit=_limit(args))
        try:
            (answer,) = await deferred
        except RedisUnavailable:
            raise
        except BaseException:
            self._connection.abort("a command was cancelled")
            raise
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def _limit(args: tuple[Arg, ...]) -> float | None:
    """How long the answer may take, in seconds; None: for ever."""
    words = [arg.upper() if isinstance(arg, str) else arg for arg in args]
    blocked: Arg
    if "BLOCK" in words[:-1]:
        blocked = args[words.index("BLOCK") + 1]
    elif words[0] == "WAIT":
        blocked = args[-1]
    else:
        return REPLY_LIMIT
    milliseconds = float(blocked)
    return milliseconds / 1000 + REPLY_LIMIT if milliseconds else None
