"""The direct path's own parts: the transport that writes through, and the port that makes it."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from twisted.internet import main
from twisted.python.failure import Failure

from anycable_tx.transports import direct
from anycable_tx.transports.direct import SLOW, DirectTransport
from tests.transports.support import Cable, HandReactor, command, identifier


class Protocol:
    """Remembers what its transport says."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure) -> None:
        self.heard.append(reason.type.__name__)

    def slow_changed(self, slow: bool) -> None:
        self.heard.append("slow" if slow else "clear")

    def backlogged(self, size: int) -> None:
        self.heard.append(size)


class Wire:
    """A transport, and the other end of its socket."""

    def __init__(self, buffer: int = 1) -> None:
        self.reactor = HandReactor()
        ours, self.theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.protocol = Protocol()
        kind = type("Transport", (DirectTransport,), {"reactor": self.reactor, "server": None})
        self.transport = kind(ours, self.protocol, ("192.0.2.7", 1))
        self.reactor.addReader(self.transport)

    def run(self) -> None:
        while self.reactor.turn():
            pass

    def read(self) -> bytes:
        """All that can be read, while the transport goes on writing."""
        found = b""
        while True:
            self.run()
            try:
                data = self.theirs.recv(1 << 20)
            except BlockingIOError:
                return found
            if not data:
                return found
            found += data

    def fill(self) -> bytes:
        """Write until something had to be queued; answers all of it."""
        written = b""
        while self.transport.slot is not SLOW:
            written += b"%06d" % (len(written) // 6) * 100
            self.transport.write(written[-600:])
        return written


@pytest.fixture
def wire() -> Any:
    found = Wire()
    yield found
    found.theirs.close()
    found.run()
    found.transport.connectionLost(Failure(main.CONNECTION_DONE))


def test_a_write_leaves_at_once(wire):
    wire.transport.write(b"abc")
    wire.transport.writeSequence([b"d", b"ef"])
    assert wire.theirs.recv(100) == b"abcdef"
    assert wire.protocol.heard == []
    assert wire.transport.slot is wire.transport.socket
    assert wire.transport.backlog == 0
    assert wire.reactor.getWriters() == []


def test_what_does_not_fit_is_queued_and_leaves_in_order(wire):
    written = wire.fill()
    wire.transport.write(b"more")
    wire.transport.queue(b" and more")
    taken = len(written) - (wire.transport.backlog - 13)
    assert wire.protocol.heard == ["slow", len(written) - taken, 4, 9]
    assert wire.read() == written + b"more and more"
    assert wire.protocol.heard[-1] == "clear"
    assert wire.transport.backlog == 0
    assert wire.transport.slot is wire.transport.socket
    wire.transport.write(b"direct")
    assert wire.theirs.recv(100) == b"direct"


def test_queueing_on_a_clear_transport_makes_it_slow_until_it_has_left(wire):
    wire.transport.queue(b"ab")
    assert wire.transport.slot is SLOW
    wire.transport.write(b"cd")
    assert wire.transport.backlog == 4
    assert wire.read() == b"abcd"
    assert wire.protocol.heard == ["slow", 2, 2, "clear"]


def test_progress_is_noticed(wire):
    wire.fill()
    wire.transport.progressed = False
    wire.run()
    assert not wire.transport.progressed
    wire.theirs.recv(1 << 20)
    wire.run()
    assert wire.transport.progressed


@pytest.mark.parametrize("turned", [False, True])
def test_a_queue_can_be_dropped_but_for_what_is_on_its_way(wire, turned):
    written = wire.fill()
    wire.transport.write(b"x" * 1000)
    if turned:  # the queue is in the hands of the writer
        wire.transport.doWrite()
        wire.transport.write(b"y" * 1000)
        wire.transport.write(b"z" * 1000)
    wire.transport.drop_queue()
    wire.transport.write(b"end")
    assert wire.read() == written + b"x" * 1000 * turned + b"end"
    assert wire.transport.backlog == 0


def test_dropping_the_queue_of_a_clear_transport_does_nothing(wire):
    wire.transport.drop_queue()
    wire.transport.write(b"a")
    assert wire.theirs.recv(10) == b"a"


def test_what_is_queued_leaves_before_the_end(wire):
    written = wire.fill()
    wire.transport.loseConnection()
    assert wire.read() == written
    assert wire.protocol.heard[-1] == "ConnectionDone"
    assert wire.transport.fileno() == -1


def test_nothing_happens_after_the_end(wire):
    wire.transport.connectionLost(Failure(main.CONNECTION_DONE))
    assert wire.protocol.heard == ["ConnectionDone"]
    protocol = wire.protocol
    wire.transport.connectionLost(Failure(main.CONNECTION_DONE))
    wire.transport.write(b"a")
    wire.transport.queue(b"a")
    wire.transport.loseConnection()
    wire.transport.abortConnection()
    wire.run()
    assert protocol.heard == ["ConnectionDone"]
    assert wire.transport.backlog == 0


def test_an_abort_drops_the_queue(wire):
    wire.fill()
    wire.transport.abortConnection()
    wire.run()
    assert wire.protocol.heard[-1] == "ConnectionAborted"


def test_a_dead_peer_is_reported_by_the_reactor_not_by_the_write(wire):
    wire.theirs.close()
    wire.transport.write(b"a")
    wire.transport.write(b"b")
    assert wire.protocol.heard == ["slow", 1, 1]
    wire.run()
    assert wire.protocol.heard[3:] in (["ConnectionLost"], ["ConnectionDone"])


# -- the port


@pytest.fixture
def made() -> Any:
    found = Cable("direct")
    yield found
    found.close()


def test_accepted_clients_get_direct_transports(made):
    [port] = made.listen()
    client = made.dial(port)
    assert client.upgrade().status == 101
    [session] = made.node.sessions
    assert isinstance(session.outlet.transport, DirectTransport)
    assert session.outlet.transport.getPeer().host == "127.0.0.1"
    assert session.outlet.transport.getHost().port == port


def test_many_clients_are_accepted_in_one_turn(made):
    [port] = made.listen()
    clients = [made.dial(port) for _ in range(150)]
    made.until(lambda: made.factory.connections == 150)
    assert all(client.upgrade().status == 101 for client in clients)


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EMFILE, errno.ENOBUFS])
def test_an_error_while_accepting_is_twisteds_to_handle_and_clients_behind_it_are_served(made, monkeypatch, error):
    [port] = made.listen()
    listening = made.server.listeners._ports[0]
    failures = [OSError(error, "cannot accept")]

    class Failing(type(listening.socket)):
        def _accept(self) -> Any:
            if failures:
                raise failures.pop()
            return super()._accept()

    failing = Failing(listening.socket.family, listening.socket.type, 0, listening.socket.detach())
    failing.setblocking(False)
    listening.socket = failing
    listening.fileno = failing.fileno
    clients = [made.dial(port) for _ in range(3)]
    clients[0].upgrade()
    for client in clients[1:]:
        assert client.upgrade().status == 101
        client.messages()
        client.subscribe(identifier())
    for session in made.node.sessions:
        assert isinstance(session.outlet.transport, DirectTransport)
    made.publish("chat", 1)
    for client in clients[1:]:
        client.until(lambda received: b'"message":1' in received)
        assert client.payloads() == [1]


def test_the_address_of_an_ipv6_client_is_known(made):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    listening = direct.DirectPort(0, made.factory, 10, "::1", made.reactor)
    try:
        listening.startListening()
    except OSError:
        pytest.skip("no IPv6 loopback")
    client = made.dial(listening.getHost().port, "::1")
    made.node.keeps_env = lambda: True
    assert client.upgrade().status == 101
    [session] = made.node.sessions
    assert session.env.headers["REMOTE_ADDR"] == "::1"
    transport = session.outlet.transport
    assert (transport.getPeer().host, transport.getHost().host) == ("::1", "::1")
    client.send(command("subscribe", identifier=identifier()))
    http = made.dial(listening.getHost().port, "::1")
    assert http.get("/health").status == 200
    listening.stopListening()
