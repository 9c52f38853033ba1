"""The writing side of a connection: everything that leaves it, in order, and how it ends.

Frames that were encoded once for many connections come framed; others are framed here. A reader that is too slow is
let go. ``ClientOutlet`` is what all transports have in common. ``WritingSide`` is that of a WebSocket: what is
written while it reads is held back and leaves in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx.cable import codec
from anycable_tx.cable.session import Session
from anycable_tx.transports.frames import PLAIN, control_frame, text_frame
from anycable_tx.transports.groups import SILENT

if TYPE_CHECKING:
    from anycable_tx.cable.fanout import Wire
    from anycable_tx.transports.clients import Clients
    from anycable_tx.transports.factory import CableFactory

__all__ = ["CLOSED", "CLOSING", "CONNECTING", "LINGER", "OPEN", "ClientOutlet", "WritingSide", "label"]

_log = Logger()
#: Autobahn's states.
CLOSED, CONNECTING, CLOSING, OPEN = 0, 1, 2, 3
#: Seconds that the transport of a closed connection has to deliver the rest and to end.
LINGER = 10.0
#: A replay goes on once the client has taken so much that fewer bytes than this wait.
HIGH_WATER = 1 << 16


def label(text: str) -> str:
    """The reason that a close frame gives, as one for a counter."""
    return text.lower().replace(" ", "_")


class _Quiet:
    """Autobahn's log: it reports as warnings what is everyday here, such as a client that just goes away."""

    def debug(self, *args: Any, **kwargs: Any) -> None:
        pass

    info = warn = error = debug


class ClientOutlet:
    """The ``Outlet`` of a session, but for what the ends of the transports have of their own."""

    if TYPE_CHECKING:
        factory: Clients
        #: A DirectTransport or a PlainTransport; None once the connection is gone.
        transport: Any
        counted_as: str | None
        session: Session | None
        state: int
        wire: Wire
        #: Why the connection ends, once that is known; until then ''.
        ending: str
        _waiter: Deferred[None] | None
    else:
        __slots__ = ()

    #: What kind of connection it is, for people.
    kind = "WebSocket"

    @property
    def address(self) -> str:
        """The IP address at its other end; '' once it is gone."""
        return "" if self.transport is None else self.factory.peer(self.transport)

    @property
    def backlog(self) -> int:
        """Bytes that wait because the client reads too slowly."""
        return 0 if self.transport is None else int(self.transport.backlog)

    def ends(self, reason: str) -> None:
        """The connection ends: count that, once and with the first reason."""
        if not self.ending:
            self.ending = reason
            self.factory.metrics.count("closed_connections_total", reason=reason)

    def _let_go(self) -> None:
        """The reader is too slow: tell it, and end the connection. Nothing else is written."""
        raise NotImplementedError

    def _flush(self) -> None:
        """Write what was held back."""

    @property
    def slot(self) -> Any:
        """What groups hand this connection's frames to."""
        return self.transport.slot if self.state == OPEN else SILENT

    def send(self, payload: bytes) -> None:
        """Write one message of the protocol."""
        self.send_all([payload])

    def send_all(self, payloads: list[bytes]) -> None:
        """Write several messages of the protocol at once."""
        self.deliver(payloads)

    def deliver(self, payloads: list[bytes]) -> None:
        """Write several messages, as clients of this wire format read them."""
        if self.state != OPEN or not payloads:
            return
        metrics = self.factory.metrics
        metrics.count("server_msg_total", len(payloads))
        metrics.count("data_sent_total", sum(map(len, payloads)))
        self.write(b"".join(map(self.wire.frame, payloads)))

    def write(self, data: bytes) -> None:
        """Write framed bytes."""
        if self.state == OPEN and self.transport is not None:
            self.transport.write(data)

    def queue(self, data: bytes) -> None:
        """Queue framed bytes of which a part was sent directly."""
        if self.state == OPEN and self.transport is not None:
            self.transport.queue(data)

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
        if self.transport is not None and self.transport.direct:
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
            _log.debug("slow client", attrs={"context": "ws", "sid": self.session.sid})
            self.ends("too_slow")
            self.transport.drop_queue()
            self.state = CLOSING
            self._show_slot()
            self._let_go()


class WritingSide(ClientOutlet, WebSocketServerProtocol):  # type: ignore[misc]
    """The outlet of a WebSocket. Autobahn makes the control frames and runs the closing handshake."""

    __slots__ = ("_out", "_waiter", "data", "session", "state", "transport", "wire")

    log = _Quiet()
    factory: CableFactory
    #: What the client says is taken; not while too many of its commands wait.
    reading = True
    ending = ""

    if TYPE_CHECKING:
        data: bytes
        closeHandshakeTimeout: float
        closeHandshakeTimeoutCall: Any
        wasClean: bool

    def __init__(self) -> None:
        self.state = CONNECTING
        self.data = b""
        self.session: Session | None = None
        self.wire = PLAIN
        self._out: list[bytes] | None = None
        self._waiter: Deferred[None] | None = None

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
            self.ends("client" if isReply else str(code))
            super().sendCloseFrame(code, reasonUtf8, isReply)
            self._show_slot()

    def _cancel_close_timeout(self) -> None:
        call = self.closeHandshakeTimeoutCall
        if call is not None:
            call.cancel()
            self.closeHandshakeTimeoutCall = None

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

    def write(self, data: bytes) -> None:
        """Write framed bytes."""
        if self.state == OPEN and self._out is not None:
            self._out.append(data)
        else:
            super().write(data)

    def _flush(self) -> None:
        """Write what was held back while reading."""
        if self._out:
            out, self._out = self._out, []
            if self.transport is not None:
                self.transport.write(b"".join(out))

    def close(self, code: int, reason: str) -> None:
        """Write a close frame and wait a moment for the client's."""
        if self.state == OPEN:
            self.ends(label(reason))
            self.sendCloseFrame(code, reason.encode()[:123])

    def _let_go(self) -> None:
        self.transport.write(text_frame(codec.disconnect_frame("too_slow", True)) + control_frame(8, b"\x03\xe8"))
        self._expect_the_end(self.closeHandshakeTimeout)

    def pause(self) -> None:
        """Stop reading."""
        if self.transport is not None:
            self.reading = False
            self.transport.stopReading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and self.state == OPEN:
            self.reading = True
            self.transport.startReading()
