"""The values that travel through the server: publications, stored messages, positions, commands, records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "Claim",
    "History",
    "HistoryRequest",
    "Member",
    "Position",
    "Publication",
    "Receipt",
    "RemoteCommand",
    "StreamMessage",
]


@dataclass(slots=True, frozen=True)
class Publication:
    """What a publisher asked to be sent to one stream.

    ``payload`` is JSON text ready to be placed in a frame: the publisher's own text where that was JSON, a
    JSON string otherwise, so digits and key order reach the client as they were written (CP-52).
    """

    stream: str
    payload: bytes
    exclude_socket: str = ""
    broadcast_type: str = ""
    transient: bool = False
    id: str = ""


@dataclass(slots=True)
class StreamMessage:
    """A message on its way to the subscribers of ``stream``.

    ``offset`` is 0 for transient messages, which carry no position. Otherwise it grows strictly per stream
    and ``prev`` is the offset of the stored message before it (0: the first the store knows). ``time`` is
    when it was stored, in Unix seconds.
    """

    stream: str
    payload: bytes
    offset: int = 0
    prev: int = 0
    epoch: str = ""
    time: float = 0.0
    exclude_socket: str = ""
    broadcast_type: str = ""
    id: str = ""


class Position(NamedTuple):
    """A place in a stream: the message ``offset`` of ``epoch`` and everything before it."""

    epoch: str
    offset: int


class Receipt(NamedTuple):
    """A broker's acknowledgement: stored at ``offset`` of ``epoch`` (P6); ``duplicate`` of an earlier id."""

    offset: int
    epoch: str
    duplicate: bool = False


class HistoryRequest(NamedTuple):
    """What a client says it has: a ``position`` if it names one, else ``since`` in whole Unix seconds."""

    position: Position | None = None
    since: int = 0


class History(NamedTuple):
    """A whole history answer (P4): ``messages`` ascending, and ``top``, the position it reaches."""

    messages: list[StreamMessage]
    top: Position


class Claim(NamedTuple):
    """A session record handed to its heir; ``rival`` is the sid that claimed the same session before, or ''."""

    record: bytes
    rival: str = ""


@dataclass(slots=True, frozen=True)
class Member:
    """One present id of a stream and the last ``info`` (any JSON value; None: none) it joined with."""

    id: str
    info: Any = None


@dataclass(slots=True, frozen=True)
class RemoteCommand:
    """A command for every node: ``disconnect`` (public) or ``takeover`` (between nodes)."""

    command: str
    payload: dict[str, Any] = field(default_factory=dict)
