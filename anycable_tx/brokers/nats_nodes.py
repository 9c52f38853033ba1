"""Which nodes of a NATS broker live, and which of them looks after what the others left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from anycable_tx.cable.ids import new_sid
from anycable_tx.nats.bucket import Bucket, Entry

__all__ = ["AUDIT", "BEAT", "LEASE", "RESYNC", "Nodes", "Rounds"]

#: How often a node says that it lives, in seconds.
BEAT = 3.0
#: A node that was not heard of for so many seconds does not live.
LEASE = 12.0
#: How often the server's clock is looked at, in seconds.
RESYNC = 60.0
#: So many seconds after one round through a bucket the next one begins.
AUDIT = 3600.0
#: So many seconds a round is gone on with before others have their turn.
_AT_ONCE = 0.5
#: What was deleted is only then looked at again, in milliseconds.
_OLD = 60_000


class _Other:
    """A node as it was heard of: *heard* in the reactor's seconds."""

    __slots__ = ("heard", "left", "revision", "since")

    def __init__(self, revision: int, since: float, heard: float, *, left: bool) -> None:
        self.revision = revision
        self.since = since
        self.heard = heard
        self.left = left


class Nodes:
    """This node among the others; its name is another one at each start.

    Each node puts its key into *bucket* every few seconds and reads those of the others. No clock of another machine
    is believed: a node is gone when its key has not changed for ``LEASE`` seconds in which this one has looked again
    and again, or when it said that it stops. After an outage of NATS, or its own, all others get the time to be heard
    of first. The oldest of those that live sweeps for those that are gone; should two believe that they are, the
    revisions of what they change decide. A node that is gone is forgotten after *keep* seconds.

    A node that could not say that it lives may be gone for the others: ``returned`` is called with the seconds
    that took, once it is heard of again.
    """

    def __init__(self, bucket: Bucket, reactor: Any, wall: Callable[[], float], *, keep: float) -> None:
        self.node = new_sid()
        self.bucket = bucket
        self.returned: list[Callable[[float], None]] = []
        self._reactor = reactor
        self._keep = max(keep, 4 * LEASE)
        self._offset = wall() - reactor.seconds()
        self._latest = 0
        self._since = wall()
        self._synced = self._heard = self._looked = float("-inf")
        self._others: dict[str, _Other] = {}
        self._strangers: dict[str, float] = {}

    def now(self) -> int:
        """The time at the servers in milliseconds. Never goes back."""
        self._latest = max(self._latest, round((self._reactor.seconds() + self._offset) * 1000))
        return self._latest

    def seconds_until(self, deadline: int) -> float:
        """How far away a time in milliseconds is."""
        return (deadline - self.now()) / 1000

    def holds(self) -> bool:
        """False: the others may believe that this node is gone."""
        return bool(self._reactor.seconds() - self._heard < LEASE - BEAT)

    def is_gone(self, node: str) -> bool:
        """Has *node* ended? One that nobody has heard of has."""
        if node == self.node:
            return False
        other = self._others.get(node)
        return other is None or self._gone(other)

    def gone(self) -> frozenset[str]:
        """The nodes that have ended, and are not forgotten yet."""
        return frozenset(name for name, other in self._others.items() if self._gone(other))

    def last_heard(self, node: str) -> float:
        """When, in the reactor's seconds; if never, when this was asked first."""
        other = self._others.get(node)
        return self._strangers.setdefault(node, self._reactor.seconds()) if other is None else other.heard

    def sweeps(self) -> bool:
        """Is it this node that looks after what others left?"""
        if not self.holds():
            return False
        own = (self._since, self.node)
        return all(self._gone(other) or own < (other.since, name) for name, other in self._others.items())

    async def beat(self) -> None:
        """Say that this node lives, and hear who else does, if it is time to."""
        began = self._reactor.seconds()
        if began - self._heard < BEAT:
            return
        revision = await self.bucket.put(self.node, orjson.dumps({"since": self._since}))
        ended = self._reactor.seconds()
        entries = await self.bucket.entries(">")
        own = entries.pop(self.node, None)
        if own is None or own.revision < revision:
            return
        if began - self._synced >= RESYNC:
            self._offset, self._synced = own.time - (began + ended) / 2, began
        self._look(entries, began)
        away, self._heard = began - self._heard, began
        if LEASE <= away < float("inf"):
            for tell in self.returned:
                tell(away)
        if self.sweeps():
            for name in [name for name in self.gone() if began - self._others[name].heard > self._keep]:
                await self.bucket.remove(self._others.pop(name).revision)
        await self.bucket.upkeep()

    def unsettle(self) -> None:
        """NATS was away, or is another one: what was heard of the others is old news."""
        self._looked = self._synced = float("-inf")
        self.bucket.doubt()

    async def quit(self) -> None:
        """This node stops. What it leaves to others they see to at once."""
        await self.bucket.put(self.node, orjson.dumps({"since": self._since, "left": True}))

    def _gone(self, other: _Other) -> bool:
        return other.left or self._looked - other.heard > LEASE

    def _look(self, entries: dict[str, Entry], now: float) -> None:
        steady = now - self._looked <= 2 * BEAT
        self._looked = now
        for name in self._others.keys() - entries.keys():
            del self._others[name]
        for name, entry in entries.items():
            other = self._others.get(name)
            if other is None or other.revision != entry.revision:
                heard = _heard(entry, now)
                if heard is not None:
                    self._strangers.pop(name, None)
                    self._others[name] = heard
            elif not (steady or other.left):
                other.heard = now


def _heard(entry: Entry, now: float) -> _Other | None:
    """A node as its key says; None for a key that is no node's."""
    try:
        value = orjson.loads(entry.value)
        return _Other(entry.revision, float(value["since"]), now, left="left" in value)
    except (KeyError, TypeError, ValueError):
        return None


class Rounds:
    """Goes through all of *bucket* when a node is gone, at once, and else every now and then, little by little.

    The first finds what they left, the second what is left when a node ends between two steps of its work; *look* is
    given key and entry, and whether there is time. Only the node that sweeps does anything.
    """

    def __init__(
        self, bucket: Bucket, nodes: Nodes, reactor: Any, look: Callable[[str, Entry, bool], Awaitable[None]]
    ) -> None:
        self._bucket = bucket
        self._nodes = nodes
        self._reactor = reactor
        self._look = look
        self._at = 0
        self._hurry = False
        self._for: frozenset[str] = frozenset()  # those gone when the round began
        self._done: frozenset[str] = frozenset()  # those for whom there was a whole round
        self._ended = float("-inf")

    async def go(self) -> None:
        """Go on for about half a second, or for one page where nothing presses."""
        nodes, now = self._nodes, self._reactor.seconds()
        if not nodes.sweeps():
            self._at, self._done, self._for = 0, frozenset(), frozenset()
            return
        gone = nodes.gone()
        self._done &= gone
        if gone - self._done - self._for:
            self._at, self._hurry, self._for = 1, True, gone
        elif not self._at and now - self._ended >= AUDIT:
            self._at, self._hurry, self._for = 1, False, gone
        while self._at:
            page, self._at = await self._bucket.page(">", self._at)
            for key, entry in page:
                if not entry.deleted:
                    await self._look(key, entry, not self._hurry)
                elif self._nodes.now() - entry.time * 1000 > _OLD:
                    await self._bucket.remove(entry.revision)
            if not self._at:
                self._done, self._for, self._ended = self._for, frozenset(), now
            if not self._hurry or self._reactor.seconds() - now > _AT_ONCE:
                return
