"""The WebSocket connection: an Autobahn protocol that hands messages to a session.

Autobahn does what is rare: fragments, control frames, compression, the closing handshake. What happens for every
connection and message is done here: the opening handshake (see ``handshake``), whole masked text frames, and
writing frames that were encoded once for many connections. A connection that asks for another path becomes plain
HTTP and is served by the site.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx.cable import codec
from anycable_tx.cable.admission import Arrival
from anycable_tx.cable.commands import receive
from anycable_tx.cable.replies import RequestEnv
from anycable_tx.cable.session import Session
from anycable_tx.errors import BadCommand
from anycable_tx.transports.frames import control_frame, deflated_frame, text_frame, unmask
from anycable_tx.transports.groups import SILENT
from anycable_tx.transports.handshake import Head, Refusal, negotiate, parse_head, refusal_response
from anycable_tx.transports.plain import PlainTransport

if TYPE_CHECKING:
    from anycable_tx.transports.factory import CableFactory

__all__ = ["PRECISIONS", "CableConnection"]

CLOSED, CONNECTING, CLOSING, OPEN = 0, 1, 2, 3
_log = Logger()
#: Nanoseconds per unit of ping timestamps.
PRECISIONS = {"s": 1_000_000_000, "ms": 1_000_000, "ns": 1}
#: Seconds that the transport of a closed connection has to deliver the rest and to end.
LINGER = 10.0
#: A replay goes on once the client has taken so much that fewer bytes than this wait.
HIGH_WATER = 1 << 16


class _Quiet:
    """Autobahn's log: it reports as warnings what is everyday here, such as a client that just goes away."""

    def debug(self, *args: Any, **kwargs: Any) -> None:
        pass

    info = warn = error = debug


