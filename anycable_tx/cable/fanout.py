"""What the domain needs from a transport: an outlet for each connection, and groups that share frames."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from anycable_tx.cable.attachments import Attachment
    from anycable_tx.cable.messages import StreamMessage

__all__ = ["Fanout", "Group", "Outlet", "Wire"]


class Wire(Protocol):
    """A wire format: what a stream's message looks like to the clients that speak it. There is one of each kind."""

    def broadcast(self, identifier: bytes, message: StreamMessage, tail: bytes) -> bytes:
        """*message* for *identifier* (JSON text), as the client reads it; b'' if its like is not told.

        *tail* is the message's ``broadcast_tail``, shared by all identifiers.
        """

    def frame(self, payload: bytes) -> bytes:
        """What the client reads, as it is written to the connection."""


class Outlet(Protocol):
    """The transport's side of one connection. Everything handed to it leaves in the order it was handed over."""

    @property
    def wire(self) -> Wire:
        """Frames of one wire format are shared."""

    def send(self, payload: bytes) -> None:
        """Write one message of the protocol (JSON)."""

    def send_all(self, payloads: list[bytes]) -> None:
        """Write several messages of the protocol at once."""

    def deliver(self, payloads: list[bytes]) -> None:
        """Write messages of streams, made by ``wire.broadcast``."""

    def close(self, code: int, reason: str) -> None:
        """Write what is queued, then what tells the client that this is the end, then close."""

    def drained(self) -> Awaitable[None] | None:
        """None when more may be written; otherwise done when it may (or the connection is gone)."""

    def pause(self) -> None:
        """Stop reading from the client."""

    def resume(self) -> None:
        """Read from the client again."""


class Group(Protocol):
    """The live attachments of one (stream, identifier, wire format): each frame is encoded once for all.

    Frames leave in batches after ``send`` has returned. A member gets exactly the frames sent between its
    ``join`` and its ``leave``, and among its connection's other frames at the place where they were sent,
    provided ``settle`` is called before anything else is written to that connection.
    """

    def join(self, attachment: Attachment) -> None:
        """Frames sent from now on are for this member too."""

    def leave(self, attachment: Attachment) -> None:
        """No further frame reaches this member, not even one that was sent but has not left yet."""

    def settle(self, attachment: Attachment) -> None:
        """Write to this member at once what was sent but has not left yet. It stays a member."""

    def send(self, payload: bytes) -> None:
        """One message of the stream, made by the wire format's ``broadcast``, for every member."""

    def members(self) -> list[Attachment]:
        """The members."""

    def __len__(self) -> int:
        """How many members there are."""


class Fanout(Protocol):
    """Makes groups, and knows whether any frame is waiting to leave."""

    #: True while frames that were sent to groups have not left.
    pending: bool

    def group(self, wire: Wire) -> Group:
        """A new, empty group for connections of that wire format."""
