"""The memory broker's session store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anycable_tx.cable.expiry import DeadlineQueue
from anycable_tx.cable.messages import Claim

__all__ = ["Ended", "Sessions"]

#: The sids and last records of sessions whose end is to be told.
Ended = list[tuple[str, bytes]]

_CONNECTED = float("inf")


class _Session:
    #: ``inherited``: it goes on in its heir.
    __slots__ = ("deadline", "heir", "identifiers", "inherited", "record")

    def __init__(self, identifiers: str, record: bytes) -> None:
        self.identifiers = identifiers
        self.record = record
        self.heir = ""
        self.inherited = False
        self.deadline = _CONNECTED


class Sessions:
    """Records of sessions by their sid: kept while connected, and for *ttl* seconds after that; 0 keeps none.

    A connected session takes about 150 bytes here besides its record, sid and identifiers.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._sessions: dict[str, _Session] = {}
        # Which sids have these identifiers: the sid itself while it is the only one, which is the common case.
        self._alike: dict[str, str | set[str]] = {}
        self._deadlines: DeadlineQueue[str] = DeadlineQueue()

    def save(self, sid: str, identifiers: str, record: bytes, previous: str = "") -> None:
        """Keep *record* for a connected session, in which *previous* goes on."""
        if self._ttl <= 0:
            return
        if previous in self._sessions:
            self._sessions[previous].inherited = True
        session = self._sessions.get(sid) or _Session(identifiers, record)
        if session.identifiers != identifiers:
            self.forget(sid)
            session.identifiers = identifiers
        session.record = record
        session.deadline = _CONNECTED
        if sid not in self._sessions:
            self._add(sid, session)

    def release(self, sid: str, record: bytes, now: float) -> bool:
        """Keep *record* for the ttl from *now*. False: a sid that is not kept stays forgotten."""
        session = self._sessions.get(sid)
        if session is None:
            return False
        session.record = record
        session.deadline = now + self._ttl
        self._deadlines.add(sid, session.deadline)
        return True

    def claim(self, sid: str, heir: str, now: float) -> Claim | None:
        """The record of *sid* and who claimed it before *heir*; None when it is over, swept or not."""
        session = self._sessions.get(sid)
        if session is None or session.deadline <= now:
            return None
        rival, session.heir = session.heir, heir
        return Claim(session.record, rival)

    def forget(self, sid: str) -> None:
        """Keep nothing of *sid*."""
        session = self._sessions.pop(sid, None)
        if session is None:
            return
        alike = self._alike[session.identifiers]
        if isinstance(alike, set):
            alike.discard(sid)
        if not isinstance(alike, set) or not alike:
            del self._alike[session.identifiers]

    def forget_all(self, identifiers: str, now: float) -> tuple[int, Ended]:
        """Keep nothing of the sessions with *identifiers*; answers how many could still be claimed, and who ended."""
        alike = self._alike.get(identifiers, set())
        claimable = 0
        ended: Ended = []
        for sid in list(alike) if isinstance(alike, set) else [alike]:
            claimable += self._sessions[sid].deadline > now
            ended += self._end(sid)
        return claimable, ended

    def end_released(self) -> Ended:
        """Forget every session that is not connected; answers who ended."""
        released = [sid for sid, session in self._sessions.items() if session.deadline != _CONNECTED]
        return [each for sid in released for each in self._end(sid)]

    def _end(self, sid: str) -> Ended:
        """Forget *sid*; answers it if its end is to be told: nobody is connected, and it does not go on elsewhere."""
        session = self._sessions[sid]
        self.forget(sid)
        told = session.deadline != _CONNECTED and not session.inherited
        return [(sid, session.record)] if told else []

    def sweep(self, now: float) -> Ended:
        """Forget the sessions whose time is over; answers who ended."""
        ended: Ended = []
        for sid in self._deadlines.due(now):
            session = self._sessions.get(sid)
            if session is None or session.deadline == _CONNECTED:
                continue
            if session.deadline <= now:
                ended += self._end(sid)
            else:
                self._deadlines.add(sid, session.deadline)
        return ended

    def __len__(self) -> int:
        """How many sessions are kept."""
        return len(self._sessions)

    def dump(self, now: float) -> Iterator[list[Any]]:
        """Everything as rows of JSON values; who is connected counts as released now."""
        for sid, session in self._sessions.items():
            left = min(session.deadline - now, self._ttl)
            record = session.record.decode("latin-1")
            yield ["session", sid, session.identifiers, record, session.heir, left, session.inherited]

    def restore(self, row: list[Any], now: float, down: float) -> None:
        """Take back a row that ``dump`` made *down* seconds ago. Raises ValueError, TypeError or IndexError.

        Whose time ended meanwhile comes back too, for the next ``sweep`` to tell.
        """
        _, sid, identifiers, record, heir, left, inherited = row
        session = _Session(identifiers, record.encode("latin-1"))
        session.heir = heir
        session.inherited = bool(inherited)
        session.deadline = now + min(left - down, self._ttl)
        self._add(sid, session)
        self._deadlines.add(sid, session.deadline)

    def _add(self, sid: str, session: _Session) -> None:
        self._sessions[sid] = session
        alike = self._alike.setdefault(session.identifiers, sid)
        if isinstance(alike, set):
            alike.add(sid)
        elif alike != sid:
            self._alike[session.identifiers] = {alike, sid}
