"""The WebSocket connection: an Autobahn protocol that hands messages to a session.

Autobahn does what is rare: fragments, control frames, compression, the closing handshake. What happens for every
connection and message is done here: the opening handshake (see ``handshake``) and whole masked text frames; for
what leaves the connection see ``outlet``. A connection that asks for another path becomes plain HTTP and is served
by the site.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from anycable_tx.cable.admission import Arrival
from anycable_tx.cable.commands import receive
from anycable_tx.errors import BadCommand
from anycable_tx.transports.clients import PRECISIONS
from anycable_tx.transports.cors import ANY
from anycable_tx.transports.frames import DEFLATE, unmask
from anycable_tx.transports.handshake import Head, Refusal, negotiate, parse_head, refusal_response
from anycable_tx.transports.outlet import CLOSED, CONNECTING, OPEN, WritingSide
from anycable_tx.transports.plain import PlainTransport

if TYPE_CHECKING:
    from anycable_tx.node import Node

__all__ = ["CableConnection"]

_log = Logger()


class CableConnection(WritingSide):
    """One client connection. Made by ``CableFactory``, which supplies Autobahn's state as class defaults."""

    __slots__ = ("_http", "pong_due")

    #: Nanoseconds per unit of this client's ping timestamps.
    precision = PRECISIONS["s"]
    #: Will the transport be the direct path's?
    direct = False
    #: Must this client show life after a ping?
    expects_pongs = False
    #: What Addresses calls the client's address; None where they are not counted.
    counted_as: str | None = None

    if TYPE_CHECKING:
        current_frame: Any
        inside_message: bool

    def __init__(self) -> None:
        super().__init__()
        self.pong_due = 0.0
        self._http: Any = None

    # -- Twisted calls these

    def makeConnection(self, transport: Any) -> None:
        """A transport is connected: a DirectTransport, or any of Twisted's."""
        self.transport = transport if self.direct else PlainTransport(transport, self)
        self.factory.connection_made(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived. What is written meanwhile leaves in one piece."""
        if self._http is not None:
            self._http.dataReceived(data)
            return
        if self.transport is None or self.state == CLOSED:
            return
        self.pong_due = 0.0
        self._out = []
        try:
            if self.state == CONNECTING:
                self._handshake(data)
            else:
                self._frames(data)
        finally:
            out, self._out = self._out, None
            if out:
                self.transport.write(b"".join(out))

    def connectionLost(self, reason: Any = None) -> None:
        """The connection is gone."""
        if self._http is not None:
            http, self._http, self.transport = self._http, None, None
            http.connectionLost(reason)
            return
        session, self.session = self.session, None
        self.state = CLOSED
        self._cancel_close_timeout()
        self.factory.connection_lost(self, upgraded=session is not None)
        self.transport = None
        self._release_waiter()
        if session is not None:
            session.services.disconnected(session)

    # -- the opening handshake

    def _handshake(self, data: bytes) -> None:
        if self.data:
            data = self.data + data
        end = data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(data)) > self.factory.max_head:
            self._refuse(Refusal(431, "request head too large"))
            return
        if end < 0:
            self.data = data
            return
        self.data = b""
        try:
            head = parse_head(data[:end])
            factory = self.factory
            if head.path not in factory.side_doors and not factory.paths.match(head.path):
                self._serve_http(data)
                return
            self._upgrade(head)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        rest = data[end + 4 :]
        if rest and self.state == OPEN:
            self._frames(rest)

    def answer(self, head: Head) -> None:
        """Answer a request whose head somebody else has read; what follows it comes to ``dataReceived``."""
        self._out = []
        try:
            self._upgrade(head)
        except Refusal as refusal:
            self._refuse(refusal)
        finally:
            self._flush()
            self._out = None

    def _upgrade(self, head: Head) -> None:
        """Raises Refusal."""
        factory = self.factory
        node = factory.side_doors.get(head.path, factory.node)
        usual = node is factory.node
        upgrade = negotiate(head, factory.origins if usual else ANY, compression=factory.compression)
        factory.admit(self, head, limited=usual)
        self.state = OPEN
        assert self._out is not None
        self._out.append(upgrade.response)
        if upgrade.deflate:
            self.wire = DEFLATE
            self._perMessageCompress = self.factory.decompressor()
        self._open(node, head, upgrade.token, extended=upgrade.extended)

    def _refuse(self, refusal: Refusal) -> None:
        self.factory.refused(refusal)
        self.state = CLOSED
        assert self._out is not None
        self._out.append(refusal_response(refusal))
        self._closeConnection()

    def _serve_http(self, data: bytes) -> None:
        """Not ours: the site takes the connection over."""
        self._out = None
        self._http = self.factory.http_channel(self)
        self._http.dataReceived(data)

    def hand_over(self, successor: Any) -> Any:
        """From now on the connection, which is plain HTTP, is *successor*'s; answers the transport it writes to."""
        transport = self.transport
        self.factory.connections += 1
        if transport.direct:
            self._http = self.transport = None
            transport.protocol = successor
            return transport
        self._http = successor
        return PlainTransport(transport.real, successor)

    def _open(self, node: Node, head: Head, token: str, *, extended: bool) -> None:
        factory = self.factory
        factory.upgraded += 1
        parameters = head.parameters()
        arrival = Arrival(
            factory.envs.read(head, token, factory.peer(self.transport)),
            (head.headers.get("x-anycable-restore-sid") or parameters.get("sid", "")) if extended else "",
        )
        interval = factory.ping_interval
        if "pi" in parameters:
            with suppress(ValueError, OverflowError):
                interval = float(int(parameters["pi"]))
        precision = parameters.get("ptp")
        if precision is not None:
            self.precision = PRECISIONS.get(precision, PRECISIONS["s"])
        if interval > 0:
            factory.heartbeat.add(self, interval)
        if factory.expects_pongs and (extended or factory.native_pings):
            self.expects_pongs = True
        sid = head.headers.get("x-request-id", "") if factory.request_id_sid else ""
        self.session = node.connected(self, arrival, extended=extended, sid=sid)

    def opening_timed_out(self) -> None:
        """The time for the request head is up."""
        if self.state == CONNECTING and self._http is None and self.transport is not None:
            self.factory.refused(Refusal(400, "handshake timeout"))
            self.transport.abortConnection()

    # -- reading

    def _frames(self, data: bytes) -> None:
        """Take whole, small, unfragmented text frames; whatever else comes is Autobahn's."""
        if self.state != OPEN or self.inside_message or self.current_frame is not None:
            self._dataReceived(data)
            return
        if self.data:
            data = self.data + data
            self.data = b""
        start, end = 0, len(data)
        limit = self.factory.max_message_size
        while end - start >= 6:
            size = data[start + 1] - 128
            body = start + 6
            if size == 126 and end - start >= 8:
                size = data[start + 2] << 8 | data[start + 3]
                body = start + 8
                usual = size > 125
            else:
                usual = 0 <= size < 126
            if data[start] != 0x81 or not usual or size > limit:
                self._dataReceived(data[start:])
                return
            if body + size > end:
                break
            self._text(unmask(data[body : body + size], data[body - 4 : body]), is_text=True)
            start = body + size
            if self.state != OPEN:
                return
        if end - start >= 2 and (data[start] != 0x81 or data[start + 1] < 128):
            self._dataReceived(data[start:])  # what it begins with may be wrong already
        else:
            self.data = data[start:]

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message that came through Autobahn."""
        if self.state == OPEN:
            self._text(payload, is_text=not isBinary)

    def _text(self, payload: bytes, *, is_text: bool) -> None:
        session = self.session
        if session is None:
            return
        metrics = self.factory.metrics
        metrics.count("data_rcvd_total", len(payload))
        try:
            receive(session, payload)
        except BadCommand as e:
            metrics.count("failed_client_msg_total", reason="malformed")
            _log.debug("ignored a client frame: {error}", error=e, attrs={"context": "ws", "sid": session.sid})
            if is_text:
                try:
                    payload.decode()
                except UnicodeDecodeError:
                    self.close(1007, "not UTF-8")

    # -- liveness

    def is_alive(self) -> bool:
        """Is a session connected?"""
        return self.session is not None and self.state == OPEN

    def ping(self) -> None:
        """Write a ping behind everything this connection was given (CP-136)."""
        session = self.session
        if session is None:
            return
        if self.factory.flusher.pending:
            session.settle()
        self.write(self.factory.ping_frame(self.precision))
        if self.expects_pongs:
            self.factory.heartbeat.expect_pong(self)

    def pong_missing(self) -> None:
        """The client was silent too long after a ping; unless nobody listened to it (CP-133)."""
        if not self.reading:
            self.pong_due = 0.0
        elif self.session is not None:
            self.ends("no_pong")
            self.session.disconnect(1000, "No Pong", "no_pong", reconnect=True)
