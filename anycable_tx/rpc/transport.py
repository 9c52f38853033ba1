"""What a way of calling the backend has to do, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from anycable_tx.errors import ControllerError

__all__ = ["CallFailed", "Code", "RestoredStreams", "RpcReply", "RpcStatus", "Transport"]


class RpcStatus:
    """The verdicts of a backend, as numbers on the wire."""

    ERROR, SUCCESS, FAILURE = 0, 1, 2


class Code(Enum):
    """Why a call failed. The value is the reason that counters and log records carry."""

    #: No connection, or it broke.
    UNAVAILABLE = "unavailable"
    #: The backend is there and asks for patience.
    EXHAUSTED = "resource_exhausted"
    #: The time of the attempt, or of all attempts together, was up.
    TIMEOUT = "timeout"
    #: The backend has no such method.
    UNIMPLEMENTED = "unimplemented"
    #: A request or an answer is larger than the limit.
    TOO_LARGE = "too_large"
    #: The backend refused our credentials, or TLS failed.
    UNAUTHENTICATED = "unauthenticated"
    #: The backend could not read the request.
    INVALID = "invalid_argument"
    #: An answer nobody can read, or any other failure.
    UNKNOWN = "unknown"
    #: Too many calls wait already, or one has waited for too long.
    QUEUE_FULL = "queue_full"
    #: The connection it was for has ended before it was made.
    CANCELED = "canceled"
    #: The backend is known to be out of reach: for a while no call is even tried.
    UNREACHABLE = "unreachable"


class CallFailed(ControllerError):
    """A call that brought no answer. ``delivered``: the backend may have carried it out all the same.

    ``retry_after`` is how many seconds the backend asked to wait, None when it said nothing.
    """

    def __init__(self, code: Code, text: str, *, delivered: bool, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.reason = code
        self.delivered = delivered
        self.retry_after = retry_after


@dataclass(slots=True)
class RestoredStreams:
    """How a ``restore`` reply changes the streams of one subscription, in the order of its fields."""

    identifier: str
    stop_streams: bool = False
    stopped_streams: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RpcReply:
    """Any method's answer; what the method does not have, or the backend left out, is the default.

    ``status`` is one of RpcStatus. ``presence`` is {"type": ..., "id": ..., "info": text}.
    """

    status: int = RpcStatus.ERROR
    identifiers: str = ""
    transmissions: list[str] = field(default_factory=list)
    error_msg: str = ""
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, str] = field(default_factory=dict)
    disconnect: bool = False
    stop_streams: bool = False
    streams: list[str] = field(default_factory=list)
    stopped_streams: list[str] = field(default_factory=list)
    presence: dict[str, str] | None = None
    rejected_subscriptions: list[str] = field(default_factory=list)
    restored_streams: list[RestoredStreams] = field(default_factory=list)


class Transport(Protocol):
    """One attempt at a time; retries, limits and counters are the caller's work (see ``calls``).

    *request* has the shape of the HTTP body (snake_case keys, what is empty left out, maps of strings).
    """

    #: For the start-up log line: how the backend is reached, without secrets.
    announcement: str

    async def start(self) -> None:
        """Prepare; does not need the backend to be there. Raises ConfigurationError."""

    async def stop(self) -> None:
        """Close every connection."""

    async def call(self, method: str, request: dict[str, Any], sid: str, within: float | None) -> RpcReply:
        """One attempt of *method* (``connect``, ``command``, ``disconnect`` or ``restore``) for the session *sid*.

        *within* is in seconds; None: no limit. Raises CallFailed and nothing else, save that a cancelled call
        raises what cancelled it.
        """

    def problem(self) -> str:
        """Why no call can succeed now, '' when nothing is known to be wrong (RA-41)."""
