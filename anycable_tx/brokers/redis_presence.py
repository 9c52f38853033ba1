"""The Redis broker's presence store, shared by all nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from anycable_tx.brokers import redis_shared_scripts as scripts
from anycable_tx.brokers.redis_nodes import RETELL, Lease
from anycable_tx.cable.messages import Member
from anycable_tx.errors import PresenceRefused
from anycable_tx.redis.api import Arg, Redis, Script

__all__ = ["Presence"]


class Presence:
    """Who is present on which stream; a session whose connection or node ended stays for *ttl* seconds.

    Each id is reported once when it comes and once when its last session is gone; the latter is claimed and confirmed
    like the end of sessions. *tell* is called with stream and id of those whose time is over.
    """

    def __init__(self, redis: Redis, lease: Lease, ttl: float, tell: Callable[[str, str], None]) -> None:
        self._redis = redis
        self._lease = lease
        self._ttl = ttl
        self._tell = tell
        self._told: set[tuple[str, str]] = set()  # not confirmed yet
        #: Who of this node is present where, as which id with which info: what others' data may forget.
        self._own: dict[str, dict[str, tuple[str, bytes]]] = {}

    async def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """*sid* is connected and present on *stream* as *id*. True when *id* is new there or its *info* changed.

        Raises PresenceRefused when *sid* is there under another id, which stays.
        """
        text = orjson.dumps(info, option=orjson.OPT_SORT_KEYS)
        changed = await self._join(stream, sid, id, text)
        if isinstance(changed, list):
            raise PresenceRefused(f"already present on {stream!r} as {changed[0].decode()!r}, not as {id!r}")
        self._told.discard((stream, id))
        self._own.setdefault(sid, {})[stream] = (id, text)
        return bool(changed)

    async def _join(self, stream: str, sid: str, id: str, text: bytes) -> Any:
        return await self._run(scripts.JOIN, self._lease.node, self._lease.until, sid, stream, id, text)

    async def rejoin(self) -> None:
        """Whoever is connected to this node is present again, with no event: the members were lost (F59)."""
        for sid, streams in list(self._own.items()):
            for stream, (id, text) in list(streams.items()):
                if stream in self._own.get(sid, ()):
                    await self._join(stream, sid, id, text)

    async def leave(self, stream: str, sid: str) -> str | None:
        """*sid* is no longer present on *stream*. Answers the id when that was its last session."""
        streams = self._own.get(sid, {})
        streams.pop(stream, None)
        if not streams:
            self.moved_on(sid)
        raw = await self._run(scripts.LEAVE, sid, stream, self._lease.now + RETELL)
        if raw is None:
            return None
        id: str = raw.decode()
        self._told.add((stream, id))
        return id

    async def release(self, sid: str) -> None:
        """The connection of *sid* ended: it stays for the ttl from now."""
        self.moved_on(sid)
        await self._run(scripts.RELEASE_PRESENCE, sid, self._lease.now + round(self._ttl * 1000))

    async def move(self, sid: str, heir: str) -> dict[str, str]:
        """Where *sid* was present now *heir* is, who is connected to this node. Answers {stream: id}."""
        moved = await self._run(scripts.MOVE, self._lease.node, self._lease.until, sid, heir)
        self.moved_on(sid)
        ids = {}
        for stream, id, info in zip(moved[::3], moved[1::3], moved[2::3], strict=True):
            name = stream.decode()
            ids[name] = id.decode()
            self._own.setdefault(heir, {})[name] = (ids[name], info)
        return ids

    def moved_on(self, sid: str) -> None:
        """*sid* is no longer connected to this node."""
        self._own.pop(sid, None)

    async def members(self, stream: str) -> list[Member]:
        """Who is present on *stream*, in no order."""
        key = self._lease.key.removesuffix("nodes") + "p:" + stream
        fields = await self._redis.execute(key, "HGETALL", key)
        return [
            Member(id.decode(), orjson.loads(value.partition(b" ")[2]))
            for id, value in zip(fields[::2], fields[1::2], strict=True)
        ]

    async def sweep(self) -> None:
        """Tell who is gone, and confirm what was told."""
        while True:
            told = list(self._told)[:1000]
            now, lease = self._lease.now, self._lease
            gone = await self._run(
                scripts.SWEEP_PRESENCE,
                now,
                lease.node,
                now + RETELL,
                lease.gone_before(self._ttl),
                *(text for both in told for text in both),
            )
            self._told.difference_update(told)
            for stream, id in zip(gone[::2], gone[1::2], strict=True):
                both = (stream.decode(), id.decode())
                if both not in self._told:
                    self._told.add(both)
                    self._tell(*both)
            if not self._told:
                return

    async def _run(self, script: Script, *args: Arg) -> Any:
        return await self._redis.run(script, [self._lease.key], *args)
