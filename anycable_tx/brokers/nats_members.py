"""The members of the NATS broker's presence: one key each, which every node changes that has a session of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from anycable_tx.brokers.nats_nodes import Nodes
from anycable_tx.brokers.nats_values import decode, encode
from anycable_tx.cable.messages import Member
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.bucket import Bucket, Conflict, Entry
from anycable_tx.nats.turns import each, for_a_while
from anycable_tx.tokens import token

__all__ = ["Members", "canonical"]


class _Present(NamedTuple):
    """A member's key: the lives of its sessions by their sids. Without one, *teller* tells that it left."""

    stream: str = ""
    id: str = ""
    info: Any = None
    sids: dict[str, str] = {}
    teller: str = ""


class Members:
    """Who is present on which stream. A member's key is ``<stream>.<id>``, with their tokens.

    Every change expects the revision it was made from: whoever writes the first session in tells that the member
    came, whoever writes the last one out that it left. The key is removed in the sweep after that, and if that node
    is gone before, another one tells: *tell* is called with stream and id.
    """

    def __init__(self, bucket: Bucket, nodes: Nodes, reactor: Any, tell: Callable[[str, str], None]) -> None:
        self._bucket = bucket
        self._nodes = nodes
        self._reactor = reactor
        self._tell = tell
        self._told: dict[str, int] = {}  # keys of members that left -> revision, to be removed
        self._untold: set[str] = set()  # keys of members that left, whose teller is gone

    async def on(self, stream: str) -> list[Member]:
        """Who is present on *stream*, in no order."""
        entries = await self._bucket.entries(f"{token(stream)}.*")
        found = [decode(_Present, entry.value) for entry in entries.values()]
        return [Member(present.id, present.info) for present in found if present.sids]

    async def info(self, stream: str, id: str) -> bytes:
        """What is said of a member, as ``canonical``."""
        entry = await self._bucket.get(_key(stream, id))
        return canonical(None if entry is None else decode(_Present, entry.value).info)

    async def add(
        self, stream: str, id: str, sid: str, life: str, info: bytes, *, new: bool = False, untold: bool = False
    ) -> bool:
        """Write a session in; True when the list of members is another one, and that is this node's to tell.

        *new*: probably there is no such member. *untold*: it may have been written in before, and nobody was told.
        """
        key = _key(stream, id)
        entry = None if new else await self._bucket.get(key)
        while True:
            present = _Present() if entry is None else decode(_Present, entry.value)
            if not present.sids:
                changed = True
                present = _Present(stream, id, orjson.Fragment(info), {sid: life})
            else:
                changed = canonical(present.info) != info
                if not changed and present.sids.get(sid) == life:
                    return untold and len(present.sids) == 1
                present = present._replace(info=orjson.Fragment(info), sids={**present.sids, sid: life})
            try:
                await self._bucket.put(key, encode(present), expected=entry.revision if entry else 0)
            except Conflict as e:
                entry = e.entry
                continue
            self._told.pop(key, None)
            return changed

    async def remove(self, stream: str, id: str, sid: str, life: str) -> bool:
        """Write a session out; True when it was the last one, and this node tells that."""
        key = _key(stream, id)
        entry = await self._bucket.get(key)
        while entry is not None:
            present = decode(_Present, entry.value)
            begun = present.teller == self._nodes.node and key not in self._told  # the answer to that was lost
            if present.sids.get(sid) != life and not begun:
                return False
            sids = _without(present, sid)
            present = present._replace(sids=sids, teller="" if sids else self._nodes.node)
            try:
                revision = await self._bucket.put(key, encode(present), expected=entry.revision)
            except Conflict as e:
                entry = e.entry
                continue
            if sids:
                return False
            self._check_holds()
            self._told[key] = revision
            return True
        return False

    async def swap(self, stream: str, id: str, sid: str, life: str, heir: str, heirs_life: str) -> bytes | None:
        """Write *heir* in for *sid*; answers the info, or None when *sid* is not there any more."""
        key = _key(stream, id)
        entry = await self._bucket.get(key)
        while entry is not None:
            present = decode(_Present, entry.value)
            if present.sids.get(sid) != life:
                return canonical(present.info) if present.sids.get(heir) == heirs_life else None
            sids = {**_without(present, sid), heir: heirs_life}
            try:
                await self._bucket.put(key, encode(present._replace(sids=sids)), expected=entry.revision)
            except Conflict as e:
                entry = e.entry
                continue
            return canonical(present.info)
        return None

    # -- those that left

    def look(self, key: str, entry: Entry) -> None:
        """What a round finds."""
        present = decode(_Present, entry.value)
        if not present.sids and present.teller and self._nodes.is_gone(present.teller):
            self._untold.add(key)

    async def confirm(self) -> None:
        """Remove the keys of those that were told to have left."""
        await each(for_a_while(self._reactor, list(self._told)), self._confirm)

    async def tell_again(self) -> None:
        """Tell of those whose teller is gone."""
        await each(for_a_while(self._reactor, list(self._untold)), self._tell_again)

    def __len__(self) -> int:
        return len(self._told) + len(self._untold)

    async def _confirm(self, key: str) -> None:
        revision = self._told.get(key)
        if revision is not None:
            await self._bucket.remove(revision)
            if self._told.get(key) == revision:
                del self._told[key]

    async def _tell_again(self, key: str) -> None:
        entry = await self._bucket.get(key)
        present = None if entry is None else decode(_Present, entry.value)
        if entry is not None and present is not None and not present.sids and self._nodes.is_gone(present.teller):
            present = present._replace(teller=self._nodes.node)
            try:
                revision = await self._bucket.put(key, encode(present), expected=entry.revision)
            except Conflict:
                revision = 0
            if revision:
                self._check_holds()
                self._told[key] = revision
                self._tell(present.stream, present.id)
        self._untold.discard(key)

    def _check_holds(self) -> None:
        """Others may take this node to be gone, and tell: what it wrote it is to write anew, after the next beat."""
        if not self._nodes.holds():
            raise BrokerUnavailable("this node was not heard of for too long")


def canonical(info: Any) -> bytes:
    """*info* as JSON, the same for whatever is equal."""
    return orjson.dumps(info, option=orjson.OPT_SORT_KEYS)


def _key(stream: str, id: str) -> str:
    return f"{token(stream)}.{token(id)}"


def _without(present: _Present, sid: str) -> dict[str, str]:
    return {one: life for one, life in present.sids.items() if one != sid}
