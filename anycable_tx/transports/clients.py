"""What all client connections share, whatever their transport: limits, counts, pings, slow readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.task import LoopingCall

from anycable_tx.node import Node
from anycable_tx.transports.addresses import Addresses
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.groups import Flusher
from anycable_tx.transports.handshake import Head, Refusal
from anycable_tx.transports.heartbeat import Heartbeat
from anycable_tx.transports.request_env import RequestEnvs

__all__ = ["PRECISIONS", "Clients"]

#: Nanoseconds per unit of ping timestamps.
PRECISIONS = {"s": 1_000_000_000, "ms": 1_000_000, "ns": 1}


class _Connection(Protocol):
    transport: Any
    #: What Addresses calls the client's address; None where it is not counted.
    counted_as: str | None

    def ends(self, reason: str) -> None:
        """Count the end of the connection, once and with the first reason."""


class Clients:
    """The connections of one server. *direct* tells whether they have the direct path's transports."""

    def __init__(
        self, settings: Mapping[str, Any], reactor: Any, node: Node, flusher: Flusher, *, direct: bool
    ) -> None:
        self.reactor = reactor
        self.node = node
        self.flusher = flusher
        self.metrics = node.metrics
        self.direct = direct
        self.origins = Origins(settings["allowed_origins"])
        self.scheme = "https" if settings["ssl_cert"] else "http"
        self.envs = RequestEnvs(settings, self.scheme)
        self.max_pending_size: int = settings["ws_max_pending_size"]
        self.max_connections: int = settings["max_conn"]
        per_address = settings["max_conn_per_address"]
        self.addresses = Addresses(per_address) if per_address else None
        self.ping_interval = float(settings["ping_interval"])
        self.precision = PRECISIONS[settings["ping_timestamp_precision"]]
        self.request_id_sid: bool = settings["request_id_sid"]
        self.heartbeat = Heartbeat(
            reactor,
            self.metrics,
            pong_timeout=settings["pong_timeout"],
            handshake_timeout=settings["handshake_timeout"],
        )
        #: Connections that were accepted and are not gone, a client's or not yet known.
        self.connections = 0
        #: Those among them that are a client's, authenticated or not.
        self.upgraded = 0
        #: Are clients accepted? Not yet before the start, and not any more once the ports are closed.
        self.accepting = False
        self._slow: set[_Connection] = set()
        self._write_timeout = float(settings["ws_write_timeout"])
        self._sweep = LoopingCall(self._drop_stalled)
        self._sweep.clock = reactor

    def start(self) -> None:
        """Begin pings and sweeps, and accept clients."""
        self.accepting = True
        self.heartbeat.start()
        self._sweep.start(self._write_timeout or 2.0, now=False)

    def stop(self) -> None:
        """End pings and sweeps."""
        self.heartbeat.stop()
        if self._sweep.running:
            self._sweep.stop()

    # -- asked by connections

    def connection_lost(self, connection: _Connection, *, upgraded: bool) -> None:
        """Gone."""
        self.connections -= 1
        self.upgraded -= upgraded
        if connection.counted_as is not None and self.addresses is not None:
            self.addresses.release(connection.counted_as)
        if upgraded:
            connection.ends("lost")
            if connection.transport.backlog:
                self.metrics.count("failed_server_msg_total")
        self._slow.discard(connection)

    def admit(self, connection: _Connection, head: Head, *, limited: bool = True) -> None:
        """Let the client in that asks with *head*, or raise Refusal.

        Refused are those beyond ``max_conn`` (CO-29), those beyond ``max_conn_per_address``, unless they are not
        *limited*, and everybody when the server is stopping.
        """
        if not self.accepting:
            raise Refusal(503, "starting or shutting down")
        if not limited:
            return
        if self.max_connections and self.upgraded >= self.max_connections:
            raise Refusal(503, "too many connections")
        if self.addresses is not None:
            connection.counted_as = self.addresses.take(self.envs.address(head, self.peer(connection.transport)))
            if connection.counted_as is None:
                raise Refusal(429, "too many connections of one address")

    def peer(self, transport: Any) -> str:
        """The IP address at the other end of a connection's *transport*."""
        if transport.direct:
            return str(transport.client[0])
        return str(getattr(transport.real.getPeer(), "host", ""))

    def call_later(self, delay: float, function: Any) -> Any:
        """A timer for the rare cases that need one of their own."""
        return self.reactor.callLater(delay, function)

    # -- slow readers

    def slow_connection(self, connection: _Connection) -> None:
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
                self.metrics.count("timeout_server_msg_total")
                connection.ends("write_timeout")
                transport.abortConnection()
