"""The plain path's own part: a bounded queue behind any of Twisted's transports."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.transports.plain import PIECE, PlainTransport


class Real:
    """A transport that asks for a pause when more than *room* bytes wait in it."""

    def __init__(self, room: int = 64) -> None:
        self.room = room
        self.taken = b""
        self.holds = b""
        self.producer: Any = None
        self.did: list[str] = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.holds += data
        if self.producer is not None and len(self.holds) > self.room:
            self.producer.pauseProducing()

    def drain(self) -> None:
        """The peer takes all that is in here."""
        self.taken, self.holds = self.taken + self.holds, b""
        if self.producer is not None:
            self.producer.resumeProducing()

    def loseConnection(self) -> None:
        self.did.append("lose")

    def abortConnection(self) -> None:
        self.did.append("abort")

    def pauseProducing(self) -> None:
        self.did.append("pause")

    def resumeProducing(self) -> None:
        self.did.append("resume")


class Protocol:
    """Remembers what its transport says."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def slow_changed(self, slow: bool) -> None:
        self.heard.append("slow" if slow else "clear")

    def backlogged(self, size: int) -> None:
        self.heard.append(size)


class Wire:
    """A transport between the two."""

    def __init__(self, room: int = 64) -> None:
        self.real = Real(room)
        self.protocol = Protocol()
        self.transport = PlainTransport(self.real, self.protocol)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def full(wire: Wire) -> Wire:
    wire.transport.write(b"x" * 65)
    return wire


def test_writes_pass_through(wire):
    wire.transport.write(b"abc")
    wire.transport.writeSequence([b"d", b"ef"])
    wire.transport.queue(b"g")
    assert wire.real.holds == b"abcdefg"
    assert wire.transport.backlog == 0
    assert wire.protocol.heard == []
    assert wire.transport.slot is wire.transport


def test_what_is_written_to_a_full_transport_waits_in_order(wire):
    full(wire)
    assert wire.protocol.heard == ["slow"]
    wire.transport.write(b"ab")
    wire.transport.write(b"cde")
    assert wire.protocol.heard == ["slow", 2, 3]
    assert wire.transport.backlog == 6  # one for what is in the transport
    wire.real.drain()
    assert wire.real.holds == b"abcde"
    assert wire.transport.backlog == 0
    assert wire.protocol.heard[-1] == "clear"


def test_a_transport_that_is_full_again_is_given_no_more(wire):
    full(wire)
    for letter in (b"a", b"b", b"c"):
        wire.transport.write(letter * 50)
    wire.real.drain()
    assert wire.real.holds == b"a" * 50 + b"b" * 50
    assert wire.transport.backlog == 51
    assert wire.protocol.heard[-1] == "slow"
    wire.transport.write(b"d")
    wire.real.drain()
    assert wire.real.holds == b"c" * 50 + b"d"
    assert wire.protocol.heard[-1] == "clear"


def test_large_data_is_passed_on_in_pieces(wire):
    data = bytes(range(256)) * 256
    wire.transport.write(data)
    assert wire.real.holds == data[:PIECE]
    assert wire.protocol.heard == ["slow", len(data) - PIECE]
    wire.transport.write(b"end")
    for n in range(2, 5):
        wire.transport.progressed = False
        wire.real.drain()
        assert wire.transport.progressed
        assert wire.real.holds == data[PIECE * (n - 1) : PIECE * n]
    wire.real.drain()
    assert wire.real.taken + wire.real.holds == data + b"end"
    assert wire.transport.backlog == 0


def test_a_queue_can_be_dropped_but_for_what_is_on_its_way(wire):
    data = b"y" * (PIECE + 100)
    wire.transport.write(data)
    wire.transport.write(b"dropped")
    wire.transport.write(b"dropped too")
    wire.transport.drop_queue()
    wire.transport.write(b"end")
    assert wire.transport.backlog == 104
    while wire.real.holds:
        wire.real.drain()
    assert wire.real.taken == data + b"end"


def test_dropping_an_empty_queue_does_nothing(wire):
    full(wire).transport.drop_queue()
    wire.transport.write(b"end")
    wire.real.drain()
    assert wire.real.holds == b"end"


def test_the_connection_ends_after_what_waits_was_written(wire):
    full(wire)
    wire.transport.write(b"last")
    wire.transport.loseConnection()
    wire.transport.write(b"too late")
    assert wire.real.did == []
    wire.real.drain()
    assert wire.real.holds == b"last"
    assert wire.real.did == ["lose"]
    assert wire.real.producer is None


def test_a_clear_connection_ends_at_once(wire):
    wire.transport.write(b"last")
    wire.transport.loseConnection()
    assert wire.real.did == ["lose"]


def test_an_abort_and_a_pause_are_passed_on(wire):
    wire.transport.stopReading()
    wire.transport.startReading()
    wire.transport.abortConnection()
    wire.transport.unregisterProducer()
    wire.real.producer.stopProducing()
    assert wire.real.did == ["pause", "resume", "abort"]
