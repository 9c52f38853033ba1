"""An HTTP peer without a socket: it writes bytes to a site and parses the answers."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure


class Answer(NamedTuple):
    """One HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Wire(StringTransport):
    """Closes like a TCP transport: at once for the writer, a turn later for the protocol."""

    def __init__(self, clock: Clock, host: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 40000))
        self.clock = clock
        self.protocol: Any = None
        self.lost = False

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self.clock.callLater(0, self.lose)

    def abortConnection(self) -> None:
        self.loseConnection()

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionDone()))


class Peer:
    """A connection to *site*, on *clock*."""

    def __init__(self, site: Any, clock: Clock, host: str = "192.0.2.1") -> None:
        self.clock = clock
        self.wire = _Wire(clock, host)
        self.wire.protocol = site.buildProtocol(self.wire.getPeer())
        self.wire.protocol.makeConnection(self.wire)

    @property
    def closed(self) -> bool:
        """Whether the server ended the connection."""
        return self.wire.disconnecting

    def send(self, data: bytes) -> None:
        """Bytes to the server."""
        if not self.closed:
            self.wire.protocol.dataReceived(data)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        """A whole request; underscores in header names are dashes."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def leave(self) -> None:
        """End the connection from this side."""
        self.wire.disconnecting = True
        self.wire.lose()

    def answers(self, head: bool = False) -> list[Answer]:
        """The answers so far, which are forgotten; with *head* they have no body."""
        data = self.wire.value()
        self.wire.clear()
        answers = []
        while data:
            header, _, data = data.partition(b"\r\n\r\n")
            status, *lines = header.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            size = 0 if head else int(headers.get("content-length", 0))
            answers.append(Answer(int(status.split()[1]), headers, data[:size]))
            data = data[size:]
        return answers

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request that is answered at once."""
        self.request(method, path, body, **headers)
        [answer] = self.answers(head=method == "HEAD")
        return answer
