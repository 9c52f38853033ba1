"""The registry of this node's authenticated sessions: by sid, by an earlier sid, by connection identifiers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from sys import intern

from anycable_tx.cable.session import Session

__all__ = ["Sessions"]

_VALID_SID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")


class Sessions:
    """Who is connected. Most identifiers belong to one session, so a list is kept only where there are more."""

    def __init__(self) -> None:
        self._by_sid: dict[str, Session] = {}
        self._by_earlier_sid: dict[str, Session] = {}
        self._arriving: dict[str, Session] = {}
        self._by_identifiers: dict[str, Session | list[Session]] = {}

    def __len__(self) -> int:
        return len(self._by_sid)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_sid.values()))

    def newest_first(self) -> Iterator[Session]:
        """Those that are let in, the last one first. Nobody may come or go meanwhile."""
        return reversed(self._by_sid.values())

    def distinct(self) -> int:
        """How many different connection identifiers there are."""
        return len(self._by_identifiers)

    def arrives(self, session: Session) -> None:
        """Others may know this sid before the session is let in: as its request's id, or as a session's heir."""
        self._arriving[session.sid] = session

    def add(self, session: Session) -> None:
        """The session is let in."""
        self._arriving.pop(session.sid, None)
        session.identifiers = intern(session.identifiers)
        self._by_sid[session.sid] = session
        for sid in session.previous:
            self._by_earlier_sid[sid] = session
        others = self._by_identifiers.get(session.identifiers)
        if others is None:
            self._by_identifiers[session.identifiers] = session
        elif isinstance(others, list):
            others.append(session)
        else:
            self._by_identifiers[session.identifiers] = [others, session]

    def remove(self, session: Session) -> None:
        """Forget *session*; unknown ones are ignored."""
        if self._arriving.get(session.sid) is session:
            del self._arriving[session.sid]
        if self._by_sid.get(session.sid) is not session:
            return
        del self._by_sid[session.sid]
        for sid in session.previous:
            if self._by_earlier_sid.get(sid) is session:
                del self._by_earlier_sid[sid]
        others = self._by_identifiers[session.identifiers]
        if others is session:
            del self._by_identifiers[session.identifiers]
        elif isinstance(others, list):
            others.remove(session)
            if not others:
                del self._by_identifiers[session.identifiers]

    def get(self, sid: str) -> Session | None:
        """The session with that sid, let in or not."""
        return self._by_sid.get(sid) or self._arriving.get(sid)

    def find(self, sid: str) -> Session | None:
        """The session that has that sid, or had it before it was resumed."""
        return self._by_sid.get(sid) or self._by_earlier_sid.get(sid)

    def of(self, identifiers: str) -> list[Session]:
        """All sessions with these connection identifiers, those that are just being resumed included."""
        found = self._by_identifiers.get(identifiers)
        arriving = [s for s in self._arriving.values() if identifiers and s.identifiers == identifiers]
        if found is None:
            return arriving
        return [*found, *arriving] if isinstance(found, list) else [found, *arriving]

    def unused(self, sid: str) -> str:
        """*sid* if it may become a session's: well-formed and not in use; else '' (CP-15, RA-6)."""
        return sid if sid and _VALID_SID.fullmatch(sid) and not (self.find(sid) or self.get(sid)) else ""
