"""The session record that a broker keeps: what a client gets back when it resumes (P5).

The keys ``ids``, ``subs``, ``cstate``, ``istate`` and ``Disconnectable`` are those of the AnyCable server; ``at``
(where each stream stood), ``exact`` (nothing later was ever sent), ``prev`` (the sids the session had before),
``left`` and ``env`` are ours and ignored by others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from anycable_tx.cable.messages import Position
from anycable_tx.cable.replies import RequestEnv

__all__ = ["MAX_PREVIOUS", "Doubt", "SessionRecord", "StreamRecord"]

#: How many earlier sids a record remembers.
MAX_PREVIOUS = 8


class Doubt(NamedTuple):
    """A resumed client was sent what follows ``after`` though it had not asked for what it might lack before that.

    So an offset beyond ``after`` does not prove that it has everything, unless it is beyond ``upto`` as well, which
    the client can only have reached by reading that something was refused. -1: there is no such place yet.
    """

    after: int
    upto: int = -1

    def covers(self, offset: int) -> bool:
        """Does a client with this offset perhaps lack something before it?"""
        return self.after < offset and (self.upto < 0 or offset <= self.upto)


class StreamRecord(NamedTuple):
    """One stream of a subscription: where it started (``base``), how far it was sent, and if it was held then.

    ``exact``: nothing later than the cursor was ever sent. A session that goes on is ahead of its record.
    """

    base: int
    cursor: Position
    held: bool
    doubt: Doubt | None = None
    exact: bool = False

    def row(self) -> list[Any]:
        """The record as JSON values."""
        return [self.cursor.epoch, self.base, self.cursor.offset, self.held, *(self.doubt or ())]

    @classmethod
    def of(cls, row: list[Any]) -> StreamRecord:
        """The record that *row* was made of. Raises ValueError or TypeError."""
        epoch, base, offset, held, *doubt = row
        doubted = Doubt(*map(int, doubt)) if doubt else None
        return cls(int(base), Position(str(epoch), int(offset)), bool(held), doubted)


@dataclass
class SessionRecord:
    """A session at rest.

    ``unfinished``: identifiers that it is not subscribed to, though the backend may think so, with their state.
    ``env``: its request, where the backend is told of the session's end when nobody is connected any more.
    """

    identifiers: str
    subscriptions: dict[str, dict[str, StreamRecord]] = field(default_factory=dict)
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, dict[str, str]] = field(default_factory=dict)
    disconnectable: bool = False
    previous: tuple[str, ...] = ()
    unfinished: dict[str, dict[str, str]] = field(default_factory=dict)
    env: RequestEnv | None = None

    def known(self) -> dict[str, dict[str, str]]:
        """The identifiers that the backend may think it is subscribed to, with their state (RA-16, RA-18)."""
        return {i: self.istate.get(i, {}) for i in self.subscriptions} | self.unfinished

    def encode(self) -> bytes:
        """The record as JSON; what is empty is left out."""
        value: dict[str, Any] = {"ids": self.identifiers}
        if self.subscriptions:
            value["subs"] = {i: list(streams) for i, streams in self.subscriptions.items()}
            value["at"] = [[place.row() for place in streams.values()] for streams in self.subscriptions.values()]
            if all(place.exact for streams in self.subscriptions.values() for place in streams.values()):
                value["exact"] = True
        if self.cstate:
            value["cstate"] = self.cstate
        if self.istate:
            value["istate"] = self.istate
        if self.disconnectable:
            value["Disconnectable"] = True
        if self.previous:
            value["prev"] = list(self.previous)
        if self.unfinished:
            value["left"] = self.unfinished
        if self.env is not None:
            value["env"] = [self.env.url, self.env.headers]
        # A copy: orjson's own result keeps its whole buffer, and brokers keep records for long.
        return b"%b" % orjson.dumps(value)

    @classmethod
    def decode(cls, text: bytes) -> SessionRecord | None:
        """The record in *text*, or None if it is not one (then the client authenticates anew)."""
        try:
            value = orjson.loads(text)
            at = value.get("at")
            exact = bool(value.get("exact"))
            subscriptions = {}
            for n, (identifier, streams) in enumerate(value.get("subs", {}).items()):
                places = at[n] if at else [["", -1, 0, False]] * len(streams)
                subscriptions[str(identifier)] = {
                    str(stream): StreamRecord.of(row)._replace(exact=exact)
                    for stream, row in zip(streams, places, strict=True)
                }
            env = value.get("env")
            return cls(
                str(value["ids"]),
                subscriptions,
                _strings(value.get("cstate")),
                _states(value.get("istate")),
                bool(value.get("Disconnectable")),
                tuple(str(sid) for sid in value.get("prev", ()))[-MAX_PREVIOUS:],
                _states(value.get("left")),
                None if env is None else RequestEnv(str(env[0]), _strings(env[1])),
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None


def _strings(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in (value or {}).items()}


def _states(value: Any) -> dict[str, dict[str, str]]:
    return {str(i): _strings(state) for i, state in (value or {}).items()}
