"""The NATS broker's session store, shared by all nodes (P5)."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from anycable_tx.brokers.nats_nodes import LEASE, Nodes, Rounds
from anycable_tx.brokers.nats_session_state import Held, State, held_in, stand_in
from anycable_tx.cable.messages import Claim
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.api import TooLarge
from anycable_tx.nats.bucket import Bucket, Conflict, Entry
from anycable_tx.nats.turns import Agenda, Turns, each, for_a_while

__all__ = ["SID", "Sessions"]

#: What can be a key. All that is not is the sid of nobody.
SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: What has been waiting for so many milliseconds does not belong to work that is under way.
_OLD = 60_000


class _Late(NamedTuple):
    """A release that could not be stored yet; None: whatever is stored is to be forgotten."""

    record: bytes | None
    deadline: int = 0


class Sessions:
    """Records of sessions: kept while the node they are connected to lives, and for *ttl* seconds after that.

    A session is one key, its sid, and every change of it expects the revision it was made from: so claims and ends
    are in one order. Its end is told by whoever wrote there that it does; the key is removed in the sweep after that,
    and if that node is gone before, another one tells. Ends of released sessions are due on the node that released
    them, and on the node that sweeps once that one is gone. *tell* is called with sid and record; *lost* when what is
    connected here may not be kept any more.

    Who shares identifiers is found by a second key of each session, ``<identifiers' stand-in>.<sid>``, which is there
    from before the first one is until its end is told: many may have the same identifiers, so they share no key.
    """

    def __init__(
        self,
        bucket: Bucket,
        nodes: Nodes,
        reactor: Any,
        ttl: float,
        tell: Callable[[str, bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._bucket = bucket
        self._nodes = nodes
        self._reactor = reactor
        self._ttl = ttl
        self._tell = tell
        self._lost = lost
        self._turns = Turns()
        self._rounds = Rounds(bucket, nodes, reactor, self._look)
        self._own: dict[str, Held] = {}  # without their records
        self._alike: dict[str, set[str]] = {}  # those of ``_own``
        self._agenda = Agenda(reactor)  # whose end is to be seen to
        self._late: dict[str, _Late] = {}
        self._heirs: dict[str, str] = {}  # sid -> the one before, which is to be marked
        self._told: dict[str, tuple[int, int]] = {}  # sid -> its revision and that of its index, to be removed
        self._removable: set[int] = set()  # to be removed, of no session any more
        nodes.returned.append(self._returned)

    # -- what a broker is asked

    async def save(self, sid: str, identifiers: str, record: bytes, previous: str = "") -> None:
        """Keep *record* for a session connected to this node, in which *previous* goes on."""
        if self._ttl <= 0 or not SID.fullmatch(sid):
            return
        async with self._turns.of(sid):
            self._late.pop(sid, None)
            self._agenda.drop(sid)
            before = self._own.get(sid)
            await self._save(sid, stand_in(identifiers), record, previous)
        if SID.fullmatch(previous) and (before is None or before.state.previous != previous):
            self._heirs[sid] = previous
            with suppress(BrokerUnavailable):  # it is saved, and the next sweep tries this again
                await self._mark(sid)

    async def release(self, sid: str, record: bytes) -> bool:
        """Keep *record* for the ttl from now; False if the session is not kept.

        What is known to be kept is released even if that cannot be stored now: that is done as soon as it can be.
        """
        if self._ttl <= 0 or not SID.fullmatch(sid):
            return False
        late = _Late(record, self._nodes.now() + round(self._ttl * 1000))
        async with self._turns.of(sid):
            try:
                return await self._release(sid, late)
            except BrokerUnavailable as e:
                if sid in self._own and not isinstance(e, TooLarge):
                    self._late[sid] = late
                    self._agenda.put(sid, self._ttl)
                    return True
                # It is not kept for those who asked, so it must not come back.
                self._late[sid] = _Late(None)
                raise

    async def claim(self, sid: str, heir: str) -> Claim | None:
        """The record of *sid* and who claimed it before *heir*; None when it is over, swept or not.

        To claim it again for the same heir changes nothing.
        """
        if self._ttl <= 0 or not SID.fullmatch(sid):
            return None
        async with self._turns.of(sid):
            await self._catch_up(sid)
            held = await self._read(sid)
            while held is not None:
                state = held.state
                if state.teller or 0 < state.deadline <= self._nodes.now():
                    return None
                if state.heir == heir:
                    return Claim(held.record, state.rival)
                done, held = await self._change(sid, held, state._replace(heir=heir, rival=state.heir))
                if done and held is not None:
                    return Claim(held.record, state.heir)
        return None

    async def forget(self, sid: str) -> None:
        """Keep nothing of *sid*. One whose end is being told stays until that is done."""
        if self._ttl <= 0 or not SID.fullmatch(sid):
            return
        async with self._turns.of(sid):
            held = self._own.get(sid) or await self._read(sid)
            while held is not None and not held.state.teller:
                held = await self._finish(sid, held, silent=True)
            self._drop(sid)

    async def forget_all(self, identifiers: str) -> int:
        """Keep nothing of the sessions with *identifiers*; answers how many could still be claimed."""
        if self._ttl <= 0:
            return 0
        alike = stand_in(identifiers)
        for sid in list(self._alike.get(alike, ())):
            self._drop_own(sid)
        count = 0

        async def forget(pair: tuple[str, Entry]) -> None:
            nonlocal count
            if await self._forget_alike(pair[0].partition(".")[2], alike, pair[1]):
                count += 1

        await each((await self._bucket.entries(f"{alike}.*")).items(), forget)
        return count

    async def sweep(self) -> None:
        """Tell the ends that are due; do what could not be done before. To be called every second."""
        if self._ttl <= 0:
            return
        await self._bucket.upkeep()
        await each(for_a_while(self._reactor, list(self._late)), self._catch_up_in_turn)
        await each(for_a_while(self._reactor, list(self._heirs)), self._mark)
        await each(for_a_while(self._reactor, list(self._told)), self._confirm)
        await each(for_a_while(self._reactor, list(self._removable)), self._remove_index)
        await self._rounds.go()
        await each(for_a_while(self._reactor, self._agenda.due()), self._end)

    async def stop(self) -> None:
        """Leave nothing half done if it can be helped; what is due later others see to."""
        with suppress(BrokerUnavailable):
            await each(list(self._late), self._catch_up_in_turn)
            await each(list(self._told), self._confirm)
            await each(list(self._removable), self._remove_index)

    def doubt(self) -> None:
        """NATS was away, or is another one."""
        self._bucket.doubt()

    # -- one session, in its turn

    async def _read(self, sid: str) -> Held | None:
        return held_in(await self._bucket.get(sid))

    async def _change(self, sid: str, held: Held, state: State) -> tuple[bool, Held | None]:
        """Whether *held* has that *state* now; and what is there."""
        try:
            revision = await self._bucket.put(sid, held.record, expected=held.revision, meta=state.encode())
        except Conflict as e:
            return False, held_in(e.entry)
        if sid in self._own:
            self._keep(sid, state, revision)
        return True, Held(state, revision, held.record)

    async def _save(self, sid: str, alike: str, record: bytes, previous: str) -> None:
        held, index, stale = self._own.get(sid), 0, 0
        while True:
            state = held.state if held is not None else State()
            if held is None or state.teller or state.alike != alike:
                # Another session under this name. What the teller of the last one removes is not this one's.
                stale = 0 if state.teller else state.link
                state = State(alike=alike)
                index = index or await self._bucket.put(f"{alike}.{sid}", b"")
            state = state._replace(
                node=self._nodes.node,
                deadline=0,
                link=index or state.link,
                previous=previous or state.previous,
            )
            try:
                revision = await self._bucket.put(
                    sid, record, expected=held.revision if held else 0, meta=state.encode()
                )
            except Conflict as e:
                held = held_in(e.entry)
            else:
                break
        self._keep(sid, state, revision)
        if stale not in (0, state.link):
            self._removable.add(stale)

    async def _release(self, sid: str, late: _Late) -> bool:
        assert late.record is not None
        held, done = self._own.get(sid) or await self._read(sid), False
        while not (done or held is None or held.state.teller):
            state = held.state._replace(node=self._nodes.node, deadline=late.deadline)
            done, held = await self._change(sid, held._replace(record=late.record), state)
        if held is None or not done:
            self._drop(sid)
            return False
        self._keep(sid, held.state, held.revision)
        self._late.pop(sid, None)
        self._agenda.put(sid, self._nodes.seconds_until(late.deadline))
        return True

    async def _finish(self, sid: str, held: Held, *, silent: bool) -> Held | None:
        """None when it is this node that ends the session, telling so unless *silent*; or what is there instead."""
        state = held.state._replace(teller=self._nodes.node, silent=silent)
        record = b"" if silent else held.record
        try:
            revision = await self._bucket.put(sid, record, expected=held.revision, meta=state.encode())
        except Conflict as e:
            return held_in(e.entry)
        self._drop(sid)
        if silent or self._nodes.holds():
            self._told[sid] = revision, state.link
            if not silent:
                self._tell(sid, held.record)
        else:  # others may take this node to be gone, and tell: to be written anew, after the next beat
            self._agenda.put(sid, 1.0)
        return None

    async def _goes_on(self, sid: str, state: State) -> bool:
        """Does the session go on in an heir?"""
        if state.inherited or not SID.fullmatch(state.heir):
            return state.inherited
        heir = await self._read(state.heir)
        return heir is not None and heir.state.previous == sid

    # -- ends

    async def _end(self, sid: str) -> None:
        async with self._turns.of(sid):
            await self._catch_up(sid)
            held = await self._read(sid)
            while held is not None and (left := self._left(sid, held.state)) is not None:
                if left > 1.0:
                    self._agenda.put(sid, left)
                    return
                silent = held.state.silent if held.state.teller else await self._goes_on(sid, held.state)
                held = await self._finish(sid, held, silent=silent)
                if held is None:
                    return
            if held is None:
                self._drop(sid)
            self._agenda.drop(sid)

    def _left(self, sid: str, state: State) -> float | None:
        """In how many seconds this node is to end the session; None: it is not this node's to end."""
        nodes = self._nodes
        if state.teller:
            own = state.teller == nodes.node and sid not in self._told
            return 0.0 if own or nodes.is_gone(state.teller) else None
        if not (state.node == nodes.node or nodes.is_gone(state.node)):
            return None
        if state.deadline:
            return nodes.seconds_until(state.deadline)
        if state.node == nodes.node:
            return None
        return float(nodes.last_heard(state.node) + max(self._ttl, LEASE) - self._reactor.seconds())

    async def _look(self, key: str, entry: Entry, at_leisure: bool) -> None:
        """What a round finds: sessions of nodes that are gone, and keys that lead to no session."""
        alike, _, sid = key.rpartition(".")
        if not alike:
            held = held_in(entry)
            left = None if held is None or sid in self._agenda else self._left(sid, held.state)
            if left is not None:
                self._agenda.put(sid, max(left, 0.0))
        elif at_leisure and sid not in self._own and self._is_old(entry):
            held = await self._read(sid)
            if held is None or held.state.link != entry.revision:
                self._removable.add(entry.revision)

    def _is_old(self, index: Entry) -> bool:
        return self._nodes.now() - index.time * 1000 > _OLD

    async def _forget_alike(self, sid: str, alike: str, index: Entry) -> bool:
        """Forget *sid*, which ends now unless its node lives; answers whether it could be claimed."""
        async with self._turns.of(sid):
            await self._catch_up(sid)
            held = await self._read(sid)
            if held is None or held.state.alike != alike:
                if self._is_old(index):
                    self._removable.add(index.revision)
                return False
            claimable = False
            while held is not None and not held.state.teller:
                state = held.state
                claimable = state.deadline == 0 or state.deadline > self._nodes.now()
                lives = not (state.deadline or self._nodes.is_gone(state.node))
                held = await self._finish(sid, held, silent=lives or await self._goes_on(sid, state))
            return claimable and held is None

    # -- what is left to do

    async def _catch_up_in_turn(self, sid: str) -> None:
        async with self._turns.of(sid):
            await self._catch_up(sid)

    async def _catch_up(self, sid: str) -> None:
        """Store a release that could not be stored in its time."""
        late = self._late.get(sid)
        if late is None:
            return
        if late.record is not None:
            await self._release(sid, late)
        else:
            held = await self._read(sid)
            while held is not None and held.state.node == self._nodes.node and not held.state.teller:
                held = await self._finish(sid, held, silent=True)
        self._late.pop(sid, None)

    async def _mark(self, sid: str) -> None:
        """The session before *sid* goes on in it."""
        previous = self._heirs.get(sid)
        if previous is None:
            return
        async with self._turns.of(previous):
            held = await self._read(previous)
            while held is not None and not (held.state.teller or held.state.inherited):
                _, held = await self._change(previous, held, held.state._replace(inherited=True))
        self._heirs.pop(sid, None)

    async def _confirm(self, sid: str) -> None:
        told = revision, index = self._told[sid]
        await self._bucket.remove(index)  # first: as long as the other is there, somebody sees to this one
        await self._bucket.remove(revision)
        if self._told.get(sid) == told:
            del self._told[sid]

    async def _remove_index(self, revision: int) -> None:
        await self._bucket.remove(revision)
        self._removable.discard(revision)

    def _returned(self, away: float) -> None:
        if self._ttl > 0 and away >= self._ttl:
            self._lost()

    # -- what this node knows

    def _keep(self, sid: str, state: State, revision: int) -> None:
        self._drop_own(sid)
        self._own[sid] = Held(state, revision)
        self._alike.setdefault(state.alike, set()).add(sid)

    def _drop_own(self, sid: str) -> None:
        held = self._own.pop(sid, None)
        if held is not None:
            alike = self._alike[held.state.alike]
            alike.discard(sid)
            if not alike:
                del self._alike[held.state.alike]

    def _drop(self, sid: str) -> None:
        self._drop_own(sid)
        self._agenda.drop(sid)
        self._late.pop(sid, None)
