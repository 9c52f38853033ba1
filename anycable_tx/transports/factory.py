"""What all WebSocket connections of a listener share: options, Autobahn's defaults, the way to plain HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from twisted.web.server import Site

from anycable_tx.node import Node
from anycable_tx.transports.clients import Clients
from anycable_tx.transports.frames import control_frame, text_frame
from anycable_tx.transports.groups import Flusher
from anycable_tx.transports.handshake import Refusal
from anycable_tx.transports.paths import PathPatterns
from anycable_tx.transports.websocket import CableConnection

__all__ = ["CableFactory"]


class _Timer:
    """Autobahn's source of timers, on the given reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def call_later(self, delay: float, function: Any) -> Any:
        return self._reactor.callLater(delay, function)


class _Resolved:
    """Stands for Autobahn's Deferreds that tell of opening and closing, which nobody waits for."""

    def callback(self, result: Any) -> None:
        pass


class CableFactory(Clients, WebSocketServerFactory):  # type: ignore[misc]
    """Makes connections. *direct* tells whether they will be given the direct path's transport."""

    noisy = False

    def __init__(
        self, settings: Mapping[str, Any], reactor: Any, node: Node, flusher: Flusher, site: Site, *, direct: bool
    ) -> None:
        WebSocketServerFactory.__init__(self, reactor=reactor)
        Clients.__init__(self, settings, reactor, node, flusher, direct=direct)
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=False,
            failByDrop=False,
            echoCloseCodeReason=True,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=1,
            maxMessagePayloadSize=settings["max_message_size"],
            maxFramePayloadSize=settings["max_message_size"],
            autoPingInterval=0,
        )
        self._batched_timer = _Timer(reactor)
        self.site = site
        self.paths = PathPatterns(settings["path"])
        #: Other paths, whose clients are those of another node. Neither the limits nor the origins are for them.
        self.side_doors: dict[str, Node] = {}
        self.compression: bool = settings["enable_ws_compression"]
        self.max_head: int = settings["max_header_size"]
        self.max_message_size: int = settings["max_message_size"]
        self.native_pings: bool = settings["enable_native_pings"]
        self.expects_pongs = settings["pong_timeout"] > 0
        self._connection = self._connection_class()
        self._mounted = type("Mounted", (self._connection,), {"__slots__": (), "direct": False})

    def _connection_class(self) -> type[CableConnection]:
        """A class whose defaults are what Autobahn sets on every instance, so that instances need not."""
        scratch = WebSocketServerProtocol()
        scratch.factory = self
        scratch._connectionMade()
        self.countConnections = 0
        resolved = _Resolved()
        own = {slot for base in CableConnection.__mro__ for slot in vars(base).get("__slots__", ())}
        defaults = {name: value for name, value in vars(scratch).items() if name not in own}
        defaults.update(
            __slots__=(),
            factory=self,
            direct=self.direct,
            peer="",
            precision=self.precision,
            is_open=resolved,
            is_closed=resolved,
            send_queue=(),
            utf8validator=None,
            inside_message=False,
            current_frame=None,
            websocket_version=13,
        )
        return type("Connection", (CableConnection,), defaults)

    def buildProtocol(self, addr: Any) -> Any:
        """A new connection."""
        return self._connection()

    def build_mounted(self) -> CableConnection:
        """A connection for a transport of somebody else's, whatever our own are given; it has passed no request."""
        connection: CableConnection = self._mounted()
        return connection

    # -- asked by connections

    def connection_made(self, connection: CableConnection) -> None:
        """Accepted."""
        self.connections += 1
        self.heartbeat.opened(connection)

    def http_channel(self, connection: CableConnection) -> Any:
        """The site's protocol, connected to the transport of *connection*."""
        self.connections -= 1
        transport = connection.transport
        if not transport.direct:
            transport = transport.real
            transport.unregisterProducer()
        channel = self.site.buildProtocol(transport.getPeer())
        assert channel is not None
        channel.carrier = connection
        channel.makeConnection(transport)
        return channel

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self.metrics.count("refused_connections_total", reason=refusal.reason)

    def decompressor(self) -> Any:
        """Autobahn's part for the compressed messages a client sends."""
        return PerMessageDeflate(True, True, True, 0, 0, 0, max_message_size=self.max_message_size)

    def ping_frame(self, precision: int) -> bytes:
        """A ping to send, with the Unix time now in units of *precision* nanoseconds."""
        ping = b'{"type":"ping","message":%d}' % (time.time_ns() // precision)
        self.metrics.count("data_sent_total", len(ping))
        frame = text_frame(ping)
        return frame + control_frame(9) if self.native_pings else frame
