"""The consumer group of a Redis stream, as one consumer uses it: one method for each thing that is asked of Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, NamedTuple

from anycable_tx.redis.api import Redis, RedisError, Script

__all__ = ["TAKE", "Entry", "Group", "Taken"]

#: Reads entries nobody has read, and answers [last id that was read, entries], the id only where there are none; or
#: 0 if KEYS[2], the lease, is another's. What is blocked in Redis for a node that stopped would still be handed to
#: it after another took over, so nothing that blocks takes entries.
TAKE = Script("""
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
local read = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
if read and read.err then return read end
if read then return {'', read[1][2]} end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local known = {}
  for i = 1, #group, 2 do known[group[i]] = group[i + 1] end
  if known['name'] == ARGV[1] then return {known['last-delivered-id'], {}} end
end
return {'0-0', {}}
""")

#: An entry's id, and its fields: name, value, name, value; None if it was deleted.
Entry = tuple[bytes, list[bytes] | None]


class Taken(NamedTuple):
    """What a read took; without entries, ``last`` is the id after which the next one will come."""

    entries: list[Entry]
    last: str


class Group:
    """The group *name* of *stream*, for *consumer*. Every method raises RedisUnavailable or RedisError."""

    def __init__(self, redis: Redis, stream: str, name: str, consumer: str) -> None:
        self.stream = stream
        self.name = name
        self.consumer = consumer
        self._redis = redis

    async def make(self, start: str) -> None:
        """It exists; if it did not, its first entry is the one after *start*."""
        try:
            await self._ask("XGROUP", "CREATE", self.stream, self.name, start, "MKSTREAM")
        except RedisError as e:
            if e.kind != "BUSYGROUP":
                raise

    async def take(self, count: int, lease: str = "") -> Taken | None:
        """Entries nobody was given yet; None if the key *lease* does not hold the consumer's name."""
        keys = [self.stream, lease] if lease else [self.stream]
        answer = await self._redis.run(TAKE, keys, self.name, self.consumer, count)
        return Taken(answer[1], answer[0].decode()) if answer else None

    async def own(self, after: bytes | str, count: int) -> list[Entry]:
        """Entries pending in the consumer's name, those after the id *after*."""
        read = await self._ask(
            "XREADGROUP", "GROUP", self.name, self.consumer, "COUNT", count, "STREAMS", self.stream, after
        )
        entries: list[Entry] = read[0][1] if read else []
        return entries

    async def claim(self, idle: float, cursor: bytes | str) -> tuple[bytes, int]:
        """Make entries pending for *idle* seconds the consumer's: where to go on (``0-0``: all done), how many."""
        answer = await self._ask(
            "XAUTOCLAIM", self.stream, self.name, self.consumer, int(1000 * idle), cursor, "COUNT", 100, "JUSTID"
        )
        return answer[0], len(answer[1])

    async def hold(self, ids: Iterable[str]) -> None:
        """These are the consumer's, and in its hands now."""
        await self._ask("XCLAIM", self.stream, self.name, self.consumer, 0, *ids, "JUSTID")

    async def remove_stale(self, idle: float) -> None:
        """Remove other consumers that have nothing pending and asked for nothing for *idle* seconds."""
        for record in await self._ask("XINFO", "CONSUMERS", self.stream, self.name):
            known = dict(zip(record[::2], record[1::2], strict=False))
            if known[b"pending"] == 0 and known[b"idle"] > 1000 * idle and known[b"name"] != self.consumer.encode():
                await self._ask("XGROUP", "DELCONSUMER", self.stream, self.name, known[b"name"])

    async def leave(self) -> None:
        """Remove the consumer, unless entries are pending in its name: they would be lost with it."""
        if not await self._ask("XPENDING", self.stream, self.name, "-", "+", 1, self.consumer):
            await self._ask("XGROUP", "DELCONSUMER", self.stream, self.name, self.consumer)

    def _ask(self, *args: Any) -> Awaitable[Any]:
        return self._redis.execute(self.stream, *args)
