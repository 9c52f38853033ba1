"""The shared client: one connection for each node, whatever asks for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger

from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.nats.api import Headers, Message, Nats, NatsUnavailable, Subscription, TooLarge
from anycable_tx.nats.connection import Connection
from anycable_tx.nats.headers import encode
from anycable_tx.nats.inbox import Inbox
from anycable_tx.nats.subscriptions import Subscriptions
from anycable_tx.nats.upkeep import Upkeep

__all__ = ["Client", "shared"]

#: So many seconds a start waits for the connection, and a stop for what is still to be sent.
_PATIENCE, _FAREWELL = 5.0, 2.0
_SUBJECT = re.compile(r"[^\x00-\x20\x7f]+")
_LONGEST = 2000

_clients: WeakKeyDictionary[Any, Client] = WeakKeyDictionary()


def shared(context: ProviderContext) -> Nats:
    """The client of ``context.node``. Raises ConfigurationError."""
    client = _clients.get(context.node)
    if client is None:
        client = _clients[context.node] = Client(context.settings, context.reactor, context.metrics)
    return client


class Client:
    """``Nats``, as *settings* say; *reactor* has to run on asyncio. Raises ConfigurationError."""

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> None:
        metrics.has("nats")
        self._reactor = reactor
        self._metrics = metrics
        self._upkeep = Upkeep(
            settings, reactor, metrics, came=self._came, went=self._went, received=self._received
        )  # fmt: skip
        self.log_name = ",".join(map(str, self._upkeep.servers))
        self._inbox = Inbox(reactor)
        self._subscriptions = Subscriptions(reactor)
        self._answers = self._subscriptions.add(self._inbox.subject, self._inbox.received)
        self._watchers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._users = 0
        self._starting: list[Deferred[None]] = []
        #: Done when the server has all that was sent before the end.
        self._farewell: Deferred[None] | None = None
        self._is_up = False
        #: Is the next time that it is up to be told?
        self._tell = False

    async def start(self) -> None:
        """Begin to connect, and wait up to five seconds for that."""
        self._users += 1
        if self._users == 1:
            self._upkeep.start()
        if self._is_up:
            return
        ready: Deferred[None] = Deferred()
        self._starting.append(ready)
        try:
            await ready.addTimeout(_PATIENCE, self._reactor)
        except TimeoutError:
            self._tell = True
        finally:
            if ready in self._starting:
                self._starting.remove(ready)

    async def stop(self) -> None:
        """Send what waits, and close. Counted: the last of those that started it stops it."""
        self._users -= 1
        if self._users:
            return
        if self._is_up:
            self._farewell = self._subscriptions.joined()
            with suppress(TimeoutError, CancelledError):
                await self._farewell.addTimeout(_FAREWELL, self._reactor)
        await self._upkeep.stop()
        self._subscriptions.end("NATS: the client was stopped")
        self._answers = self._subscriptions.add(self._inbox.subject, self._inbox.received)
        self._tell, self._farewell = False, None
        self._release()

    def problem(self) -> str:
        """Why nothing can be asked now, '' when all is well; for readiness."""
        return "" if self._is_up else f"NATS: {self._upkeep.why or 'the subscriptions are not confirmed yet'}"

    def watch(self, *, up: Callable[[], None], down: Callable[[], None]) -> None:
        """Call *down* when the connection is lost, and *up* when it is back with all subscriptions."""
        self._watchers.append((up, down))

    def publish(self, subject: str, data: bytes = b"", headers: Headers | None = None) -> None:
        """Hand a message over; nobody tells whether it arrived. Raises NatsUnavailable without a connection."""
        self._send(subject, "", data, headers)

    async def request(
        self, subject: str, data: bytes = b"", headers: Headers | None = None, within: float = _PATIENCE
    ) -> Message:
        """The first answer. Raises NatsUnavailable: no connection, no responders, or none in *within* seconds."""
        (answer,) = await self._ask(subject, data, headers, within, many=False)
        return answer

    async def request_many(
        self, subject: str, data: bytes = b"", headers: Headers | None = None, within: float = _PATIENCE
    ) -> list[Message]:
        """All answers up to the first with a status, or the only one; see ``Nats``."""
        return await self._ask(subject, data, headers, within, many=True)

    async def subscribe(
        self, subject: str, receive: Callable[[Message], None], lost: Callable[[], None] | None = None
    ) -> Subscription:
        """Done when the server knows of it; without a connection, when there is one again."""
        _check(subject)
        if "" in (tokens := subject.split(".")) or ">" in tokens[:-1]:
            raise ValueError(f"{subject!r} is no subject")
        interest = self._subscriptions.add(subject, receive, lost)
        try:
            await self._subscriptions.joined()
        except BaseException:
            interest.end()
            raise
        return interest

    async def _ask(
        self, subject: str, data: bytes, headers: Headers | None, within: float, many: bool
    ) -> list[Message]:
        self._need_connection()
        reply, answers = self._inbox.expect(subject, within, many=many)
        try:
            self._send(subject, reply, data, headers)
        except BaseException:
            self._inbox.forget(reply)
            raise
        return await answers

    def _send(self, subject: str, reply: str, data: bytes, headers: Headers | None) -> None:
        _check(subject)
        connection = self._need_connection()
        block = encode(headers) if headers else b""
        size = len(block) + len(data)
        if size > connection.max_payload:
            self._metrics.count("nats_refused_messages_total", reason="too_large")
            raise TooLarge(f"NATS: {subject}: {size} bytes, and the server takes {connection.max_payload}")
        opening = f"HPUB {subject} {reply} {len(block)} {size}\r\n" if block else f"PUB {subject} {reply} {size}\r\n"
        try:
            connection.send(opening.encode(), block, data, b"\r\n")
        except NatsUnavailable:
            self._metrics.count("nats_refused_messages_total", reason="too_many")
            raise

    def _need_connection(self) -> Connection:
        connection = self._upkeep.connection
        if connection is None or not self._is_up:
            self._metrics.count("nats_refused_messages_total", reason="unavailable")
            raise NatsUnavailable(self.problem())
        return connection

    def _came(self, connection: Connection) -> None:
        self._subscriptions.came(connection, self._ready)

    def _ready(self) -> None:
        self._is_up = True
        tell, self._tell = self._tell, True
        self._release()
        if tell:
            for up, _ in self._watchers:
                self._call(up)

    def _went(self, why: str) -> None:
        was_up, self._is_up = self._is_up, False
        self._subscriptions.went()
        self._inbox.fail_all(why)
        if self._farewell is not None:
            self._farewell.cancel()
        if "slow consumer" in why:
            self._metrics.count("nats_slow_consumers_total")
            for each in self._subscriptions:
                if each.lost is not None:
                    self._call(each.lost)
        if was_up and self._users:
            for _, down in self._watchers:
                self._call(down)

    def _received(self, sid: int, message: Message) -> None:
        interest = self._subscriptions.get(sid)
        if interest is not None:
            self._call(interest.receive, message)

    def _release(self) -> None:
        starting, self._starting = self._starting, []
        for ready in starting:
            ready.callback(None)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """What others do with it is not to end the connection."""
        try:
            function(*args)
        except Exception:
            self._metrics.count("internal_errors_total")
            self.log.failure("NATS: unexpected error in a receiver")


def _check(subject: str) -> None:
    """A subject that is none would end the connection, or be another command."""
    if not _SUBJECT.fullmatch(subject) or len(subject.encode()) > _LONGEST:
        raise ValueError(f"{subject[:100]!r} is no subject")
