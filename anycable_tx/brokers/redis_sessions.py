"""The Redis broker's session store, shared by all nodes (P5)."""

from __future__ import annotations

from collections.abc import Callable

from anycable_tx.brokers import redis_shared_scripts as scripts
from anycable_tx.brokers.redis_nodes import RETELL, Lease
from anycable_tx.cable.messages import Claim
from anycable_tx.redis.api import Arg, Redis, Script
from anycable_tx.tokens import token

__all__ = ["Sessions"]


class Sessions:
    """Records of sessions: kept while the node they are connected to lives, and for *ttl* seconds after that.

    The end of each is told once: who is to tell it has claimed it, and confirms that it did. If that node dies in
    between, another one tells it ``RETELL`` seconds later. *tell* is called with sid and record.
    """

    def __init__(self, redis: Redis, lease: Lease, ttl: float, tell: Callable[[str, bytes], None]) -> None:
        self._redis = redis
        self._lease = lease
        self._ttl = ttl
        self._tell = tell
        self._told: set[str] = set()  # not confirmed yet

    async def save(self, sid: str, identifiers: str, record: bytes, previous: str) -> None:
        """Keep *record* for a session connected to this node, in which *previous* goes on."""
        if self._ttl > 0:
            lease = self._lease
            await self._run(scripts.SAVE, lease.node, lease.until, sid, token(identifiers), record, previous)

    async def release(self, sid: str, record: bytes) -> bool:
        """Keep *record* for the ttl from now; False if the session is not kept."""
        if self._ttl <= 0:
            return False
        return bool(await self._run(scripts.RELEASE, sid, record, self._lease.now + round(self._ttl * 1000)))

    async def claim(self, sid: str, heir: str) -> Claim | None:
        """The record of *sid* and who claimed it before *heir*; None when it is over, swept or not."""
        if self._ttl <= 0:
            return None
        claimed = await self._run(scripts.CLAIM, self._lease.now, sid, heir)
        return Claim(claimed[0], claimed[1].decode()) if claimed else None

    async def forget(self, sid: str) -> None:
        """Keep nothing of *sid*."""
        if self._ttl > 0:
            await self._run(scripts.FORGET, sid)

    async def forget_all(self, identifiers: str) -> int:
        """Keep nothing of the sessions with *identifiers*; answers how many could still be claimed."""
        if self._ttl <= 0:
            return 0
        now, lease = self._lease.now, self._lease
        claimable, *ended = await self._run(
            scripts.FORGET_ALL, now, lease.node, now + RETELL, token(identifiers), lease.gone_before(0)
        )
        self._tell_all(ended)
        return int(claimable)

    async def sweep(self) -> None:
        """Tell the ends that are due, and confirm those that were told."""
        while self._ttl > 0:
            told = list(self._told)[:1000]
            now, lease = self._lease.now, self._lease
            ended = await self._run(
                scripts.SWEEP_SESSIONS, now, lease.node, now + RETELL, lease.gone_before(self._ttl), *told
            )
            self._told.difference_update(told)
            self._tell_all(ended)
            if not self._told:
                return

    def _tell_all(self, ended: list[bytes]) -> None:
        for raw, record in zip(ended[::2], ended[1::2], strict=True):
            sid = raw.decode()
            if sid not in self._told:
                self._told.add(sid)
                self._tell(sid, record)

    async def _run(self, script: Script, *args: Arg) -> list[bytes]:
        answer: list[bytes] = await self._redis.run(script, [self._lease.key], *args)
        return answer
