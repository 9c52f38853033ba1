"""Starting and draining, on a clock: what happens in which order, and what does not hold the rest up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from anycable_tx import server as server_module
from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.brokers.none import NoBroker
from anycable_tx.cable.messages import Publication
from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.server import Server
from anycable_tx.testing.sync import result_of
from tests.transports.peer import Peer

BASE, EXT = "actioncable-v1-json", "actioncable-v1-ext-json"
RESTART = {"type": "disconnect", "reason": "server_restart", "reconnect": True}
#: What a stop may take beyond its timeout.
SLACK = 1.0


class Port:
    """A listening port that closes in the reactor's next turn, as real ones do."""

    def __init__(self, reactor: Reactor, number: int) -> None:
        self.reactor = reactor
        self.number = number

    def stopListening(self) -> Deferred[None]:
        self.reactor.happened.append(f"close {self.number}")
        closed: Deferred[None] = Deferred()
        self.reactor.callLater(0, closed.callback, None)
        return closed


class Reactor(Clock):
    """A clock that pretends to listen, and remembers in which order things ``happened``."""

    def __init__(self) -> None:
        super().__init__()
        self.happened: list[str] = []
        self.occupied: set[int] = set()

    def listenTCP(self, number: int, factory: Any, backlog: int, interface: str) -> Port:
        if number in self.occupied:
            raise CannotListenError(interface, number, OSError(98, "Address already in use"))
        self.happened.append(f"listen {number}")
        return Port(self, number)


class Part:
    """A provider that remembers its start and stop. Each of them can be told to fail, or to wait for ever."""

    stores = distributed = False

    def __init__(self, name: str, reactor: Reactor) -> None:
        self.name = name
        self.announcement = f"the {name}"
        self.wrong = ""
        self.starting: Callable[[], Any] | None = None
        self.stopping: Callable[[], Any] | None = None
        self._happened = reactor.happened

    async def start(self) -> None:
        if self.starting is not None:
            await self.starting()
        self._happened.append(f"start {self.name}")

    async def give_up_sessions(self) -> None:
        """There are none."""

    def problem(self) -> str:
        return self.wrong

    async def stop(self) -> None:
        self._happened.append(f"stop {self.name}")
        if self.stopping is not None:
            await self.stopping()


async def fails() -> None:
    raise ConfigurationError("no luck")


async def hangs() -> None:
    await Deferred()


class World:
    """A server on a clock. With *fakes* its providers are Parts, by the names of their kinds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fakes: bool = False, **settings: Any) -> None:
        self.reactor = Reactor()
        self.happened = self.reactor.happened
        self.parts: dict[str, Part] = {}
        if fakes:
            monkeypatch.setattr(server_module, "create", self._create)
        settings = {"public": True, "port": 80, "http_broadcast_port": 81, **settings}
        self.server = Server(defaults(**settings), self.reactor)

    def _create(self, provider: Any, context: Any) -> Part:
        name = provider.name if provider.kind == "controller" else provider.kind
        return self.parts.setdefault(name, Part(name, self.reactor))

    def start(self) -> None:
        result_of(self.server.start())

    def begin(self, work: Any) -> list[Any]:
        """Run *work*; its result will be in the list."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        return results

    def run(self, seconds: float, until: list[Any] | None = None, step: float = 0.025) -> float:
        """Let time pass, until the list has something in it; answers how long that took."""
        begun = self.reactor.seconds()
        while self.reactor.seconds() < begun + seconds and not until:
            self.reactor.advance(step)
        return self.reactor.seconds() - begun

    def stop(self, within: float = 60.0) -> float:
        """Stop the server; answers how long that took."""
        done = self.begin(self.server.stop())
        took = self.run(within, done)
        assert done == [None]
        return took

    def client(self, protocol: str = BASE) -> Client:
        client = Client(self)
        client.upgrade(protocol)
        return client


