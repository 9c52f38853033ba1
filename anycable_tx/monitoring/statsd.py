"""Metrics to a StatsD server, over UDP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError, MessageLengthError
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.background import Background
from anycable_tx.metrics import Metrics
from anycable_tx.monitoring.rotation import Snapshot, Writer

__all__ = ["StatsD", "packed", "tag_marks"]

#: What has a meaning in one of the formats cannot be in a tag.
_SPECIAL = re.compile(r"[\s,;:|=#@~]")


def tag_marks(tags: Mapping[str, str], format: str) -> tuple[str, str]:
    """The *tags*, as they stand behind a metric's name and behind its type, of which one is empty."""
    pairs = [tuple(_SPECIAL.sub("_", text) for text in pair) for pair in tags.items()]
    if not pairs:
        return "", ""
    if format == "datadog":
        return "", "|#" + ",".join(f"{name}:{value}" for name, value in pairs)
    separator = {"influxdb": ",", "graphite": ";"}[format]
    return "".join(f"{separator}{name}={value}" for name, value in pairs), ""


def packed(lines: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The *lines* joined to packets of at most *size* bytes; a line that is longer is a packet of its own."""
    packet = b""
    for line in lines:
        if packet and len(packet) + 1 + len(line) > size:
            yield packet
            packet = b""
        packet = packet + b"\n" + line if packet else line
    if packet:
        yield packet


class _Socket(DatagramProtocol):
    """A UDP socket that is for one address, so that it learns of refusals.

    Some reactors tell of one, and others take it for the end of the socket.
    """

    transport: Any

    def __init__(self, address: str, refused: Callable[[_Socket], None]) -> None:
        self.address = address
        self._refused = refused

    def connectionRefused(self) -> None:
        self._refused(self)

    def stopProtocol(self) -> None:
        self._refused(self)


@implementer(IResolutionReceiver)
class _Addresses:
    """The first address that is found for a name; '' if none is."""

    def __init__(self) -> None:
        self.first = ""
        self.complete: Deferred[None] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)):
            self.first = self.first or address.host

    def resolutionComplete(self) -> None:
        if not self.complete.called:
            self.complete.callback(None)


class StatsD(Writer):
    """Sends each snapshot: what the counters grew by, if they did, and the gauges.

    UDP promises nothing. What cannot be sent is counted by reason and not tried again; the first failure of a row is
    logged, and its end. A name is looked up again with each snapshot, for the next one.
    """

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> None:
        metrics.has("statsd")
        place: str = settings["statsd_host"]
        host, _, port = place.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)
        self._place = place
        self._prefix: str = settings["statsd_prefix"]
        self._after_name, self._after_type = tag_marks(settings["metrics_tags"], settings["statsd_tags_format"])
        self._size: int = settings["statsd_max_packet_size"]
        self._reactor = reactor
        self._metrics = metrics
        self._background = Background(reactor, metrics)
        self._socket: _Socket | None = None
        self._looking = False
        #: Has something failed since the last snapshot, and has that been logged?
        self._failing = self._told = False

    def start(self) -> None:
        """Find the server."""
        self._look_up()

    def write(self, snapshot: Snapshot) -> None:
        """Send *snapshot*."""
        if self._told and not self._failing:
            self._told = False
            self.log.info("Send statsd metrics to {place} again", place=self._place, attrs={"context": "metrics"})
        self._failing = False
        if self._socket is None:
            self.failed("unresolved")
        else:
            self._send(self._socket, packed(self._lines(snapshot), self._size))
        if self._socket is None or self._socket.address != self.host:
            self._look_up()

    def _lines(self, snapshot: Snapshot) -> Iterator[bytes]:
        for name, growth in snapshot.counters.items():
            if growth:
                yield self._line(name, growth, "c")
        for name, value in snapshot.gauges.items():
            yield self._line(name, value, "g")

    def _line(self, name: str, value: int, kind: str) -> bytes:
        return f"{self._prefix}{name}{self._after_name}:{value}|{kind}{self._after_type}".encode()

    def _send(self, socket: _Socket, packets: Iterator[bytes]) -> None:
        for packet in packets:
            if len(packet) > self._size:
                self.failed("too_large")
                continue
            try:
                socket.transport.write(packet)
            except (OSError, MessageLengthError):
                self.failed("not_sent")

    def failed(self, reason: str) -> None:
        """Something could not be sent, or was not taken."""
        self._metrics.count("statsd_errors_total", reason=reason)
        self._failing = True
        if not self._told:
            self._told = True
            attrs = {"context": "metrics", "reason": reason}
            self.log.warn("metrics do not reach StatsD at {place}", place=self._place, attrs=attrs)

    def _refused(self, socket: _Socket) -> None:
        if socket is self._socket:
            self.failed("refused")
            if not socket.transport:
                self._socket = None
                self._look_up()

    def _look_up(self) -> None:
        if not self._looking:
            self._looking = True
            self._background.spawn(self._find())

    async def _find(self) -> None:
        try:
            address = await self._address()
            if address and (self._socket is None or self._socket.address != address):
                await self._close()
                await self._open(address)
        finally:
            self._looking = False

    async def _open(self, address: str) -> None:
        socket = _Socket(address, self._refused)
        try:
            self._reactor.listenUDP(0, socket, interface="::" if ":" in address else "")
            self._socket = socket
            socket.transport.connect(address, self.port)
        except (OSError, CannotListenError):
            self.failed("unreachable")
            await self._close()

    async def _address(self) -> str:
        """The address of the host; '' if there is none."""
        if isIPAddress(self.host) or isIPv6Address(self.host):
            return self.host
        receiver = _Addresses()
        self._reactor.nameResolver.resolveHostName(receiver, self.host, transportSemantics="UDP")
        await receiver.complete
        return receiver.first

    async def stop(self) -> None:
        """Close the socket."""
        self._background.cancel_all()
        await self._close()

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await maybeDeferred(socket.transport.stopListening)
