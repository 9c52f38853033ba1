"""The direct path (Linux, no TLS): frames go straight to the sockets, connections cost about a kilobyte.

Three parts replace Twisted's own: a port that accepts without per-connection extras, a transport that writes at
once when nothing is queued, and a group whose fan-out loop runs in C. A connection is *clear* (its socket is its
slot in every group) or *slow* (it has a backlog, and a stub is its slot): so nothing sent directly can overtake
what is queued, and the loop needs no check per member. Where this path does not apply, ``groups`` and Twisted's
transports serve, with the same guarantees.
"""

from __future__ import annotations

import _socket
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from twisted.internet import abstract, address, error, tcp

from anycable_tx.transports.groups import GONE, Flusher, SharedGroup

__all__ = ["DirectFlusher", "DirectGroup", "DirectPort", "DirectTransport"]

_NOTHING: Any = ()


class _Slow:
    """The slot of a member whose transport has a backlog."""

    def send(self, data: bytes) -> int:
        raise BlockingIOError


SLOW = _Slow()


class DirectTransport(tcp.Server):
    """A server-side TCP connection that writes through. State is in slots and class defaults."""

    __slots__ = (
        "_tempDataBuffer",
        "_tempDataLen",
        "client",
        "connected",
        "dataBuffer",
        "disconnected",
        "disconnecting",
        "fd",
        "offset",
        "progressed",
        "protocol",
        "socket",
    )
    if TYPE_CHECKING:
        protocol: Any
        socket: Any
    direct = True
    logstr = repstr = "anycable"
    hostname = ""
    sessionno = 0

    def __init__(self, sock: Any, protocol: Any, client: Any) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.protocol = protocol
        self.client = client
        if len(client) != 2:
            self._addressType = address.IPv6Address
        self.connected = 1
        self.disconnected = self.disconnecting = self.offset = self._tempDataLen = 0
        self.dataBuffer = b""
        self._tempDataBuffer = _NOTHING
        #: The kernel took something since this was last reset.
        self.progressed = False

    def fileno(self) -> int:
        """The file descriptor, -1 once closed."""
        fd: int = self.fd
        return fd

    @property
    def slot(self) -> Any:
        """What groups hand frames to."""
        return self.socket if self._tempDataBuffer is _NOTHING else SLOW

    @property
    def backlog(self) -> int:
        """Bytes accepted for writing that the kernel has not taken."""
        return self._tempDataLen + len(self.dataBuffer) - self.offset

    def write(self, data: bytes) -> None:
        """Send now what can be sent now, and queue the rest."""
        if not self.connected or self._writeDisconnected:
            return
        if self._tempDataBuffer is not _NOTHING:
            self.queue(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:  # full, or a dead peer, which the reactor reports by itself
            sent = 0
        if sent != len(data):
            self.queue(data[sent:])

    def writeSequence(self, iovec: Any) -> None:
        """Like ``write`` of the joined parts."""
        self.write(b"".join(iovec))

    def queue(self, data: bytes) -> None:
        """Queue *data*; the connection is slow until the queue is empty."""
        if not self.connected or self._writeDisconnected:
            return
        if self._tempDataBuffer is _NOTHING:
            self._tempDataBuffer = []
            self._announce(slow=True)
        self._tempDataBuffer.append(data)
        self._tempDataLen += len(data)
        self._maybePauseProducer()
        self.startWriting()
        notice = getattr(self.protocol, "backlogged", None)
        if notice is not None:
            notice(len(data))

    def drop_queue(self) -> None:
        """Forget what is queued, but for frames that may be on their way already."""
        if self._tempDataBuffer is not _NOTHING:
            first = self._tempDataBuffer[:1] if not self.dataBuffer else []
            self._tempDataBuffer = first
            self._tempDataLen = sum(map(len, first))

    def _announce(self, *, slow: bool) -> None:
        notice = getattr(self.protocol, "slow_changed", None)
        if notice is not None:
            notice(slow)

    def doWrite(self) -> Any:
        """The kernel takes more: send from the queue, and become clear when it is empty."""
        result = tcp.Server.doWrite(self)
        self.progressed = True
        if result is None and self.fd >= 0 and not self._tempDataLen and self.offset == len(self.dataBuffer):
            self.dataBuffer = b""
            self.offset = 0
            if self._tempDataBuffer is not _NOTHING:
                self._tempDataBuffer = _NOTHING
                self._announce(slow=False)
        return result

    def connectionLost(self, reason: Any) -> None:
        """The connection is gone: tell the protocol, close the socket, let go of everything."""
        if self.fd < 0:
            return
        protocol = self.protocol
        abstract.FileDescriptor.connectionLost(self, reason)
        self._closeSocket(not reason.check(error.ConnectionAborted))
        self.fd = -1
        self.protocol = None
        protocol.connectionLost(reason)


class DirectPort(tcp.Port):
    """A listening TCP port that gives the protocols of *factory* direct transports."""

    factory: Any
    socket: Any

    def startListening(self) -> None:
        """Listen."""
        tcp.Port.startListening(self)
        self._family = (int(self.socket.family), int(self.socket.type), int(self.socket.proto))
        self._transport: Any = type(
            "Transport", (DirectTransport,), {"__slots__": (), "reactor": self.reactor, "server": self}
        )

    def doRead(self) -> None:
        """Accept up to 64 connections."""
        for _ in range(64):
            try:
                fd, client = self.socket._accept()
            except BlockingIOError:
                return
            except OSError:
                tcp.Port.doRead(self)  # too many open files and the like: Twisted's own handling
                return
            protocol = self.factory.buildProtocol(client)
            protocol.makeConnection(self.transport(_socket.socket(*self._family, fd), protocol, client))

    def transport(self, sock: Any, protocol: Any, client: Any, *more: Any) -> Any:  # type: ignore[override]
        """The transport of an accepted socket. Twisted makes its own, by this name, when it accepts."""
        sock.setblocking(False)
        transport = self._transport(sock, protocol, client)
        self.reactor.addReader(transport)
        return transport


class DirectGroup(SharedGroup):
    """A group whose slots are sockets."""

    __slots__ = ()

    def push(self, data: bytes, start: int, stop: int) -> None:
        """Send *data* on each socket; what a socket does not take is queued on its transport."""
        size = len(data)
        sent: list[int] = []
        sends = map(methodcaller("send", data), self.slots[start:stop])
        while True:
            try:
                sent.extend(sends)
            except OSError:  # full, slow, gone or reset
                sent.append(0)
            else:
                break
        if sent.count(size) == stop - start:
            return
        attachments = self._attachments
        for index, taken in enumerate(sent, start):
            attachment = attachments[index]
            if taken != size and attachment is not None and self.slots[index] is not GONE:
                attachment.subscription.session.outlet.queue(data[taken:])  # type: ignore[attr-defined]


class DirectFlusher(Flusher):
    """Lets direct groups leave."""

    group_class = DirectGroup