class Client(Peer):
    """A WebSocket client. ``closed_at`` is when it was sent a close frame, which it answers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.closed_at: float | None = None
        self.close_code = 0
        self.answers_close = True
        self.frames: list[Any] = []
        super().__init__(world.server.factory, world.reactor)
        write = self.wire.write

        def written(data: bytes) -> None:
            write(data)
            self.look()

        self.wire.write = written  # type: ignore[method-assign]

    def upgrade(self, protocol: str, path: str = "/cable") -> None:
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
        )

    def look(self) -> None:
        """Take the frames that arrived; the head of the answer comes first."""
        data = self.wire.value()
        if data.startswith(b"HTTP/"):
            data = data.partition(b"\r\n\r\n")[2]
        self.wire.clear()
        while data:
            opcode, size, start = data[0] & 15, data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            payload, data = data[start : start + size], data[start + size :]
            if opcode == 8:
                self.closed_at = self.world.reactor.seconds()
                self.close_code = int.from_bytes(payload[:2], "big")
                if self.answers_close:
                    frame = b"\x88\x82\0\0\0\0" + payload[:2]
                    self.world.reactor.callLater(0, self.send, frame)
            else:
                self.frames.append(orjson.loads(payload))

    def command(self, **fields: Any) -> None:
        payload = orjson.dumps(fields)
        head = (
            bytes([0x81, 0x80 | len(payload)]) if len(payload) < 126 else b"\x81\xfe%c%c" % divmod(len(payload), 256)
        )
        self.send(head + b"\0\0\0\0" + payload)

    def heard(self) -> list[Any]:
        """The frames but welcome and pings."""
        return [f for f in self.frames if f.get("type") not in ("welcome", "ping")]


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """Everything that is logged meanwhile."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def texts(log: list[LogEvent], least: Any = LogLevel.info) -> list[str]:
    return [formatEvent(e) for e in log if e["log_level"] >= least and e["log_namespace"].startswith("anycable_tx")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def make(**settings: Any) -> World:
        return World(monkeypatch, **settings)

    return make


# -- starting


def test_providers_start_before_the_ports_and_stop_after_them_in_this_order(world: Callable[..., World]) -> None:
    it = world(fakes=True, controllers="streams,null")
    it.start()
    starts = ["start streams", "start null", "start broker", "start pubsub", "start broadcaster"]
    assert it.happened == [*starts, "listen 80"]
    it.happened.clear()
    it.stop()
    assert it.happened == ["close 80", "stop broadcaster", "stop null", "stop streams", "stop broker", "stop pubsub"]


@pytest.mark.statement("CO-35", "BR-78")
def test_every_line_about_a_port_is_written_after_all_ports_are_open(
    world: Callable[..., World], log: list[LogEvent]
) -> None:
    it = world(broker="memory", secret="s", public=False, presets="broker", path="/cable,/b")
    seen: dict[str, int] = {}
    listen = it.reactor.listenTCP

    def listening(number: int, *rest: Any) -> Port:
        seen[f"port {number}"] = len(texts(log))
        return listen(number, *rest)

    it.reactor.listenTCP = listening  # type: ignore[method-assign]
    it.start()
    lines = texts(log)
    epoch = it.server.node.broker.epoch  # type: ignore[attr-defined]
    assert lines[2:] == [
        "JWT authentication is enabled param=jid enforced=false",
        "Using channels router: $pubsub",
        f"Using in-memory broker (epoch: {epoch}, history limit: 100, history ttl: 300s, sessions ttl: 300s, "
        "presence ttl: 15s)",
        "auto-generated authorization secret from the application secret",
        "Accept broadcast requests at http://localhost:81/_broadcast (authorization required)",
        "no RPC configured",
        "Handle WebSocket connections at http://localhost:80/cable",
        "Handle WebSocket connections at http://localhost:80/b",
        "Handle health requests at http://localhost:80/health",
        "Handle readiness requests at http://localhost:80/ready",
        "Handle API requests at http://localhost:80/api (authorization required)",
    ]
    assert lines[0] == "load presets"
    assert lines[1].startswith("Starting AnyCable ")
    assert seen == {"port 80": 5, "port 81": 5}
    it.stop()


def test_what_a_provider_announces_is_text_and_no_format(world: Callable[..., World], log: list[LogEvent]) -> None:
    it = world(fakes=True, controllers="null")
    for part in it.parts.values():
        part.announcement = "{what} {0} %s\nand more"
    it.start()
    assert texts(log).count("{what} {0} %s") == texts(log).count("and more") == 4
    it.stop()


@pytest.mark.parametrize("how", [fails, hangs])
@pytest.mark.parametrize("which", ["null", "broker", "pubsub", "broadcaster"])
def test_a_start_that_fails_or_is_given_up_stops_what_had_started_and_opens_no_port(
    world: Callable[..., World], which: str, how: Any, log: list[LogEvent]
) -> None:
    it = world(fakes=True, controllers="streams,null")
    it.parts[which].starting = how
    starting = Deferred.fromCoroutine(it.server.start())
    failures: list[Any] = []
    starting.addErrback(failures.append)
    starting.cancel()
    [failure] = failures
    assert failure.type is ConfigurationError or how is hangs
    started = [what.split()[1] for what in it.happened if what.startswith("start")]
    stopped = [what.split()[1] for what in it.happened if what.startswith("stop")]
    assert sorted(stopped) == sorted(started)
    assert which not in started
    assert not any(what.startswith("listen") for what in it.happened)
    result_of(it.server.stop())
    assert "Shutting down..." not in texts(log)
    assert it.reactor.getDelayedCalls() == []


@pytest.mark.statement("CO-26")
def test_an_occupied_port_is_named_and_the_others_are_closed_again(world: Callable[..., World]) -> None:
    it = world(host="127.0.0.1")
    it.reactor.occupied.add(81)
    with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1:81: .*Address already in use"):
        it.start()
    assert it.happened == ["listen 80", "close 80"]


def test_paths_that_are_off_are_not_served(world: Callable[..., World], log: list[LogEvent]) -> None:
    it = world(health_path="", ready_path="", api_path="")
    it.start()
    assert [Peer(it.server.factory, it.reactor).ask("GET", path).status for path in ("/", "/health")] == [404, 404]
    assert not [line for line in texts(log) if "requests at" in line and "broadcast" not in line]
    it.stop()


# -- health and readiness


def test_readiness_says_why_not(world: Callable[..., World]) -> None:
    it = world(shutdown_delay=2)

    def ready() -> tuple[int, bytes]:
        answer = Peer(it.server.factory, it.reactor).ask("GET", "/ready")
        return answer.status, answer.body

    assert ready() == (503, b"starting\n")
    it.start()
    assert ready() == (200, b"ready\n")
    done = it.begin(it.server.stop())
    assert ready() == (503, b"draining\n")
    it.run(10, done)
    assert done == [None]


@pytest.mark.statement("CO-41")
@pytest.mark.parametrize(("drain", "status"), [(False, 200), (True, 503)])
def test_health_stays_well_during_the_delay_unless_told_otherwise(
    world: Callable[..., World], drain: bool, status: int
) -> None:
    it = world(shutdown_delay=2, health_drain=drain)
    it.start()
    done = it.begin(it.server.stop())
    it.run(1.9)
    assert Peer(it.server.factory, it.reactor).ask("GET", "/health").status == status
    assert "close 80" not in it.happened
    it.run(10, done)
    assert done == [None]


# -- stopping providers


@pytest.mark.parametrize("which", ["streams", "null", "broker", "pubsub", "broadcaster"])
def test_a_provider_that_fails_to_stop_is_reported_and_the_others_stop(
    world: Callable[..., World], which: str, log: list[LogEvent]
) -> None:
    it = world(fakes=True, controllers="streams,null")
    it.start()
    it.parts[which].stopping = fails
    it.stop(within=1.0)
    assert {what for what in it.happened if what.startswith("stop")} == {f"stop {name}" for name in it.parts}
    [report] = texts(log, LogLevel.warn)[1:]  # the first says what public means
    assert {"streams": "Part.stop", "null": "Part.stop"}.get(which, which).replace("sub", "/sub") in report
    assert "fail" in report


@pytest.mark.statement("CO-42")
@pytest.mark.parametrize("which", ["streams", "null", "broker", "pubsub", "broadcaster"])
def test_a_provider_that_hangs_is_given_up_in_time_and_the_others_stop(
    world: Callable[..., World], which: str, log: list[LogEvent]
) -> None:
    it = world(fakes=True, controllers="streams,null", shutdown_timeout=1)
    it.start()
    it.parts[which].stopping = hangs
    assert it.stop(within=1.0 + SLACK) >= (0.5 if which == "broadcaster" else 1.0)
    assert {what for what in it.happened if what.startswith("stop")} == {f"stop {name}" for name in it.parts}
    [report] = texts(log, LogLevel.warn)[1:]
    what = {"streams": "controllers", "null": "controllers", "pubsub": "pub/sub", "broadcaster": "broadcaster http"}
    assert report == f"{what.get(which, which)}: gave up waiting"
    assert texts(log)[-1] == "Stopped"


@pytest.mark.statement("CO-42")
@pytest.mark.parametrize("timeout", [0, 1, 30])
def test_when_everything_hangs_the_stop_still_ends(world: Callable[..., World], timeout: int) -> None:
    it = world(fakes=True, controllers="streams,null", shutdown_timeout=timeout)
    it.start()
    for part in it.parts.values():
        part.stopping = hangs
    assert it.stop() <= timeout + SLACK
    assert {what for what in it.happened if what.startswith("stop")} == {f"stop {name}" for name in it.parts}


def test_behind_a_stuck_provider_the_next_gets_a_moment_to_do_its_work(world: Callable[..., World]) -> None:
    it = world(fakes=True, controllers="null", shutdown_timeout=1)
    it.start()
    ended = []

    async def takes_a_moment() -> None:
        await it.server._pause(0.15)
        ended.append("broker")

    it.parts["null"].stopping = hangs
    it.parts["broker"].stopping = takes_a_moment
    it.stop(within=1.0 + SLACK)
    assert ended == ["broker"]


@pytest.mark.statement("CO-43")
@pytest.mark.parametrize("after", [1.0, 4.0, 9.0])
def test_in_a_hurry_the_stop_ends_within_a_second_wherever_it_is(world: Callable[..., World], after: float) -> None:
    it = world(fakes=True, controllers="null", shutdown_delay=3, shutdown_timeout=10)
    it.start()
    for part in it.parts.values():
        part.stopping = hangs
    done = it.begin(it.server.stop())
    it.run(after)
    assert not done
    it.server.hurry()
    assert it.run(5, done) <= SLACK
    assert done == [None]
    assert {what for what in it.happened if what.startswith("stop")} == {f"stop {name}" for name in it.parts}


@pytest.mark.statement("CO-43")
def test_in_a_hurry_clients_are_told_and_not_waited_for_and_their_sessions_are_kept(
    world: Callable[..., World], log: list[LogEvent]
) -> None:
    it = world(shutdown_slowdrain=True, broker="memory")
    released: list[str] = []

    async def release(sid: str, record: bytes) -> None:
        assert "stop" not in released
        released.append(sid)

    async def stop() -> None:
        released.append("stop")

    it.server.node.broker.release_session = release  # type: ignore[method-assign]
    stop_broker = it.server.node.broker.stop
    it.server.node.broker.stop = stop  # type: ignore[method-assign]
    it.start()
    clients = [it.client(EXT) for _ in range(20)]
    for client in clients:
        client.answers_close = False
    done = it.begin(it.server.stop())
    it.run(1.0)
    assert 0 < sum(client.closed_at is not None for client in clients) < 20
    it.server.hurry()
    assert it.run(5, done) <= SLACK
    assert [client.close_code for client in clients] == [1001] * 20
    assert len(set(released[:-1])) == 20
    assert released[-1] == "stop"
    for client in clients:
        client.leave()
    assert len(released) == 21
    assert texts(log, LogLevel.error) == []
    result_of(stop_broker())


def test_a_part_that_cannot_do_its_work_makes_the_node_unready(world: Callable[..., World]) -> None:
    it = world(fakes=True)
    it.start()
    assert it.server.not_ready() == []
    it.parts["broker"].wrong = "no connection"
    it.parts["broadcaster"].wrong = "deaf"
    assert it.server.not_ready() == ["no connection", "deaf"]


def test_stopping_a_server_that_never_started_does_nothing(world: Callable[..., World], log: list[LogEvent]) -> None:
    it = world(fakes=True)
    result_of(it.server.stop())
    assert it.happened == []
    assert texts(log) == []


# -- closing clients


@pytest.mark.statement("CP-137", "CO-38")
def test_a_client_that_can_resume_gets_the_close_alone_and_any_other_is_told(world: Callable[..., World]) -> None:
    it = world(broker="memory")
    it.start()
    base, extended = it.client(BASE), it.client(EXT)
    it.stop()
    assert base.heard() == [RESTART]
    assert extended.heard() == []
    assert (base.close_code, extended.close_code) == (1001, 1001)


@pytest.mark.statement("CP-137")
@pytest.mark.parametrize("settings", [{"broker": "none"}, {"broker": "memory", "sessions_ttl": 0}])
def test_an_extended_client_whose_session_is_not_kept_is_told(
    world: Callable[..., World], settings: dict[str, Any]
) -> None:
    it = world(**settings)
    assert isinstance(it.server.node.broker, NoBroker if settings["broker"] == "none" else MemoryBroker)
    it.start()
    client = it.client(EXT)
    it.stop()
    assert client.heard() == [RESTART]
    assert client.close_code == 1001


@pytest.mark.statement("CP-138")
def test_what_was_queued_before_the_stop_is_written_first(world: Callable[..., World]) -> None:
    it = world(broker="memory")
    it.start()
    clients = [it.client(BASE), it.client(EXT)]
    identifier = '{"channel":"$pubsub","stream_name":"s"}'
    for client in clients:
        client.command(command="subscribe", identifier=identifier)
    it.run(0.1)
    for n in range(3):
        result_of(it.server.node.publish(Publication("s", b"%d" % n)))
    it.stop()
    base, extended = (
        [f.get("message", f.get("type")) for f in client.heard() if f.get("type") != "confirm_subscription"]
        for client in clients
    )
    assert base == [0, 1, 2, "disconnect"]
    assert extended == [0, 1, 2]


def test_a_broker_and_a_controller_that_take_their_time_with_sessions_are_waited_for(
    world: Callable[..., World], log: list[LogEvent]
) -> None:
    it = world(broker="memory")
    it.start()
    node, kept, told = it.server.node, [], []
    release = node.broker.release_session

    async def slow_release(sid: str, record: bytes) -> None:
        await it.server._pause(0.7)
        kept.append(sid)
        await release(sid, record)

    async def slow_disconnect(*_: Any) -> None:
        await it.server._pause(0.8)
        told.append(len(kept))

    node.broker.release_session = slow_release  # type: ignore[method-assign]
    node.controllers.disconnect = slow_disconnect  # type: ignore[method-assign]
    for _ in range(3):
        it.client(EXT)
    for session in node.sessions:
        session.disconnectable = True
    it.stop(within=2)
    assert len(kept) == 3
    assert told == [3, 3, 3]
    assert texts(log, LogLevel.warn)[1:] == []


def test_a_client_that_is_being_let_in_when_the_ports_close_is_told_once_it_is_in(
    world: Callable[..., World],
) -> None:
    it = world()
    it.start()
    authenticate = it.server.node.controllers.authenticate

    async def slowly(sid: str, env: Any) -> Any:
        await it.server._pause(0.5)
        return await authenticate(sid, env)

    it.server.node.controllers.authenticate = slowly  # type: ignore[method-assign]
    late = it.client()
    assert late.frames == []
    it.stop(within=5)
    assert [f["type"] for f in late.frames if f["type"] != "ping"] == ["welcome", "disconnect"]
    assert late.heard() == [RESTART]
    assert late.close_code == 1001


@pytest.mark.statement("CO-40", "CP-137")
def test_who_asks_for_an_upgrade_after_the_ports_closed_is_refused(world: Callable[..., World]) -> None:
    it = world()
    it.start()
    it.client().answers_close = False
    late = Peer(it.server.factory, it.reactor)
    done = it.begin(it.server.stop())
    it.run(0.1)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    assert late.ask("GET", "/cable", **headers, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==").status == 503
    it.run(10, done)
    assert done == [None]


def test_a_client_that_never_answers_the_close_is_dropped(world: Callable[..., World]) -> None:
    it = world()
    it.start()
    silent = it.client()
    silent.answers_close = False
    assert it.stop() < 3
    assert silent.wire.disconnecting


def test_a_publisher_that_never_ends_its_request_leaves_the_clients_half_of_the_time(
    world: Callable[..., World], log: list[LogEvent]
) -> None:
    it = world(shutdown_timeout=8)
    it.start()
    client = it.client()
    publisher = Peer(it.server.sites.site_for(81), it.reactor)
    publisher.send(b"POST /_broadcast HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    took = it.stop()
    assert 4.0 <= (client.closed_at or 0) <= 4.2
    assert took < 5
    assert "running requests: gave up waiting" in texts(log)


def drained(it: World, count: int) -> list[float]:
    """When each of *count* clients was closed, counted from the signal, in order."""
    it.start()
    clients = [it.client() for _ in range(count)]
    signalled = it.reactor.seconds()
    done = it.begin(it.server.stop())
    it.run(60, done, step=0.01)
    assert done == [None]
    return sorted((client.closed_at or 0) - signalled for client in clients)


@pytest.mark.statement("CO-45")
@pytest.mark.parametrize(("count", "least", "most"), [(100, 20, 25), (10, 4, 5), (1, 0, 0.5)])
def test_a_slow_drain_spreads_the_closes(world: Callable[..., World], count: int, least: float, most: float) -> None:
    times = drained(world(shutdown_slowdrain=True, shutdown_timeout=30), count)
    assert least <= times[-1] <= most
    assert all(later - earlier <= 0.52 for earlier, later in pairwise(times))


@pytest.mark.statement("CO-45")
def test_a_slow_drain_keeps_its_time_when_there_are_many(world: Callable[..., World]) -> None:
    it = world(shutdown_slowdrain=True, shutdown_timeout=5)
    assert it.server._pace(1000, 5.0) == (1, pytest.approx(4.1 / 1000))
    # The clock is coarser than the gaps: those whose time has passed go together.
    assert 3.9 <= drained(it, 1000)[-1] <= 4.3


def test_a_usual_drain_closes_groups_and_takes_at_most_a_third_of_the_time(world: Callable[..., World]) -> None:
    times = drained(world(shutdown_timeout=6), 100)
    assert len(set(times)) == 7  # 16 at a time
    assert times[-1] < 1
    it = world()
    for count in (1, 100, 10_000, 1_000_000):
        size, gap = it.server._pace(count, 30.0)
        assert size * (10 / gap) >= count
    assert it.server._pace(5, 0.0)[0] == 16
