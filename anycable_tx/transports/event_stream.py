"""A response of server-sent events: the shell of a session whose client reads over plain HTTP.

The request took its connection with it: from here on the response is all there is on it, and it ends with it. What a
client is told before its subscriptions stand is held back, because until then the answer may be a refusal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import RESPONSES, datetimeToString

from anycable_tx.cable import codec
from anycable_tx.cable.admission import Arrival
from anycable_tx.cable.codec import Command
from anycable_tx.cable.commands import open_subscription, settle
from anycable_tx.cable.replies import Status
from anycable_tx.cable.session import Session
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.transports.clients import Clients
from anycable_tx.transports.events import EventWire, event_id
from anycable_tx.transports.outlet import CLOSED, CLOSING, LINGER, OPEN, ClientOutlet, label

if TYPE_CHECKING:
    from anycable_tx.transports.event_endpoint import EventEndpoint

__all__ = ["EventStream"]

_log = Logger()
#: The close codes of a session that was refused, and of one that may do better the next time.
_NORMAL, _TRY_AGAIN = 1000, 1011
#: The headers of an answer that has begun: they need no memory any more.
_SPENT: Mapping[str, str] = {}
#: The notices that say where a subscription stands.
_PLACED = frozenset(("confirm_subscription", "confirm_history", "reject_history"))


class EventStream(ClientOutlet):
    """The outlet of one response, and what becomes of its connection. *headers* are those that every answer has.

    A client that is refused gets a status. One that may come back gets an event that says so: browsers give up for
    good when they read any other status than 200.
    """

    __slots__ = (
        "_asking",
        "_commands",
        "_endpoint",
        "_headers",
        "_held",
        "_linger",
        "_opening",
        "_refusal",
        "_waiter",
        "counted_as",
        "ending",
        "factory",
        "pong_due",
        "session",
        "state",
        "transport",
        "wire",
    )
    kind = "server-sent events"
    wire: EventWire

    def __init__(
        self,
        clients: Clients,
        endpoint: EventEndpoint,
        wire: EventWire,
        headers: Mapping[str, str],
        commands: list[Command],
    ) -> None:
        self.factory = clients
        self.wire = wire
        self.state = OPEN
        self.ending = ""
        self.session: Session | None = None
        self.transport: Any = None
        self.counted_as: str | None = None
        #: Nobody waits for a pong.
        self.pong_due = 0.0
        self._endpoint = endpoint
        self._headers = headers
        self._commands = commands
        self._asking = frozenset(command.identifier for command in commands if command.history is not None)
        #: What is written once the answer is known to be no refusal; None since then.
        self._held: list[bytes] | None = []
        #: The subscriptions do not stand yet.
        self._opening = True
        self._refusal: tuple[int, str, str] | None = None
        self._waiter: Deferred[None] | None = None
        self._linger: Any = None

    # -- the beginning

    def open(self, arrival: Arrival, sid: str) -> None:
        """Let the client in, and subscribe it."""
        self.factory.upgraded += 1
        self.session = self.factory.node.connected(self, arrival, extended=True, resumable=False, sid=sid)
        self.session.enqueue(self._subscribe)

    async def _subscribe(self) -> None:
        """All subscriptions stand before anything of them is sent: the first refusal is the answer."""
        session = self.session
        if session is None or not session.is_open():
            return
        session.services.metrics.count("client_msg_total", len(self._commands))
        try:
            opened = []
            for command in self._commands:
                opening = await open_subscription(session, command)
                if opening.status is Status.ERROR:
                    session.disconnect(_TRY_AGAIN, "Undecided")
                elif opening.status is Status.FAILURE:
                    self._refusal = (400, "rejected", "the subscription was rejected")
                    session.disconnect(_NORMAL, "Rejected")
                if not session.is_open():
                    return
                opened.append(opening)
            self._opening = False
            if not (self.wire.raw and self._asking):
                self._commit()
            for opening in opened:
                if session.is_open():
                    await settle(opening)
            self._commit()
        except BrokerUnavailable:
            session.services.metrics.count("broker_errors_total")
            session.disconnect(_TRY_AGAIN, "Broker unavailable")
        except BaseException:
            session.disconnect(_TRY_AGAIN, "Internal error")
            raise

    def _commit(self) -> None:
        """It is no refusal: the client gets what was held back, and what follows at once."""
        if self._held is None or self.state != OPEN:
            return
        held, self._held = self._held, None
        self.transport.write(self._head(200) + b"".join(held))
        self._headers, self._commands = _SPENT, []
        self._endpoint.open.add(self)
        if self.factory.ping_interval > 0:
            self.factory.heartbeat.add(self, self.factory.ping_interval)

    def _head(self, status: int, body: bytes | None = None) -> bytes:
        headers = {"Server": "anycable-tx", "Date": datetimeToString().decode(), **self._headers}
        if body is not None:
            headers |= {"Content-Length": str(len(body)), "Connection": "close"}
            if body:
                headers["Content-Type"] = "application/json; charset=utf-8"
        elif self.wire.chunked:
            headers |= {"Transfer-Encoding": "chunked", "Connection": "keep-alive"}
        else:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {RESPONSES[status].decode()}", *(f"{n}: {v}" for n, v in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")

    # -- what is written

    @property
    def slot(self) -> Any:
        """What groups hand events to. Whoever asks is about to write, so the answer begins."""
        self._commit()
        return super().slot

    def send_all(self, payloads: list[bytes]) -> None:
        """Write messages of the protocol as events."""
        events = []
        for payload in payloads:
            value = _object(payload)
            if self.wire.raw and value is not None and value.get("type") == "reject_history":
                self._lost()
                return
            written = self.wire.notice(payload, value, self._place(value))
            if written:
                events.append(written)
        self.deliver(events)

    def write(self, data: bytes) -> None:
        """Write framed bytes, or hold them back."""
        if self._held is None or self.state != OPEN:
            super().write(data)
            return
        self._held.append(data)
        if not self._opening:
            self._commit()

    def _place(self, value: dict[str, Any] | None) -> bytes:
        """The id of the place a notice speaks of; so a client that is cut before its first message can resume."""
        session = self.session
        if value is None or session is None or value.get("type") not in _PLACED:
            return b""
        identifier = value.get("identifier")
        subscription = session.subscriptions.get(identifier) if isinstance(identifier, str) else None
        if subscription is None or (value["type"] == "confirm_subscription" and identifier in self._asking):
            return b""  # before the answer to what it asked for, the client stands where it stood
        ids = (event_id(a.stream.name, a.cursor) for a in subscription.attachments if a.held)
        return next(filter(None, ids), b"")

    def _lost(self) -> None:
        """A raw client is told by the end of the response, or by its status, that something is missing."""
        assert self.session is not None
        if self._held is not None:
            self._refusal = (410, "history", "what was missed cannot be had any more")
        self.session.disconnect(_NORMAL, "History lost")

    # -- liveness

    def is_alive(self) -> bool:
        """Is a session connected?"""
        return self.session is not None and self.state == OPEN

    def ping(self) -> None:
        """Write a ping behind everything this connection was given."""
        if self.session is not None:
            if self.factory.flusher.pending:
                self.session.settle()
            ping = self.wire.ping(time.time_ns() // self.factory.precision)
            self.factory.metrics.count("data_sent_total", len(ping))
            self.write(self.wire.frame(ping))

    def pong_missing(self) -> None:
        """Nobody has to answer."""

    def opening_timed_out(self) -> None:
        """The request was there in time."""

    def pause(self) -> None:
        """There are no commands to hold up."""

    def resume(self) -> None:
        """Nothing was paused."""

    # -- the end

    def close(self, code: int, reason: str) -> None:
        """The session ended: with a refusal if the answer has not begun, else with the end of the response."""
        if self.state != OPEN:
            return
        if self._held is None:
            self.ends(label(reason))
            self._end(self.wire.end)
        elif code == _TRY_AGAIN:
            self.turn_away("unavailable")
        elif self._refusal is not None:
            self._refuse(*self._refusal)
        elif self.session is None or self.session.is_closed() or not self.session.was_admitted():
            self._refuse(401, "unauthorized")
        else:
            self._commit()
            self.close(code, reason)

    def turn_away(self, reason: str) -> None:
        """The client is welcome, but not now."""
        self._refused(reason)
        frame = codec.disconnect_frame(reason.replace(" ", "_"), True)
        farewell = self.wire.notice(frame, orjson.loads(frame))
        self._end(self._head(200) + (self.wire.frame(farewell) if farewell else b"") + self.wire.end)

    def _refuse(self, status: int, reason: str, text: str = "") -> None:
        self._refused(reason)
        self._end(self._head(status, orjson.dumps({"error": text}) if text else b""))

    def _refused(self, reason: str) -> None:
        self._endpoint.refused(reason)
        self._held = None
        if self.session is not None:
            self.ends("refused")

    def _let_go(self) -> None:
        frame = codec.disconnect_frame("too_slow", True)
        farewell = self.wire.notice(frame, orjson.loads(frame))
        self._end((self.wire.frame(farewell) if farewell else b"") + self.wire.end)

    def _end(self, last: bytes) -> None:
        """Write *last*; the connection ends when the client has taken it."""
        self.state = CLOSING
        self.transport.write(last)
        self.transport.loseConnection()
        self._linger = self.factory.call_later(LINGER, self._expire)

    def _expire(self) -> None:
        """Whoever still takes what waits may go on: those who do not are dropped with the stalled."""
        self._linger = None
        if self.transport is not None:
            if self.transport.backlog:
                self._linger = self.factory.call_later(LINGER, self._expire)
            else:
                self.transport.abortConnection()

    # -- Twisted calls these

    def dataReceived(self, data: bytes) -> None:
        """Whatever the client says now is none of our business."""

    def connectionLost(self, reason: Any = None) -> None:
        """The connection is gone."""
        session, self.session = self.session, None
        self.state = CLOSED
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._endpoint.open.discard(self)
        self.factory.connection_lost(self, upgraded=session is not None)
        self.transport = None
        self._release_waiter()
        if session is not None:
            self.factory.node.disconnected(session)


def _object(payload: bytes) -> dict[str, Any] | None:
    """The JSON object in *payload*, if it is one."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
