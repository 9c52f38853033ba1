"""A server whose reactor is driven by hand, and clients that write and read bytes.

The clock is a fake one; the sockets are real. The same tests run over both ways to write: *direct* (frames go to the
sockets) and *plain* (frames go to a Twisted transport).
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from twisted.internet import main, tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from anycable_tx.cable.messages import Publication, Receipt
from anycable_tx.config.load import defaults
from anycable_tx.server import Server
from anycable_tx.testing.sync import result_of
from anycable_tx.transports.direct import DirectTransport

BASE = "actioncable-v1-json"
EXTENDED = "actioncable-v1-ext-json"
CLOSE, PING, PONG = 8, 9, 10
PEER = ("192.0.2.7", 40000)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


# -- frames as a client writes and reads them


def masked(payload: bytes | str, opcode: int = 1, *, fin: bool = True, rsv: int = 0, mask: bytes = b"\x1f\x00\x9a~"):
    """A frame from a client, with the shortest length encoding that fits."""
    data = payload.encode() if isinstance(payload, str) else payload
    first, size = fin << 7 | rsv << 4 | opcode, len(data)
    if size < 126:
        header = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        header = struct.pack("!BBH", first, 0xFE, size)
    else:
        header = struct.pack("!BBQ", first, 0xFF, size)
    return header + mask + bytes(byte ^ mask[n & 3] for n, byte in enumerate(data))


def command(name: str, **fields: Any) -> bytes:
    """The frame of a client command."""
    return masked(json.dumps({"command": name, **fields}))


def deflated(payload: bytes | str) -> bytes:
    """A compressed message from a client."""
    return masked(squeeze(payload.encode() if isinstance(payload, str) else payload), rsv=4)


def squeeze(data: bytes) -> bytes:
    """*data* as permessage-deflate sends it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data: bytes) -> bytes:
    """What ``squeeze`` was given; no context is kept from one message to the next."""
    return zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff")


def identifier(stream: str = "chat", **more: Any) -> str:
    """The identifier of a public stream; *more* makes another one of it."""
    return json.dumps({"channel": "$pubsub", "stream_name": stream, **more})


class Frame(NamedTuple):
    """A frame from the server."""

    opcode: int
    payload: bytes
    compressed: bool


class Answer(NamedTuple):
    """A response head, names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


# -- the reactor


class TurningClock(Clock):
    """A clock whose calls may ask for another one at once, which then comes with the next turn, as in a reactor."""

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        self._sortCalls()
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


@implementer(IReactorFDSet)
class HandReactor(TurningClock):
    """Timers on a fake clock, and descriptors that are polled when told to."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: dict[Any, int] = {}
        self._writers: dict[Any, int] = {}

    def addReader(self, reader: Any) -> None:
        self._readers.setdefault(reader, reader.fileno())

    def addWriter(self, writer: Any) -> None:
        self._writers.setdefault(writer, writer.fileno())

    def removeReader(self, reader: Any) -> None:
        self._readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self._writers.pop(writer, None)

    def removeAll(self) -> list[Any]:
        raise NotImplementedError

    def getReaders(self) -> list[Any]:
        return list(self._readers)

    def getWriters(self) -> list[Any]:
        return list(self._writers)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listener = tcp.Port(port, factory, backlog, interface, self)
        listener.startListening()
        return listener

    def listenSSL(self, port: int, factory: Any, context: Any, backlog: int = 50, interface: str = "") -> Any:
        return self.listenTCP(port, TLSMemoryBIOFactory(context, False, factory, self), backlog, interface)

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> Any:
        listener = tcp.Port._fromListeningDescriptor(self, descriptor, family, factory)
        listener.startListening()
        return listener

    def turn(self, patience: float = 0) -> bool:
        """Timers that are due, then descriptors that are ready; says whether anything happened.

        *patience*: how many real seconds to wait for a descriptor.
        """
        due = any(call.getTime() <= self.seconds() for call in self.getDelayedCalls())
        self.advance(0)
        poll = select.poll()
        ready: dict[int, list[Any]] = {}
        for selectables, event in ((self._readers, select.POLLIN), (self._writers, select.POLLOUT)):
            for selectable, fd in selectables.items():
                entry = ready.setdefault(fd, [selectable, 0])
                entry[1] |= event
        for fd, (_, events) in ready.items():
            poll.register(fd, events)
        found = poll.poll(0 if due else patience * 1000)
        for fd, events in found:
            self._serve(ready[fd][0], events)
        return due or bool(found)

    def _serve(self, selectable: Any, events: int) -> None:
        failed = events & (select.POLLHUP | select.POLLERR)
        why = None
        if selectable in self._readers and events & (select.POLLIN | failed):
            why = selectable.doRead()
        if why is None and selectable in self._writers and events & (select.POLLOUT | failed):
            why = selectable.doWrite()
        if why is None and events & select.POLLERR:
            why = main.CONNECTION_LOST
        if why is not None:
            self.removeReader(selectable)
            self.removeWriter(selectable)
            selectable.connectionLost(Failure(why))


