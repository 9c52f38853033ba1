"""Which node reads the Redis stream: a lease that one of them holds at a time."""

from __future__ import annotations

from typing import Any

from anycable_tx.redis.api import Redis, Script

__all__ = ["Lease", "lease_key"]

_ACQUIRE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
_RENEW = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")
_RELEASE = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


def lease_key(stream: str) -> str:
    """The key of the lease for *stream*; in a cluster it is in the stream's slot, so one script can use both."""
    begin = stream.find("{")
    tagged = begin >= 0 and stream.find("}", begin) > begin + 1
    return f"ac:rx:{stream}:leader" if tagged else f"ac:rx:{{{stream}}}:leader"


class Lease:
    """Held by *holder* for LENGTH seconds after each ``acquire`` and ``renew``, unless it is released.

    Two never hold it at once by their own clocks, as long as these run at about the same speed. A holder that was
    stopped finds out by its clock too, so what it must not do late it does only while ``held``; what must not happen
    at all without the lease is done in a script that looks at ``key``.
    """

    LENGTH = 5.0
    #: It is to be renewed so often.
    RENEW_EACH = 1.5
    #: The holder stops to rely on it so many seconds before others may have it.
    MARGIN = 0.5

    def __init__(self, redis: Redis, reactor: Any, key: str, holder: str) -> None:
        self.key = key
        self.holder = holder
        self._redis = redis
        self._reactor = reactor
        self._until = 0.0
        self._asked = 0.0

    @property
    def held(self) -> bool:
        """May this node act as the holder now?"""
        return bool(self._reactor.seconds() < self._until)

    @property
    def due(self) -> bool:
        """Is it time to renew it?"""
        return bool(self._reactor.seconds() - self._asked >= self.RENEW_EACH)

    async def acquire(self) -> bool:
        """Take it if nobody else has it. Raises RedisUnavailable or RedisError."""
        return await self._ask(_ACQUIRE)

    async def renew(self) -> bool:
        """Keep it. False: it is lost. Raises RedisUnavailable or RedisError; it is then held as long as it lasts."""
        return await self._ask(_RENEW)

    async def release(self) -> None:
        """Let another have it. Raises RedisUnavailable or RedisError."""
        self._until = 0.0
        await self._redis.run(_RELEASE, [self.key], self.holder)

    async def _ask(self, script: Script) -> bool:
        asked = self._reactor.seconds()
        self._asked = asked
        granted = bool(await self._redis.run(script, [self.key], self.holder, int(1000 * self.LENGTH)))
        self._until = asked + self.LENGTH - self.MARGIN if granted else 0.0
        return granted
