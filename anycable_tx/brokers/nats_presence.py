"""The NATS broker's presence store, shared by all nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple

import orjson

from anycable_tx.brokers.nats_members import Members, canonical
from anycable_tx.brokers.nats_nodes import LEASE, Nodes, Rounds
from anycable_tx.brokers.nats_sessions import SID
from anycable_tx.brokers.nats_values import decode, encode
from anycable_tx.cable.ids import new_epoch
from anycable_tx.cable.messages import Member
from anycable_tx.errors import BrokerUnavailable, PresenceRefused
from anycable_tx.nats.bucket import Bucket, Conflict, Entry
from anycable_tx.nats.turns import Agenda, Turns, each, for_a_while

__all__ = ["Presence"]


class _Place(NamedTuple):
    """A session's key: where it is present, {stream: id}; as the same *life* in the keys of all these members.

    *deadline* in milliseconds at the servers, 0 while it is connected to *node*. *teller*: the node that ends it.
    """

    node: str = ""
    life: str = ""
    streams: dict[str, str] = {}
    deadline: int = 0
    teller: str = ""


class _Own:
    """A session that is present by way of this node: {stream: (id, info)}; *deadline* as in its key."""

    __slots__ = ("deadline", "life", "revision", "streams")

    def __init__(self, life: str = "", revision: int = 0) -> None:
        self.life = life or new_epoch()
        self.revision = revision
        self.streams: dict[str, tuple[str, bytes]] = {}
        self.deadline = 0


class Presence:
    """Who is present on which stream; a session whose connection or node ended stays for *ttl* seconds.

    Who is a member is seen in ``Members``. A session has a key too, its sid, written before it joins and removed
    after it left: so whoever takes over from it, or from its node, knows where it is.

    *tell* is called with stream and id of those whose time is over; *came* with stream, id and info of those that are
    there again after others told that they left. What cannot be stored now is done as soon as it can be.
    """

    def __init__(
        self,
        bucket: Bucket,
        nodes: Nodes,
        reactor: Any,
        ttl: float,
        tell: Callable[[str, str], None],
        came: Callable[[str, str, Any], None] = lambda *_: None,
    ) -> None:
        self._bucket = bucket
        self._nodes = nodes
        self._reactor = reactor
        self._ttl = ttl
        self._tell = tell
        self._came = came
        self._members = Members(bucket, nodes, reactor, tell)
        self._turns = Turns()
        self._rounds = Rounds(bucket, nodes, reactor, self._look)
        self._own: dict[str, _Own] = {}
        self._agenda = Agenda(reactor)  # sessions whose end is to be seen to
        self._late: set[str] = set()  # sessions whose key is to be written
        self._leaving: set[tuple[str, str]] = set()  # sid and stream
        self._unsure: set[tuple[str, str]] = set()  # sid and stream: it may have joined, and nobody was told
        self._again: dict[str, bool] = {}  # sessions to join again -> whether that is to be told
        nodes.returned.append(self._returned)
        bucket.lost.append(self.rejoin)

    # -- what a broker is asked

    async def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """*sid* is connected and present on *stream* as *id*. True when *id* is new there or its *info* changed.

        Raises PresenceRefused when *sid* is there under another id, which stays.
        """
        if not SID.fullmatch(sid):
            raise PresenceRefused(f"{sid[:100]!r} is no session of this server")
        text = canonical(info)
        async with self._turns.of(sid):
            own = self._own.get(sid) or _Own()
            there = own.streams.get(stream)
            if there is not None and there[0] != id:
                raise PresenceRefused(f"already present on {stream!r} as {there[0]!r}, not as {id!r}")
            self._own[sid] = own
            self._leaving.discard((sid, stream))
            try:
                if own.deadline or there is None:
                    own.deadline = 0
                    await self._write(sid, own, {stream: id})
                    self._agenda.drop(sid)
                own.streams[stream] = (id, text)
                self._late.discard(sid)
                untold = (sid, stream) in self._unsure
                changed = await self._members.add(stream, id, sid, own.life, text, new=there is None, untold=untold)
            except BrokerUnavailable:
                self._unsure.add((sid, stream))
                self._late.add(sid)
                raise
            self._unsure.discard((sid, stream))
            return changed

    async def leave(self, stream: str, sid: str) -> str | None:
        """*sid* is no longer present on *stream*. Answers the id when that was its last session.

        None too when that cannot be stored now: then it is told later.
        """
        async with self._turns.of(sid):
            try:
                return await self._leave(stream, sid)
            except BrokerUnavailable:
                self._leaving.add((sid, stream))
                return None

    async def release(self, sid: str) -> None:
        """The connection of *sid* ended: it stays for the ttl from now."""
        self.moved_on(sid)
        async with self._turns.of(sid):
            try:
                await self._catch_up(sid)
            except BrokerUnavailable:
                self._late.add(sid)  # the next sweep tries again

    def moved_on(self, sid: str) -> None:
        """*sid* is no longer connected to this node; ``release`` without waiting."""
        own = self._own.get(sid)
        if own is not None and not own.deadline:
            own.deadline = self._nodes.now() + round(self._ttl * 1000)
            self._agenda.put(sid, self._ttl)
            self._late.add(sid)

    async def move(self, sid: str, heir: str) -> dict[str, str]:
        """Where *sid* was present now *heir* is, who is connected to this node. Answers {stream: id}.

        Where *heir* is present under another id already, *sid* stays until its own time is over.
        """
        if not (SID.fullmatch(sid) and SID.fullmatch(heir)):
            return {}
        async with AsyncExitStack() as turns:
            for each_sid in sorted({sid, heir}):
                await turns.enter_async_context(self._turns.of(each_sid))
            entry = await self._bucket.get(sid)
            if entry is None or (place := decode(_Place, entry.value)).teller:
                return {}
            if sid == heir:
                return await self._take(sid, place, entry.revision)
            return await self._move(sid, place, entry.revision, heir)

    async def members(self, stream: str) -> list[Member]:
        """Who is present on *stream*, in no order."""
        return await self._members.on(stream)

    async def sweep(self) -> None:
        """Tell who is gone; do what could not be done before. To be called every second."""
        reactor = self._reactor
        await self._bucket.upkeep()
        await each(for_a_while(reactor, list(self._again)), self._rejoin)
        await each(for_a_while(reactor, list(self._late)), self._catch_up_in_turn)
        await each(for_a_while(reactor, list(self._leaving)), self._leave_late)
        await self._members.confirm()
        await self._rounds.go()
        await self._members.tell_again()
        await each(for_a_while(reactor, self._agenda.due()), self._end)

    async def stop(self) -> None:
        """Leave nothing half done if it can be helped; what is due later others see to."""
        with suppress(BrokerUnavailable):
            await each(list(self._late), self._catch_up_in_turn)
            await each(list(self._leaving), self._leave_late)
            await self._members.confirm()

    def rejoin(self) -> None:
        """The members were lost: with the next sweeps all that are connected here join again, and nobody is told."""
        for sid, own in self._own.items():
            if not own.deadline:
                self._again.setdefault(sid, False)

    def doubt(self) -> None:
        """NATS was away, or is another one."""
        self._bucket.doubt()

    # -- keys of sessions

    async def _write(self, sid: str, own: _Own, further: dict[str, str] | None = None, *, make: bool = True) -> bool:
        """Have the key of a session say what is known here, and *further* streams.

        False: it is not there any more, or not this node's, and was not to be made.
        """
        while True:
            streams = {stream: id for stream, (id, _) in own.streams.items()} | (further or {})
            place = _Place(self._nodes.node, own.life, streams, own.deadline)
            try:
                own.revision = await self._bucket.put(sid, encode(place), expected=own.revision)
                return True
            except Conflict as e:
                there = None if e.entry is None else decode(_Place, e.entry.value)
                known, own.revision = own.revision, 0 if e.entry is None else e.entry.revision
            if not make and (there is None or there.teller or there.node != self._nodes.node):
                return False
            if there is None or there.teller:  # it has ended, or is about to: this is another life of it
                if there is not None:
                    await self._finish(sid, there, own.revision)
                own.revision = 0
                if known:
                    own.life = new_epoch()
                    self._again[sid] = True
            else:
                own.life = there.life

    async def _finish(self, sid: str, place: _Place, revision: int) -> None:
        """Write the session out everywhere, and tell who is gone with it."""
        for stream, id in place.streams.items():
            if await self._members.remove(stream, id, sid, place.life) and (sid, stream) not in self._unsure:
                self._tell(stream, id)
        await self._bucket.remove(revision)

    async def _take(self, sid: str, place: _Place, revision: int) -> dict[str, str]:
        """The same session is connected again, here."""
        own = self._own.get(sid) or _Own(place.life)
        own.life, own.revision, own.deadline = place.life, revision, 0
        for stream, id in place.streams.items():
            if stream not in own.streams:
                own.streams[stream] = (id, await self._members.info(stream, id))
        await self._write(sid, own)
        self._own[sid] = own
        self._agenda.drop(sid)
        return dict(place.streams)

    async def _move(self, sid: str, place: _Place, revision: int, heir: str) -> dict[str, str]:
        own = self._own.get(heir) or _Own()
        there = {stream for stream in place.streams if stream in own.streams}
        wanted = {
            stream: id
            for stream, id in place.streams.items()
            if stream not in own.streams or own.streams[stream][0] == id
        }
        if not wanted:
            return {}
        own.deadline = 0
        await self._write(heir, own, wanted)
        for stream, id in wanted.items():
            own.streams.setdefault(stream, (id, b"null"))
        self._own[heir] = own
        self._agenda.drop(heir)
        moved = {}
        for stream, id in wanted.items():
            info = await self._members.swap(stream, id, sid, place.life, heir, own.life)
            if info is not None:
                own.streams[stream] = (id, info)
                moved[stream] = id
            elif stream not in there:
                del own.streams[stream]
                self._late.add(heir)
        if len(wanted) == len(place.streams):  # what did not move here is another heir's
            await self._bucket.remove(revision)
            self._drop(sid)
        return moved

    async def _leave(self, stream: str, sid: str) -> str | None:
        own = self._own.get(sid)
        if own is None or stream not in own.streams:
            return None
        id, _ = own.streams[stream]
        last = await self._members.remove(stream, id, sid, own.life)
        del own.streams[stream]
        told = (sid, stream) not in self._unsure
        self._unsure.discard((sid, stream))
        self._late.add(sid)
        with suppress(BrokerUnavailable):  # the next sweep tries again
            await self._catch_up(sid)
        return id if last and told else None

    # -- ends

    async def _end(self, sid: str) -> None:
        async with self._turns.of(sid):
            await self._catch_up(sid)
            entry = await self._bucket.get(sid)
            while entry is not None and (left := self._left(place := decode(_Place, entry.value))) is not None:
                if left > 1.0:
                    self._agenda.put(sid, left)
                    return
                place = place._replace(teller=self._nodes.node)
                try:
                    revision = await self._bucket.put(sid, encode(place), expected=entry.revision)
                except Conflict as e:
                    entry = e.entry
                    continue
                await self._finish(sid, place, revision)
                break
            self._drop(sid)

    def _left(self, place: _Place) -> float | None:
        """In how many seconds this node is to end the session; None: it is not this node's to end."""
        nodes = self._nodes
        if place.teller:
            return 0.0 if place.teller == nodes.node or nodes.is_gone(place.teller) else None
        if place.node == nodes.node:
            return nodes.seconds_until(place.deadline) if place.deadline else None
        if not nodes.is_gone(place.node):
            return None
        if place.deadline:
            return nodes.seconds_until(place.deadline)
        return float(nodes.last_heard(place.node) + max(self._ttl, LEASE) - self._reactor.seconds())

    async def _look(self, key: str, entry: Entry, at_leisure: bool) -> None:
        """What a round finds: sessions of nodes that are gone, and members whose leaving they did not tell."""
        if "." in key:
            self._members.look(key, entry)
        elif key not in self._agenda:
            left = self._left(decode(_Place, entry.value))
            if left is not None:
                self._agenda.put(key, max(left, 0.0))

    # -- what is left to do

    async def _catch_up_in_turn(self, sid: str) -> None:
        async with self._turns.of(sid):
            await self._catch_up(sid)

    async def _catch_up(self, sid: str) -> None:
        """Have a session's key say what is known here."""
        own = self._own.get(sid)
        if sid in self._late and own is not None:
            if own.streams and not await self._write(sid, own, make=False):
                self._drop(sid)
            elif not own.streams:
                await self._forget(sid, own)
                self._drop(sid)
        self._late.discard(sid)

    async def _forget(self, sid: str, own: _Own) -> None:
        """Remove the key of a session that is present nowhere."""
        revision = own.revision
        while True:
            try:
                await self._bucket.delete(sid, revision)
                return
            except Conflict as e:
                if e.entry is None or decode(_Place, e.entry.value).node != self._nodes.node:
                    return
                revision = e.entry.revision

    async def _leave_late(self, pair: tuple[str, str]) -> None:
        sid, stream = pair
        async with self._turns.of(sid):
            if pair not in self._leaving:
                return
            id = await self._leave(stream, sid)
            self._leaving.discard(pair)
        if id is not None:
            self._tell(stream, id)

    async def _rejoin(self, sid: str) -> None:
        """A connected session is present where it was, whatever became of that meanwhile."""
        async with self._turns.of(sid):
            own = self._own.get(sid)
            if own is not None and not own.deadline and own.streams:
                await self._write(sid, own)
                for stream, (id, text) in own.streams.items():
                    untold = (sid, stream) in self._unsure
                    changed = await self._members.add(stream, id, sid, own.life, text, untold=untold)
                    if changed and self._again[sid]:
                        self._came(stream, id, orjson.loads(text))
            self._again.pop(sid, None)

    def _returned(self, away: float) -> None:
        if away >= max(self._ttl, LEASE):
            for sid, own in self._own.items():
                if not own.deadline:
                    self._again[sid] = True

    def _drop(self, sid: str) -> None:
        own = self._own.pop(sid, None)
        for stream in () if own is None else own.streams:
            self._unsure.discard((sid, stream))
        self._agenda.drop(sid)
        self._late.discard(sid)