# -- the server


class _Local:
    """What a transport says of itself that its local socket cannot."""

    __slots__ = ()

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 8080)

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class _LocalServer(_Local, tcp.Server):
    repstr = "local"


class Cable:
    """A server of public streams on a HandReactor, without listening sockets until ``listen``.

    *way* is 'direct' or 'plain'; *settings* are options of the server. With *whole* it is started as a server is,
    and may be stopped so. *sockets* listen already.
    """

    def __init__(
        self, way: str, *, whole: bool = False, sockets: Iterable[socket.socket] = (), **settings: Any
    ) -> None:
        self.direct = way == "direct"
        self.reactor = HandReactor()
        given = {"noauth": True, "public_streams": True, "broker": "memory", "broadcast_key": "key", "port": 0}
        self.server = Server(defaults(**(given | settings), fast_path=self.direct), self.reactor, sockets)
        self.node = self.server.node
        self.factory = self.server.factory
        self.metrics = self.server.metrics
        self.clients: list[Client] = []
        self._whole = whole
        if whole:
            result_of(self.server.start())
        else:
            for part in (self.node.broker, self.node.pubsub, self.node.controllers, self.node):
                result_of(part.start())
            self.factory.start()

    # -- time

    def run(self) -> None:
        """Turn until nothing happens any more at this moment of the fake clock."""
        for _ in range(100_000):
            if not self.reactor.turn():
                return
        raise AssertionError("the reactor never comes to rest")

    def wait(self, seconds: float, step: float = 0.05) -> None:
        """Let the fake clock go on, in small steps."""
        self.run()
        for _ in range(round(seconds / step)):
            self.reactor.advance(step)
            self.run()

    def until(self, condition: Callable[[], Any], patience: float = 10.0) -> Any:
        """Turn until *condition* gives something true, which is answered; TCP takes its real time."""
        for _ in range(round(patience / 0.01)):
            found = condition()
            if found:
                return found
            self.reactor.turn(0.01)
        raise AssertionError("it never came to that")

    # -- clients and publications

    def plug(self, sock: socket.socket, peer: tuple[Any, ...] = PEER) -> Any:
        """Serve the client at the other end of *sock*; answers the connection."""
        connection = self.factory.buildProtocol(None)
        if self.direct:
            kind = type("Transport", (_Local, DirectTransport), {"reactor": self.reactor, "server": None})
            transport = kind(sock, connection, peer)
            sock.setblocking(False)
            connection.makeConnection(transport)
            self.reactor.addReader(transport)
        else:
            connection.makeConnection(_LocalServer(sock, connection, peer, None, 0, self.reactor))
        return connection

    def connect(self, buffer: int = 0, peer: tuple[Any, ...] = PEER) -> Client:
        """A client that has not said anything yet; *buffer*: bytes the kernel takes from the server for it."""
        ours, theirs = socket.socketpair()
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        theirs.setblocking(False)
        client = Client(self, theirs)
        client.connection = self.plug(ours, peer)
        self.clients.append(client)
        return client

    def client(self, protocol: str = BASE, *, buffer: int = 0, path: str = "/cable", **headers: str) -> Client:
        """A client that was welcomed; the welcome is ``client.welcome``."""
        client = self.connect(buffer)
        client.answer = client.upgrade(path, protocol, **headers)
        assert client.answer.status == 101
        [client.welcome] = client.messages()
        return client

    def subscriber(self, stream: str = "chat", protocol: str = BASE, **options: Any) -> Client:
        """A client that is subscribed to a public stream."""
        client = self.client(protocol, **options)
        client.subscribe(identifier(stream))
        return client

    def listen(self) -> list[int]:
        """Open the ports, if they are not; answers their numbers."""
        if not self._whole:
            self.server.listeners.open()
        return [port.getHost().port for port in self.server.listeners._ports]

    def close_ports(self) -> None:
        """Close the ports."""
        closed = Deferred.fromCoroutine(self.server.listeners.close())
        self.run()
        assert closed.called

    def dial(self, port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Client:
        """A client over TCP, perhaps with TLS. Raises what the socket or the TLS handshake raises."""
        sock = socket.create_connection((host, port), 5)
        sock.setblocking(False)
        try:
            client = Client(self, TlsSocket(self, sock, tls) if tls else sock)
        except OSError:
            sock.close()
            self.run()
            raise
        self.clients.append(client)
        return client

    def publish(self, stream: str, payload: Any, **fields: Any) -> Receipt:
        """Publish; nothing leaves before the next turn."""
        return result_of(self.node.publish(Publication(stream, json.dumps(payload).encode(), **fields)))

    def subscription(self, client: Client, name: str) -> Any:
        """The server's attachment of *client* to the public stream *name*."""
        [attachment] = client.connection.session.subscriptions[identifier(name)].attachments
        return attachment

    # -- the end

    def stop(self) -> float:
        """Stop the whole server; answers how long it took by the fake clock."""
        begun = self.reactor.seconds()
        stopped = Deferred.fromCoroutine(self.server.stop())
        while not stopped.called:
            self.wait(0.05)
        return self.reactor.seconds() - begun

    def close(self) -> None:
        """Let all clients go; nothing may be left of them."""
        for client in self.clients:
            client.sock.close()
        self.until(lambda: self.reactor.turn() or not self.factory.connections, patience=2)
        self.close_ports()
        self.wait(12, 0.5)
        assert self.metrics.value("internal_errors_total") == 0
        assert (self.factory.connections, len(self.node.sessions)) == (0, 0)
        assert not any(stream.groups or stream.held for stream in self.node.hub.streams.values())
        assert not self.factory._slow
        if self._whole:
            self.stop()
            return
        self.factory.stop()
        for part in (self.node, self.node.broker, self.node.pubsub):
            result_of(part.stop())


class Client:
    """The other end of a connection: reads and writes bytes, and can tell frames apart."""

    connection: Any
    answer: Answer
    welcome: dict[str, Any]

    def __init__(self, cable: Cable, sock: Any) -> None:
        self.cable = cable
        self.sock = sock
        self.received = b""
        self.ended = False
        self.compressed: list[bool] = []

    @property
    def sid(self) -> str:
        """The session."""
        return str(self.welcome["sid"])

    def send(self, data: bytes) -> None:
        """Bytes to the server, which takes them."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self.cable.run()
        self.cable.run()

    def dribble(self, data: bytes) -> None:
        """Bytes to the server, one a turn."""
        for n in range(len(data)):
            self.send(data[n : n + 1])

    def read(self, limit: int = 1 << 30) -> None:
        """Take what the server wrote, up to about *limit* bytes."""
        taken = 0
        self.cable.run()
        while not self.ended and taken < limit and self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(min(limit - taken, 1 << 18))
            except BlockingIOError:
                if not self.cable.reactor.turn():
                    return
                continue
            except ConnectionResetError:
                self.ended = True
                return
            self.ended = not data
            self.received += data
            taken += len(data)
        self.cable.run()

    def until(self, condition: Callable[[bytes], Any]) -> None:
        """Read until what was received satisfies *condition*, or everything was received; for TCP."""
        self.cable.until(lambda: (self.read(), self.ended or condition(self.received))[1])

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """An HTTP request, and its answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: cable.example"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        return self.head()

    def upgrade(self, path: str = "/cable", protocol: str = "", **headers: str) -> Answer:
        """Ask for an upgrade; *headers* replace those of the same name, '' leaves one out."""
        return self.get(path, **upgrade_headers(protocol, **headers))

    def head(self) -> Answer:
        """The next HTTP answer."""
        self.until(lambda received: b"\r\n\r\n" in received)
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        body, self.received = self.received[:size], self.received[size:]
        return Answer(int(first.split()[1]), headers, body)

    def frames(self) -> list[Frame]:
        """The whole frames that arrived since the last time."""
        self.read()
        found = []
        while (frame := self._frame()) is not None:
            found.append(frame)
        return found

    def _frame(self) -> Frame | None:
        data = self.received
        if len(data) < 2:
            return None
        size, start = data[1], 2
        assert size < 128, "a server does not mask"
        if size == 126:
            size, start = int.from_bytes(data[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10]), 10
        if len(data) < start + size:
            return None
        self.received = data[start + size :]
        assert data[0] & 0x80, "the server does not fragment"
        return Frame(data[0] & 0x0F, data[start : start + size], bool(data[0] & 0x40))

    def messages(self, *, pings: bool = False) -> list[Any]:
        """The JSON messages that arrived since the last time. There must be no other frames among them."""
        found = []
        for frame in self.frames():
            assert frame.opcode == 1, frame
            self.compressed.append(frame.compressed)
            found.append(json.loads(inflate(frame.payload) if frame.compressed else frame.payload))
        return [m for m in found if pings or m.get("type") != "ping"]

    def payloads(self) -> list[Any]:
        """The ``message`` of each broadcast that arrived since the last time; nothing else may have come."""
        found = self.messages()
        assert all(m.keys() - {"identifier", "stream_id", "epoch", "offset"} == {"message"} for m in found), found
        return [m["message"] for m in found]

    def farewell(self) -> tuple[list[Any], int | None, str, bool]:
        """How it ended: the last messages, the close code and its text, and whether the connection has ended."""
        *frames, last = self.frames()
        assert last.opcode == CLOSE, [*frames, last]
        assert self.received == b""
        code = int.from_bytes(last.payload[:2]) if last.payload else None
        return [json.loads(f.payload) for f in frames], code, last.payload[2:].decode(), self.ended

    def subscribe(self, name: str) -> None:
        """Subscribe to the identifier *name*, which is confirmed."""
        self.send(command("subscribe", identifier=name))
        assert self.messages() == [{"type": "confirm_subscription", "identifier": name}]

    def is_served(self) -> bool:
        """Does the server still answer commands?"""
        self.send(command("ping"))
        return {"type": "pong"} in self.messages()


class TlsSocket:
    """A socket that speaks TLS as a client."""

    def __init__(self, cable: Cable, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")

        def shake() -> bool:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                return False
            return True

        try:
            cable.until(shake)
        except OSError:
            self._sock.close()
            raise
        self.version = self._sock.version()

    def send(self, data: bytes) -> int:
        return self._sock.send(data)

    def recv(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def upgrade_headers(protocol: str = "", **more: str) -> dict[str, str]:
    """The headers of an upgrade request."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": KEY,
        "Sec_WebSocket_Protocol": protocol,
    }
    return {name: value for name, value in (headers | more).items() if value}


def upgrade_request(path: str = "/cable", protocol: str = "", **more: str) -> bytes:
    """An upgrade request as bytes."""
    lines = [f"GET {path} HTTP/1.1", "Host: cable.example"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in upgrade_headers(protocol, **more).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
