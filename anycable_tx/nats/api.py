"""What the parts that live on NATS ask of the shared client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from anycable_tx.errors import BrokerUnavailable

__all__ = ["Headers", "Message", "Nats", "NatsUnavailable", "Subscription", "TooLarge"]

#: Names with one value each. Names are compared as they are written.
Headers = Mapping[str, str]


class NatsUnavailable(BrokerUnavailable):
    """No connection, nobody who answers, or no answer in time: what was asked may have been done or not."""

    code = "broker_unavailable"


class TooLarge(NatsUnavailable):
    """The server takes no message of this size: it was not sent, and trying again does not help."""


class Message(NamedTuple):
    """What arrived; ``status`` is that of a message without a body such as 404, else 0."""

    subject: str
    data: bytes
    headers: Headers
    status: int = 0
    description: str = ""


class Subscription(Protocol):
    """Interest in one subject. It outlives the connection: a new one has it from the beginning."""

    def end(self) -> None:
        """Nothing more is received. Never waits and never raises."""


class Nats(Protocol):
    """One connection for the whole process, shared by broker, pub/sub and broadcaster (see ``client.shared``).

    It comes back by itself, for ever. What is asked while it is gone fails at once, and so does what is under way
    when it is lost. A subject that is none (it has spaces, or more than 2000 bytes) raises ValueError, and so does a
    header that would not arrive as it is; TooLarge is raised for more than the server takes.
    """

    #: Where it connects to, for people and without secrets.
    log_name: str

    async def start(self) -> None:
        """Begin to connect, and wait up to five seconds for that; it goes on trying for ever, with jitter."""

    async def stop(self) -> None:
        """Send what waits, and close. Counted: the last of those that started it stops it."""

    def problem(self) -> str:
        """Why nothing can be asked now, '' when all is well; for readiness."""

    def watch(self, *, up: Callable[[], None], down: Callable[[], None]) -> None:
        """Call *down* when the connection is lost, and *up* when it is back with all subscriptions.

        *up* is called for the first connection too if that took longer than ``start`` waited.
        """

    def publish(self, subject: str, data: bytes = b"", headers: Headers | None = None) -> None:
        """Hand a message over; nobody tells whether it arrived. Raises NatsUnavailable without a connection."""

    async def request(
        self, subject: str, data: bytes = b"", headers: Headers | None = None, within: float = 5.0
    ) -> Message:
        """The first answer. Raises NatsUnavailable: no connection, no responders, or none in *within* seconds.

        An answer with a status other than 503 is an answer.
        """

    async def request_many(
        self, subject: str, data: bytes = b"", headers: Headers | None = None, within: float = 5.0
    ) -> list[Message]:
        """All answers up to the first with a status (204, 404, ...), which is the last of the list.

        Of a server that knows no batches it is the one answer, without a status. Raises NatsUnavailable, also when
        the end did not come in *within* seconds after the answer before it.
        """

    async def subscribe(
        self, subject: str, receive: Callable[[Message], None], lost: Callable[[], None] | None = None
    ) -> Subscription:
        """Done when the server knows of it; without a connection, when there is one again.

        *receive* gets the messages in their order. Nothing is dropped here: what comes faster than it is taken waits
        at the server. When that says that it has dropped some, *lost* is called; when it closes the connection
        instead, as servers of today do, that is a loss like any other. Many at a time are confirmed together.
        """
