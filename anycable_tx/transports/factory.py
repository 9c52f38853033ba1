"""What all WebSocket connections of a listener share: limits, options, the heartbeat, Autobahn's defaults."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from twisted.internet.task import LoopingCall
from twisted.web.server import Site

from anycable_tx.node import Node
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.frames import control_frame, text_frame
from anycable_tx.transports.groups import Flusher
from anycable_tx.transports.handshake import Refusal
from anycable_tx.transports.heartbeat import Heartbeat
from anycable_tx.transports.outlet import WritingSide
from anycable_tx.transports.paths import PathPatterns
from anycable_tx.transports.request_env import RequestEnvs
from anycable_tx.transports.websocket import PRECISIONS, CableConnection

__all__ = ["CableFactory"]

#: The largest request head, in bytes.
MAX_HEAD = 16384


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


class CableFactory(WebSocketServerFactory):
    """Makes connections. *direct* tells whether they will be given the direct path's transport."""

    noisy = False

    def __init__(
        self, settings: Mapping[str, Any], reactor: Any, node: Node, flusher: Flusher, site: Site, *, direct: bool
    ) -> None:
        super().__init__(reactor=reactor)
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
        self.node = node
        self.flusher = flusher
        self.metrics = node.metrics
        self.site = site
        self.direct = direct
        self.paths = PathPatterns(settings["path"])
        self.origins = Origins(settings["allowed_origins"])
        self.scheme = "https" if settings["ssl_cert"] else "http"
        self.envs = RequestEnvs(settings, self.scheme)
        self.compression: bool = settings["enable_ws_compression"]
        self.max_head = MAX_HEAD
        self.max_message_size: int = settings["max_message_size"]
        self.max_pending_size: int = settings["ws_max_pending_size"]
        self.max_connections: int = settings["max_conn"]
        self.ping_interval = float(settings["ping_interval"])
        self.native_pings: bool = settings["enable_native_pings"]
        self.expects_pongs = settings["pong_timeout"] > 0
        self.request_id_sid: bool = settings["request_id_sid"]
        self.heartbeat = Heartbeat(
            reactor, pong_timeout=settings["pong_timeout"], handshake_timeout=settings["handshake_timeout"]
        )
        #: Connections that were accepted and are not gone, WebSocket or not yet known.
        self.connections = 0
        #: Those among them that were upgraded, authenticated or not.
        self.upgraded = 0
        #: Are upgrades accepted? Not any more once the ports are closed.
        self.accepting = True
        self._slow: set[WritingSide] = set()
        self._write_timeout = float(settings["ws_write_timeout"])
        self._sweep = LoopingCall(self._drop_stalled)
        self._sweep.clock = reactor
        self._connection = self._connection_class(PRECISIONS[settings["ping_timestamp_precision"]])

    def _connection_class(self, precision: int) -> type[CableConnection]:
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
            peer="",
            precision=precision,
            is_open=resolved,
            is_closed=resolved,
            send_queue=(),
            utf8validator=None,
            inside_message=False,
            current_frame=None,
            websocket_version=13,
        )
        return type("Connection", (CableConnection,), defaults)

    def start(self) -> None:
        """Begin pings and sweeps."""
        self.heartbeat.start()
        self._sweep.start(self._write_timeout or 2.0, now=False)

    def stop(self) -> None:
        """End pings and sweeps."""
        self.heartbeat.stop()
        if self._sweep.running:
            self._sweep.stop()

    def buildProtocol(self, addr: Any) -> Any:
        """A new connection."""
        return self._connection()

    # -- asked by connections

    def connection_made(self, connection: CableConnection) -> None:
        """Accepted."""
        self.connections += 1
        self.heartbeat.opened(connection)

    def connection_lost(self, connection: CableConnection, *, upgraded: bool) -> None:
        """Gone."""
        self.connections -= 1
        self.upgraded -= upgraded
        self._slow.discard(connection)

    def http_channel(self, connection: CableConnection) -> Any:
        """The site's protocol, connected to the transport of *connection*."""
        self.connections -= 1
        transport = connection.transport
        if not self.direct:
            transport = transport.real
            transport.unregisterProducer()
        channel = self.site.buildProtocol(transport.getPeer())
        assert channel is not None
        channel.makeConnection(transport)
        return channel

    def check_capacity(self) -> None:
        """Raise Refusal when there are as many clients as ``max_conn`` allows (CO-29), or the server is stopping."""
        if not self.accepting:
            raise Refusal(503, "shutting down")
        if self.max_connections and self.upgraded >= self.max_connections:
            raise Refusal(503, "too many connections")

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self.metrics.count("refused_connections_total", reason=refusal.reason)

    def peer(self, transport: Any) -> str:
        """The IP address at the other end."""
        return str(getattr(transport.getPeer(), "host", ""))

    def decompressor(self) -> Any:
        """Autobahn's part for the compressed messages a client sends."""
        return PerMessageDeflate(True, True, True, 0, 0, 0, max_message_size=self.max_message_size)

    def ping_frame(self, precision: int) -> bytes:
        """A ping with the Unix time now, in units of *precision* nanoseconds."""
        frame = text_frame(b'{"type":"ping","message":%d}' % (time.time_ns() // precision))
        return frame + control_frame(9) if self.native_pings else frame

    # -- slow readers

    def slow_connection(self, connection: WritingSide) -> None:
        """*connection* has a backlog; it has to shrink from time to time."""
        if connection.transport is not None:
            connection.transport.progressed = True
            self._slow.add(connection)

    def _drop_stalled(self) -> None:
        """Drop those that took nothing for a whole period: nobody is there any more."""
        for connection in list(self._slow):
            transport = connection.transport
            if transport is None or not transport.backlog:
                self._slow.discard(connection)
            elif transport.progressed:
                transport.progressed = False
            else:
                self._slow.discard(connection)
                self.metrics.count("closed_connections_total", reason="write_timeout")
                transport.abortConnection()

    def call_later(self, delay: float, function: Any) -> Any:
        """A timer for the rare cases that need one of their own."""
        return self.reactor.callLater(delay, function)
