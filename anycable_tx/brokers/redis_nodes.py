"""Which nodes of a Redis broker live: each says so every few seconds, and others judge by that."""

from __future__ import annotations

from anycable_tx.brokers import redis_shared_scripts as scripts
from anycable_tx.cable.ids import new_sid
from anycable_tx.redis.api import Redis

__all__ = ["BEAT", "LEASE", "NODES", "RETELL", "Lease"]

#: The key of the nodes; all keys of sessions and presence share its hash tag.
NODES = "ac:{s}:nodes"
#: How often a node says that it lives, in seconds.
BEAT = 3.0
#: A node that was not heard of for so many seconds does not live.
LEASE = 12.0
#: What a node has claimed to tell and did not confirm, another one tells after so many milliseconds.
RETELL = 30_000


class Lease:
    """This node among the others; its name is another one at each start.

    A node judges others only when it has itself been heard of without a break for ``LEASE`` seconds: after an outage
    of Redis, or its own, or a failover, everybody else gets the time to be heard of first.
    """

    key = NODES

    def __init__(self, redis: Redis) -> None:
        self.node = new_sid()
        self._redis = redis
        self._heard = self._steady = float("-inf")

    @property
    def now(self) -> int:
        """The time in milliseconds."""
        return round(self._redis.now() * 1000)

    @property
    def until(self) -> int:
        """Until when this node, which is heard of now, is known to live, in milliseconds."""
        return self.now + round(LEASE * 1000)

    async def beat(self) -> None:
        """Say that this node lives, if it is time to."""
        now = self._redis.now()
        if now - self._heard < BEAT:
            return
        await self._redis.run(scripts.BEAT, [NODES], self.node, self.until)
        if now - self._heard > 2 * BEAT:
            self._steady = now
        self._heard = now

    def gone_before(self, ttl: float) -> str:
        """Nodes known to live until then (ms) are gone since *ttl* seconds; '' when that cannot be judged."""
        now = self._redis.now()
        if now - self._heard > 2 * BEAT or now - self._steady < LEASE:
            return ""
        return str(round((now - ttl) * 1000))

    def unsettle(self) -> None:
        """What Redis knows of the nodes may be old news."""
        self._heard = float("-inf")

    async def quit(self) -> None:
        """This node stops."""
        await self._redis.run(scripts.QUIT, [NODES], self.node)
