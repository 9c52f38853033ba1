"""The memory broker's session store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anycable_tx.cable.expiry import DeadlineQueue
from anycable_tx.cable.messages import Claim

__all__ = ["Sessions"]

_CONNECTED = float("inf")


class _Session:
    __slots__ = ("deadline", "heir", "identifiers", "record")

    def __init__(self, identifiers: str, record: bytes) -> None:
        self.identifiers = identifiers
        self.record = record
        self.heir = ""
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

    def save(self, sid: str, identifiers: str, record: bytes) -> None:
        """Keep *record* for a connected session."""
        if self._ttl <= 0:
            return
        session = self._sessions.get(sid) or _Session(identifiers, record)
        if session.identifiers != identifiers:
            self.forget(sid)
            session.identifiers = identifiers
        session.record = record
        session.deadline = _CONNECTED
        if sid not in self._sessions:
            self._add(sid, session)

    def release(self, sid: str, record: bytes, now: float) -> None:
        """Keep *record* for the ttl from *now*. A sid that is not kept stays forgotten."""
        session = self._sessions.get(sid)
        if session is None:
            return
        session.record = record
        session.deadline = now + self._ttl
        self._deadlines.add(sid, session.deadline)

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

    def forget_all(self, identifiers: str, now: float) -> int:
        """Keep nothing of the sessions with *identifiers*; answers how many could still be claimed."""
        alike = self._alike.get(identifiers, set())
        claimable = 0
        for sid in list(alike) if isinstance(alike, set) else [alike]:
            claimable += self._sessions[sid].deadline > now
            self.forget(sid)
        return claimable

    def sweep(self, now: float) -> None:
        """Forget the sessions whose time is over."""
        for sid in self._deadlines.due(now):
            session = self._sessions.get(sid)
            if session is None or session.deadline == _CONNECTED:
                continue
            if session.deadline <= now:
                self.forget(sid)
            else:
                self._deadlines.add(sid, session.deadline)

    def __len__(self) -> int:
        """How many sessions are kept."""
        return len(self._sessions)

    def dump(self, now: float) -> Iterator[list[Any]]:
        """Everything as rows of JSON values; who is connected counts as released now."""
        for sid, session in self._sessions.items():
            left = min(session.deadline - now, self._ttl)
            if left > 0:
                yield ["session", sid, session.identifiers, session.record.decode("latin-1"), session.heir, left]

    def restore(self, row: list[Any], now: float, down: float) -> None:
        """Take back a row that ``dump`` made *down* seconds ago. Raises ValueError, TypeError or IndexError."""
        _, sid, identifiers, record, heir, left = row
        left = min(left - down, self._ttl)
        if left > 0:
            session = _Session(identifiers, record.encode("latin-1"))
            session.heir = heir
            session.deadline = now + left
            self._add(sid, session)
            self._deadlines.add(sid, session.deadline)

    def _add(self, sid: str, session: _Session) -> None:
        self._sessions[sid] = session
        alike = self._alike.setdefault(session.identifiers, sid)
        if isinstance(alike, set):
            alike.add(sid)
        elif alike != sid:
            self._alike[session.identifiers] = {alike, sid}