class CableConnection(WebSocketServerProtocol):
    """One client connection. Made by ``CableFactory``, which supplies Autobahn's state as class defaults.

    It is the ``Outlet`` of its session.
    """

    __slots__ = ("_http", "_out", "_waiter", "data", "pong_due", "session", "state", "transport", "wire")

    log = _Quiet()
    factory: CableFactory
    #: Nanoseconds per unit of this client's ping timestamps.
    precision = PRECISIONS["s"]
    #: Must this client show life after a ping?
    expects_pongs = False

    if TYPE_CHECKING:
        #: A DirectTransport or a PlainTransport; None once the connection is gone.
        transport: Any
        state: int
        data: bytes
        closeHandshakeTimeout: float
        closeHandshakeTimeoutCall: Any
        wasClean: bool
        current_frame: Any
        inside_message: bool

    def __init__(self) -> None:
        self.state = CONNECTING
        self.data = b""
        self.session: Session | None = None
        self.wire = "plain"
        self.pong_due = 0.0
        self._http: Any = None
        self._out: list[bytes] | None = None
        self._waiter: Deferred[None] | None = None

    # -- Twisted calls these

    def makeConnection(self, transport: Any) -> None:
        """A transport is connected: a DirectTransport, or any of Twisted's."""
        self.transport = transport if self.factory.direct else PlainTransport(transport, self)
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
            self.factory.node.disconnected(session)

    def _cancel_close_timeout(self) -> None:
        call = self.closeHandshakeTimeoutCall
        if call is not None:
            call.cancel()
            self.closeHandshakeTimeoutCall = None

    # -- the opening handshake

    def _handshake(self, data: bytes) -> None:
        if self.data:
            data = self.data + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > self.factory.max_head:
                self._refuse(Refusal(431, "request head too large"))
            else:
                self.data = data
            return
        self.data = b""
        try:
            head = parse_head(data[:end])
            if not self.factory.paths.match(head.path):
                self._serve_http(data)
                return
            upgrade = negotiate(head, self.factory.origins, compression=self.factory.compression)
            self.factory.check_capacity()
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self.state = OPEN
        assert self._out is not None
        self._out.append(upgrade.response)
        if upgrade.deflate:
            self.wire = "deflate"
            self._perMessageCompress = self.factory.decompressor()
        self._open(head, upgrade.token, extended=upgrade.extended)
        rest = data[end + 4 :]
        if rest and self.state == OPEN:
            self._frames(rest)

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

    def _open(self, head: Head, token: str, *, extended: bool) -> None:
        factory = self.factory
        factory.upgraded += 1
        parameters = head.parameters()
        arrival = Arrival(
            self._env(head, token),
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
        if extended or factory.native_pings:
            self.expects_pongs = True
        sid = head.headers.get("x-request-id", "") if factory.request_id_sid else ""
        self.session = factory.node.connected(self, arrival, extended=extended, sid=sid)

    def _env(self, head: Head, token: str) -> RequestEnv:
        factory = self.factory
        headers = {name: value for name in factory.proxy_headers if (value := head.headers.get(name))}
        token = head.headers.get(factory.token_header) or token
        if token:
            headers[factory.token_header] = token
        headers["REMOTE_ADDR"] = self.transport.client[0] if factory.direct else factory.peer(self.transport.real)
        url = head.target
        if "://" not in url.partition("?")[0]:
            url = f"{factory.scheme}://{head.headers.get('host', '')}{url}"
        return RequestEnv(url, headers)

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
            metrics.count("failed_client_msg_total")
            _log.debug("ignored a client frame: {error}", error=e, attrs={"context": "ws", "sid": session.sid})
            if is_text:
                try:
                    payload.decode()
                except UnicodeDecodeError:
                    self.close(1007, "not UTF-8")

    # -- Autobahn's hooks

    def _onOpen(self) -> None:
        pass

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Autobahn writes a control frame: it goes behind what this connection was given before."""
        if self._out is not None:
            self._out.append(data)
        elif self.transport is not None:
            self.transport.write(data)

    def _closeConnection(self, abort: bool = False) -> None:
        """Close; with *abort* at once, unless both sides said goodbye, as a reset would spoil that."""
        self._flush()
        if self.transport is not None:
            if abort and not self.wasClean:
                self.transport.abortConnection()
            else:
                self.transport.loseConnection()
                self._expect_the_end(LINGER)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Write a close frame behind everything this connection was given (CP-138); nothing follows it."""
        if self.state == OPEN:
            if self.session is not None and self.factory.flusher.pending:
                self.session.settle()
            super().sendCloseFrame(code, reasonUtf8, isReply)
            self._show_slot()

    def _expect_the_end(self, seconds: float) -> None:
        """Whatever the client does, the connection will not stay much longer."""
        if self.closeHandshakeTimeoutCall is None:
            self.closeHandshakeTimeoutCall = self.factory.call_later(seconds, self.onCloseHandshakeTimeout)

    def onCloseHandshakeTimeout(self) -> None:
        """The connection did not end in time.

        Whoever still takes what waits for him may go on: those who do not are dropped by the factory. Without a
        backlog the kernel delivers the rest; what even then does not end is dropped.
        """
        self.closeHandshakeTimeoutCall = None
        if self.transport is None:
            return
        if self.transport.backlog:
            self._expect_the_end(self.closeHandshakeTimeout)
        elif self.state == CLOSING:
            self.state = CLOSED
            self._closeConnection()
        else:
            self.transport.abortConnection()

    # -- the session's outlet

    @property
    def slot(self) -> Any:
        """What groups hand this connection's frames to."""
        return self.transport.slot if self.state == OPEN else SILENT

    def _frame(self, payload: bytes) -> bytes:
        return text_frame(payload) if self.wire == "plain" else deflated_frame(payload)

    def send(self, payload: bytes) -> None:
        """Write one message."""
        self.send_all([payload])

    def send_all(self, payloads: list[bytes]) -> None:
        """Write several messages at once."""
        if self.state != OPEN or not payloads:
            return
        metrics = self.factory.metrics
        metrics.count("server_msg_total", len(payloads))
        metrics.count("data_sent_total", sum(map(len, payloads)))
        self.write(b"".join(map(self._frame, payloads)))

    def write(self, data: bytes) -> None:
        """Write framed bytes."""
        if self.state != OPEN:
            return
        if self._out is not None:
            self._out.append(data)
        elif self.transport is not None:
            self.transport.write(data)

    def queue(self, data: bytes) -> None:
        """Queue framed bytes of which a part was sent directly."""
        if self.state == OPEN and self.transport is not None:
            self.transport.queue(data)

    def _flush(self) -> None:
        """Write what was held back while reading."""
        if self._out:
            out, self._out = self._out, []
            if self.transport is not None:
                self.transport.write(b"".join(out))

    def close(self, code: int, reason: str) -> None:
        """Write a close frame and wait a moment for the client's."""
        if self.state == OPEN:
            self.factory.metrics.count("closed_connections_total", reason=str(code))
            self.sendCloseFrame(code, reason.encode()[:123])

    def drained(self) -> Deferred[None] | None:
        """None while little waits to be written; else done when the queue is empty or the connection gone."""
        self._flush()
        if self.transport is None or self.transport.backlog < HIGH_WATER:
            return None
        if self._waiter is None:
            self._waiter = Deferred()
        return self._waiter

    def _release_waiter(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def pause(self) -> None:
        """Stop reading."""
        if self.transport is not None:
            self.transport.stopReading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and self.state == OPEN:
            self.transport.startReading()

    # -- the transport's notices

    def _show_slot(self) -> None:
        """The slot changed: groups have to know."""
        session = self.session
        if session is not None and self.transport is not None:
            slot = self.slot
            for subscription in session.subscriptions.values():
                for attachment in subscription.attachments:
                    if attachment.group is not None:
                        attachment.group.slow(attachment, slot)  # type: ignore[attr-defined]

    def slow_changed(self, slow: bool) -> None:
        """The backlog appeared or is gone."""
        if self.factory.direct:
            self._show_slot()
        if slow:
            self.factory.slow_connection(self)
        else:
            self._release_waiter()

    def backlogged(self, size: int) -> None:
        """*size* bytes more were queued for a slow reader: beyond the limit it is let go (P7).

        What counts is what waited before, so that no single message, however large, makes a reader slow.
        """
        limit = self.factory.max_pending_size
        if limit and self.state == OPEN and self.session is not None and self.transport.backlog - size >= limit:
            self.factory.metrics.count("disconnected_slow_clients_total")
            self.transport.drop_queue()
            self.state = CLOSING  # nothing else is written
            self._show_slot()
            self.transport.write(text_frame(codec.disconnect_frame("too_slow", True)) + control_frame(8, b"\x03\xe8"))
            self._expect_the_end(self.closeHandshakeTimeout)

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
        """The client was silent too long after a ping."""
        if self.session is not None:
            self.factory.metrics.count("closed_connections_total", reason="no_pong")
            self.session.disconnect(1000, "No Pong", "no_pong", reconnect=True)
