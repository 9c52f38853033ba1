"""The memory broker's presence store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from anycable_tx.cable.expiry import DeadlineQueue
from anycable_tx.cable.messages import Member
from anycable_tx.errors import PresenceRefused

__all__ = ["Presence"]

_CONNECTED = float("inf")


class _Present:
    """An id on one stream: the last info it joined with and how many sessions it has there."""

    __slots__ = ("info", "sessions")

    def __init__(self, info: Any) -> None:
        self.info = info
        self.sessions = 0


class _Session:
    """Where a session is present, as which id, and until when."""

    __slots__ = ("deadline", "streams")

    def __init__(self) -> None:
        self.streams: dict[str, str] = {}
        self.deadline = _CONNECTED


class Presence:
    """Who is present on which stream; a session whose connection ended stays for *ttl* seconds.

    Each id is reported once when it comes (``join`` answers True) and once when its last session is gone
    (``leave`` answers it, or ``sweep`` does): whoever is told announces it.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._streams: dict[str, dict[str, _Present]] = {}
        self._sessions: dict[str, _Session] = {}
        self._deadlines: DeadlineQueue[str] = DeadlineQueue()

    def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """*sid* is connected and present on *stream* as *id*. True when *id* is new there or its *info* changed.

        Raises PresenceRefused when *sid* is there under another id, which stays.
        """
        session = self._sessions.get(sid)
        if session is not None and session.streams.get(stream, id) != id:
            raise PresenceRefused(f"already present on {stream!r} as {session.streams[stream]!r}, not as {id!r}")
        if session is None:
            session = self._sessions[sid] = _Session()
        session.deadline = _CONNECTED
        members = self._streams.setdefault(stream, {})
        present = members.get(id)
        changed = present is None or not _equal(present.info, info)
        if present is None:
            present = members[id] = _Present(info)
        present.info = info
        if stream not in session.streams:
            session.streams[stream] = id
            present.sessions += 1
        return changed

    def leave(self, stream: str, sid: str) -> str | None:
        """*sid* is no longer present on *stream*. Answers the id when that was its last session."""
        session = self._sessions.get(sid)
        id = None if session is None else session.streams.pop(stream, None)
        if session is None or id is None:
            return None
        if not session.streams:
            del self._sessions[sid]
        return id if self._gone(stream, id) else None

    def release(self, sid: str, now: float) -> None:
        """The connection of *sid* ended: it stays for the ttl from *now*."""
        session = self._sessions.get(sid)
        if session is not None:
            session.deadline = now + self._ttl
            self._deadlines.add(sid, session.deadline)

    def move(self, sid: str, heir: str) -> dict[str, str]:
        """Where *sid* was present now *heir* is, who is connected. Answers {stream: id}; nobody comes or leaves.

        Where *heir* is present under another id already, *sid* stays until its own time is over.
        """
        old = self._sessions.get(sid)
        if old is None:
            return {}
        if sid == heir:
            old.deadline = _CONNECTED
            return dict(old.streams)
        new = self._sessions.get(heir) or _Session()
        moved: dict[str, str] = {}
        for stream, id in list(old.streams.items()):
            if new.streams.get(stream, id) != id:
                continue
            del old.streams[stream]
            moved[stream] = id
            if stream in new.streams:
                self._gone(stream, id)  # one of its two sessions: never the last
            else:
                new.streams[stream] = id
        if not old.streams:
            del self._sessions[sid]
        if moved:
            new.deadline = _CONNECTED
            self._sessions[heir] = new
        return moved

    def members(self, stream: str) -> list[Member]:
        """Who is present on *stream*, in the order they came."""
        return [Member(id, present.info) for id, present in self._streams.get(stream, {}).items()]

    def sweep(self, now: float) -> list[tuple[str, str]]:
        """Remove the sessions whose time is over; answers the (stream, id) that are gone with them."""
        gone: list[tuple[str, str]] = []
        for sid in self._deadlines.due(now):
            session = self._sessions.get(sid)
            if session is None or session.deadline == _CONNECTED:
                continue
            if session.deadline > now:
                self._deadlines.add(sid, session.deadline)
                continue
            del self._sessions[sid]
            gone.extend((stream, id) for stream, id in session.streams.items() if self._gone(stream, id))
        return gone

    def __len__(self) -> int:
        """How many sessions are present somewhere."""
        return len(self._sessions)

    def dump(self) -> Iterator[list[Any]]:
        """Everything as rows of JSON values."""
        for stream, members in self._streams.items():
            for id, present in members.items():
                yield ["member", stream, id, present.info]
        for sid, session in self._sessions.items():
            yield ["present", sid, session.streams]

    def restore(self, row: list[Any], now: float) -> None:
        """Take back a row of ``dump``: members before sessions. Raises ValueError, TypeError, KeyError, IndexError.

        The ttl starts anew, because nobody could come back while the server was away.
        """
        if row[0] == "member":
            _, stream, id, info = row
            self._streams.setdefault(stream, {})[id] = _Present(info)
        else:
            _, sid, streams = row
            session = self._sessions[sid] = _Session()
            session.streams = dict(streams)
            for stream, id in session.streams.items():
                self._streams[stream][id].sessions += 1
            self.release(sid, now)

    def _gone(self, stream: str, id: str) -> bool:
        """One session less for *id* on *stream*: was it the last?"""
        members = self._streams[stream]
        members[id].sessions -= 1
        if members[id].sessions:
            return False
        del members[id]
        if not members:
            del self._streams[stream]
        return True


def _equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; to Python alone 1, 1.0 and true would be."""
    return one == other and orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        other, option=orjson.OPT_SORT_KEYS
    )
