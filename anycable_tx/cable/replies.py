"""What a controller answers: statuses, transmissions, streams and state changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = [
    "PRESENCE_STREAM",
    "WHISPER_STREAM",
    "ConnectReply",
    "PresenceChange",
    "Reply",
    "RequestEnv",
    "RestoreReply",
    "Restored",
    "SessionView",
    "Status",
    "StreamsChange",
]

#: Reserved keys of a channel's state: the stream that whispers go to, and the one presence is kept on.
WHISPER_STREAM = "$w"
PRESENCE_STREAM = "$p"


class Status(Enum):
    """A controller's verdict. ERROR is not a refusal: the controller could not decide."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"


@dataclass(slots=True, frozen=True)
class RequestEnv:
    """The upgrade request as controllers see it: ``http(s)`` URL with its query, chosen headers (lower case)."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class SessionView:
    """The part of a session that controllers see. ``cstate`` and ``istate`` are copies.

    ``resumable``: when it ends it may still come back under another sid.
    """

    sid: str
    identifiers: str
    env: RequestEnv | None
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, str] = field(default_factory=dict)
    resumable: bool = False


@dataclass(slots=True, frozen=True)
class PresenceChange:
    """A join or leave asked for by the controller."""

    type: str
    id: str = ""
    info: Any = None


@dataclass(slots=True)
class ConnectReply:
    """The answer to ``authenticate``.

    ``identifiers`` is the opaque string that names the user on success. ``transmissions`` are JSON texts sent
    verbatim. ``disconnect_interest`` is -1 when the backend never needs to hear about this session.
    ``reason`` labels the counter of refused connections.
    """

    status: Status
    identifiers: str = ""
    transmissions: list[bytes] = field(default_factory=list)
    cstate: dict[str, str] = field(default_factory=dict)
    disconnect_interest: int = 0
    reason: str = ""


@dataclass(slots=True)
class Reply:
    """The answer to ``subscribe``, ``unsubscribe`` and ``perform``. In state maps '' deletes the key.

    ``reached``: False when the status is ERROR and the backend provably has not carried out what was asked.
    """

    status: Status
    transmissions: list[bytes] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    stopped_streams: list[str] = field(default_factory=list)
    stop_streams: bool = False
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, str] = field(default_factory=dict)
    presence: PresenceChange | None = None
    disconnect: bool = False
    disconnect_interest: int = 0
    reason: str = ""
    reached: bool = True


@dataclass(slots=True, frozen=True)
class Restored:
    """A session that is being resumed, as controllers see it.

    ``session`` has its new sid, the new request and the restored state; ``subscriptions`` maps the restored
    identifiers to their state. ``notified``: ``disconnect`` was, or may have been, called for ``previous``.
    """

    session: SessionView
    previous: str
    subscriptions: dict[str, dict[str, str]] = field(default_factory=dict)
    notified: bool = False


@dataclass(slots=True)
class StreamsChange:
    """How the streams of one subscription change: stop all or some, then start others."""

    stop_streams: bool = False
    stopped_streams: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RestoreReply:
    """The answer to ``restore``. ``identifiers``: '' keeps them. In state maps '' deletes the key.

    ``istate`` and ``streams`` are by identifier; ``rejected`` are the identifiers that do not come back.
    """

    status: Status
    identifiers: str = ""
    transmissions: list[bytes] = field(default_factory=list)
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, dict[str, str]] = field(default_factory=dict)
    streams: dict[str, StreamsChange] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    reason: str = ""
