"""Metrics to a StatsD server: what the packets hold, and what happens when nobody is there."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import udp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import LogLevel

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.monitoring.rotation import Rotation
from anycable_tx.monitoring.statsd import StatsD, packed, tag_marks
from tests.monitoring.support import logged, texts
from tests.transports.support import HandReactor


class Reactor(HandReactor):
    """With UDP, and with names: ``names`` has their addresses, or Deferreds of them.

    What is refused is told to the socket's protocol, as Twisted's reactor on asyncio does, or, with *ends*, ends the
    socket, as that on epoll does.
    """

    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self._ends = ends
        self.names: dict[str, Any] = {}
        self.refusing = False
        self.nameResolver = SimpleNamespace(resolveHostName=self._resolve)

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> udp.Port:
        if self.refusing:
            raise CannotListenError(interface, port, OSError(24, "Too many open files"))
        made = udp.Port(port, protocol, interface, maxPacketSize, self)
        made.startListening()
        return made

    def _serve(self, selectable: Any, events: int) -> None:
        if isinstance(selectable, udp.Port) and not self._ends:
            selectable.doRead()
        elif isinstance(selectable, udp.Port) and events & select.POLLERR:
            self.removeReader(selectable)
            selectable.connectionLost()
        else:
            super()._serve(selectable, events)

    def _resolve(self, receiver: Any, name: str, **_: Any) -> None:
        def found(addresses: list[str]) -> None:
            for address in addresses:
                receiver.addressResolved(IPv4Address("UDP", address, 0))
            receiver.resolutionComplete()

        answer = self.names[name]
        if isinstance(answer, Deferred):
            answer.addCallback(found)
        else:
            found(answer)


class World:
    """A StatsD server at 127.0.0.1, and a rotation of 10 seconds that sends to it."""

    def __init__(self, host: str = "127.0.0.1", *, ends: bool = False, **settings: Any) -> None:
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("127.0.0.1", 0))
        self.server.settimeout(0.2)
        self.reactor = Reactor(ends=ends)
        self.metrics = Metrics()
        place = f"{host}:{self.server.getsockname()[1]}"
        self.statsd = StatsD(defaults(statsd_host=place, **settings), self.reactor, self.metrics)
        self.rotation = Rotation(self.metrics, self.reactor, 10, [self.statsd])
        self._stopped = False

    def start(self) -> World:
        self.rotation.start()
        return self

    def turn(self) -> None:
        while self.reactor.turn(0.02):
            pass

    def rotate(self) -> list[bytes]:
        """Wait for a rotation; the packets that came."""
        self.reactor.advance(10)
        self.turn()
        return self.packets()

    def packets(self) -> list[bytes]:
        found = []
        try:
            while True:
                found.append(self.server.recv(65536))
        except TimeoutError:
            return found

    def lines(self) -> list[str]:
        """The lines of a rotation."""
        return [line for packet in self.rotate() for line in packet.decode().split("\n")]

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            done = Deferred.fromCoroutine(self.rotation.stop())
            self.turn()
            assert done.called
            assert self.reactor.getReaders() == []
            self.server.close()


@pytest.fixture
def world() -> Iterator[Any]:
    made: list[World] = []

    def make(host: str = "127.0.0.1", **settings: Any) -> World:
        made.append(World(host, **settings))
        return made[-1]

    yield make
    for each in made:
        each.stop()


# -- what is sent


@pytest.mark.statement("HE-15")
def test_counters_are_sent_by_what_they_grew_and_gauges_always(world: Any) -> None:
    it = world().start()
    it.metrics.gauge("clients_num", lambda: 0)
    it.metrics.count("publications_total", 3)
    it.metrics.count("failed_auths_total", 1, "expired")
    it.metrics.count("failed_auths_total", 1, "unauthorized")
    assert it.lines() == [
        "anycable_go.failed_auths_total:2|c",
        "anycable_go.publications_total:3|c",
        "anycable_go.clients_num:0|g",
    ]
    it.metrics.count("publications_total", 2)
    assert it.lines() == ["anycable_go.publications_total:2|c", "anycable_go.clients_num:0|g"]
    assert it.lines() == ["anycable_go.clients_num:0|g"]


@pytest.mark.statement("HE-16")
@pytest.mark.parametrize(
    ("format", "line"),
    [
        ("datadog", "shop.clients_num:1|g|#env:dev,z:1"),
        ("influxdb", "shop.clients_num,env=dev,z=1:1|g"),
        ("graphite", "shop.clients_num;env=dev;z=1:1|g"),
    ],
)
def test_tags_and_prefix(world: Any, format: str, line: str) -> None:
    it = world(metrics_tags="env:dev,z:1", statsd_tags_format=format, statsd_prefix="shop.").start()
    it.metrics.gauge("clients_num", lambda: 1)
    assert it.lines() == [line]


@pytest.mark.statement("HE-16")
def test_without_tags_the_format_does_not_matter() -> None:
    assert {tag_marks({}, format) for format in ("datadog", "influxdb", "graphite")} == {("", "")}


def test_what_means_something_in_a_line_cannot_be_in_a_tag() -> None:
    odd = {"a,b": "x:y|z\n#=;@~ w"}
    assert tag_marks(odd, "datadog") == ("", "|#a_b:x_y_z_______w")
    assert tag_marks(odd, "influxdb") == (",a_b=x_y_z_______w", "")


def test_an_unknown_format_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="statsd_tags_format: 'dogstatsd' is not accepted; expected one of"):
        defaults(statsd_tags_format="dogstatsd")


@pytest.mark.statement("HE-17")
@pytest.mark.parametrize("size", [80, 200, 1400])
def test_no_packet_is_larger_than_allowed(world: Any, size: int) -> None:
    it = world(statsd_max_packet_size=size).start()
    names = [name for name in it.metrics.counters() if name.endswith("_total")][:40]
    for name in names:
        it.metrics.count(name)
    packets = it.rotate()
    assert all(len(packet) <= size for packet in packets)
    assert not any(packet.startswith(b"\n") or packet.endswith(b"\n") for packet in packets)
    lines = b"\n".join(packets).decode().split("\n")
    assert sorted(lines) == sorted(f"anycable_go.{name}:1|c" for name in names)
    if size == 1400:
        assert len(packets) <= sum(len(line) + 1 for line in lines) // 1300 + 1


def test_packets_are_filled() -> None:
    assert list(packed([b"aa", b"bb", b"c", b"dddd", b"e"], 5)) == [b"aa\nbb", b"c", b"dddd", b"e"]
    assert list(packed([], 5)) == []


def test_a_line_that_does_not_fit_is_dropped_and_counted(world: Any) -> None:
    it = world(statsd_max_packet_size=30).start()
    it.metrics.count("publications_total", 1)  # anycable_go.publications_total:1|c: 34 bytes
    it.metrics.gauge("clients_num", lambda: 1)
    assert it.rotate() == [b"anycable_go.clients_num:1|g"]
    assert it.metrics.value("statsd_errors_total", "too_large") == 1


def test_what_has_not_been_sent_at_the_end_is_sent_then(world: Any) -> None:
    it = world().start()
    it.metrics.count("publications_total")
    done = Deferred.fromCoroutine(it.rotation.stop())
    it.turn()
    assert done.called
    assert it.packets() == [b"anycable_go.publications_total:1|c"]


# -- where it is sent


def test_a_name_is_looked_up_and_followed_when_it_moves(world: Any) -> None:
    it = world("stats.example")
    it.reactor.names["stats.example"] = ["127.0.0.1"]
    it.start()
    it.metrics.gauge("clients_num", lambda: 1)
    assert it.lines() == ["anycable_go.clients_num:1|g"]
    it.reactor.names["stats.example"] = ["127.0.0.9"]
    it.rotate()  # the next one goes there
    assert it.rotate() == []
    it.reactor.names["stats.example"] = []  # nobody knows it: it stays where it was
    it.rotate()
    it.reactor.names["stats.example"] = ["127.0.0.1"]
    it.rotate()
    assert "anycable_go.clients_num:1|g" in it.lines()


def test_a_slow_answer_to_a_name_holds_nothing_up(world: Any) -> None:
    it = world("stats.example")
    answer: Deferred[list[str]] = Deferred()
    it.reactor.names["stats.example"] = answer
    it.start()
    it.metrics.gauge("clients_num", lambda: 1)
    assert it.rotate() == it.rotate() == []
    assert it.metrics.value("statsd_errors_total", "unresolved") == 2
    answer.callback(["127.0.0.1"])
    assert it.lines() == ["anycable_go.statsd_errors_total:1|c", "anycable_go.clients_num:1|g"]


def test_a_stop_does_not_wait_for_a_name(world: Any) -> None:
    it = world("stats.example")
    answer: Deferred[list[str]] = Deferred()
    it.reactor.names["stats.example"] = answer
    it.start()
    it.stop()
    answer.callback(["127.0.0.1"])
    assert it.reactor.getReaders() == []


@pytest.mark.parametrize("ends", [False, True], ids=["the socket is told", "the socket ends"])
def test_a_port_that_is_closed_is_counted_and_logged_once(world: Any, ends: bool) -> None:
    it = world(ends=ends).start()
    it.metrics.gauge("clients_num", lambda: 1)
    port = it.server.getsockname()[1]
    it.server.close()
    with logged() as events:
        for _ in range(3):
            it.reactor.advance(10)
            it.turn()
        it.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        it.server.bind(("127.0.0.1", port))
        it.server.settimeout(0.2)
        it.rotate()
        it.rotate()
    assert it.metrics.value("statsd_errors_total", "refused") == 3
    assert texts(events) == [
        f"metrics do not reach StatsD at 127.0.0.1:{port}",
        f"Send statsd metrics to 127.0.0.1:{port} again",
    ]
    assert [event["log_level"] for event in events] == [LogLevel.warn, LogLevel.info]
    assert events[0]["attrs"]["reason"] == "refused"
    assert it.metrics.value("internal_errors_total") == 0


def test_a_socket_that_cannot_be_had_is_tried_again(world: Any) -> None:
    it = world()
    it.reactor.refusing = True
    with logged() as events:
        it.start()
        it.rotate()
    assert len(events) == 1
    assert it.metrics.value("statsd_errors_total", "unreachable") >= 1
    it.metrics.gauge("clients_num", lambda: 1)
    it.reactor.refusing = False
    it.rotate()
    assert "anycable_go.clients_num:1|g" in it.lines()


def test_an_address_that_cannot_be_reached_is_counted(world: Any) -> None:
    it = world("[fe80::1]")  # link-local, and no link is named
    it.start()
    it.turn()
    assert it.metrics.value("statsd_errors_total", "unreachable") == 1
    assert it.metrics.value("internal_errors_total") == 0


@pytest.mark.parametrize("place", ["localhost", "localhost:", ":8125", "a:b", "a:0", "a:65536", "a b:1", "::1:8125"])
def test_a_place_that_is_none_stops_the_start(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"statsd_host: .* is not accepted; expected host:port, such as"):
        defaults(statsd_host=place)
