"""The HTTP side: routes, bounds in time and size, health, readiness and the drain."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.transports import site as site_module
from anycable_tx.transports.site import Readiness, Sites, answer
from tests.transports.peer import Peer


class Echo(Resource):
    """Answers with the body it got."""

    isLeaf = True
    max_body = 10

    def render(self, request: Request) -> bytes:
        content: Any = request.content
        return content.read()


class Blind(Echo):
    """Wants no bodies."""

    def reads_body(self, request: Request) -> bool:
        return request.getHeader("x-read") == "yes" and request.method == b"POST"


class Slow(Resource):
    """Answers when told."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Request] = []

    def render(self, request: Request) -> int:
        self.waiting.append(request)
        return NOT_DONE_YET

    def finish(self) -> None:
        request = self.waiting.pop(0)
        request.setHeader(b"content-length", b"0")
        request.finish()


class World:
    """Sites with one port, 8080, on a clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.sites = Sites(settings, self.clock, self.metrics)
        self.sites.add_health(8080, "/health")
        self.slow = Slow()
        self.sites.add_route(8080, "/slow", self.slow)
        self.sites.add_route(8080, "/echo", Echo())
        self.sites.add_route(8080, "/blind", Blind())

    def peer(self, port: int = 8080) -> Peer:
        return Peer(self.sites.site_for(port), self.clock)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.statement("HE-1")
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE", "OPTIONS", "BREW"])
def test_health_answers_every_method(world, method):
    found = world.peer().ask(method, "/health?x=1")
    assert found.status == 200
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.body == (b"" if method == "HEAD" else b"healthy\n")
    assert found.headers["content-length"] == "8"
    assert found.headers["server"] == "anycable-tx"


@pytest.mark.statement("HE-1", "HE-2")
@pytest.mark.parametrize("path", ["/health/", "/HEALTH", "/", "/other", "/%68ealth"])
def test_another_path_is_not_found(world, path):
    found = world.peer().ask("GET", path)
    assert (found.status, found.body) == (404, b"404 page not found\n")
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff"


def test_a_route_belongs_to_its_port(world):
    world.sites.add_route(8090, "/_broadcast", Echo())
    assert world.sites.ports() == [("", 8080), ("", 8090)]
    assert world.peer(8090).ask("POST", "/_broadcast", b"x").body == b"x"
    assert world.peer(8090).ask("GET", "/health").status == 404
    assert world.peer().ask("GET", "/_broadcast").status == 404
    assert world.peer(1).ask("GET", "/health").status == 404


def test_a_route_may_be_a_pattern_and_may_come_late(world):
    peer = world.peer()
    world.sites.add_route(8080, "/ds/*", Echo())
    world.sites.add_route(8080, "/ds/{x}", Readiness(list))
    assert peer.ask("POST", "/ds/a/b", b"x").body == b"x"
    assert peer.ask("POST", "/ds/a", b"x").body == b"ready\n"


def test_a_bad_route_is_refused(world):
    with pytest.raises(ConfigurationError, match="/a\\*"):
        world.sites.add_route(8080, "/a*", Echo())


def test_readiness_lists_what_is_missing(world):
    reasons = ["the broker is unavailable", "the bus is lost"]
    world.sites.add_route(8080, "/ready", Readiness(lambda: reasons))
    found = world.peer().ask("GET", "/ready")
    assert (found.status, found.body) == (503, b"the broker is unavailable\nthe bus is lost\n")
    reasons.clear()
    found = world.peer().ask("GET", "/ready")
    assert (found.status, found.body) == (200, b"ready\n")


# -- time


@pytest.mark.statement("HE-4")
@pytest.mark.parametrize("part", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_header_that_does_not_come_in_time_ends_the_connection(world, part):
    peer = world.peer()
    peer.send(part)
    world.clock.advance(4.9)
    assert not peer.closed
    world.clock.advance(0.2)
    assert peer.closed
    assert world.metrics.value("refused_requests_total", "slow_header") == 1


@pytest.mark.statement("HE-4")
def test_a_trickling_header_gets_no_more_time(world):
    peer = world.peer()
    for byte in b"GET /health":
        peer.send(bytes([byte]))
        world.clock.advance(0.5)
    assert peer.closed


@pytest.mark.statement("HE-4")
def test_the_time_for_a_header_is_an_option():
    world = World(handshake_timeout=1)
    peer = world.peer()
    world.clock.advance(1.1)
    assert peer.closed


def test_each_header_of_a_kept_connection_must_come_in_time(world):
    peer = world.peer()
    assert peer.ask("GET", "/health").status == 200
    world.clock.advance(60)
    assert not peer.closed
    peer.send(b"GET ")
    world.clock.advance(5.1)
    assert peer.closed


def test_a_silent_kept_connection_ends(world):
    peer = world.peer()
    peer.ask("GET", "/health")
    world.clock.advance(site_module.IDLE_TIMEOUT + 1)
    assert peer.closed
    assert world.metrics.value("refused_requests_total") == 0


def test_refusals_are_logged_in_our_words_and_twisteds_stay_its_own(world):
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    try:
        world.peer()
        world.clock.advance(5.1)
    finally:
        globalLogPublisher.removeObserver(events.append)
    ours = [event["attrs"] for event in events if event["log_namespace"].startswith("anycable_tx")]
    assert ours == [{"context": "http", "reason": "slow_header", "peer": "192.0.2.1"}]


def test_a_body_may_take_its_time(world):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
    for _ in range(3):
        world.clock.advance(30)
        peer.send(b"x")
    assert peer.answers()[0].body == b"xxx"


def test_a_body_that_does_not_come_ends_the_connection(world):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nx")
    world.clock.advance(61)
    assert peer.closed
    assert world.metrics.value("refused_requests_total", "slow_body") == 1
    assert world.metrics.value("refused_requests_total") == 1


def test_an_answer_may_take_its_time(world):
    peer = world.peer()
    peer.request("GET", "/slow")
    world.clock.advance(10_000)
    world.slow.finish()
    assert peer.answers()[0].status == 200
    assert not peer.closed


# -- size


@pytest.mark.parametrize("line", [b"X: " + b"x" * 20_000, b"X: " + b"x" * 20_000 + b"\r\n"])
def test_a_header_is_bounded(world, line):
    peer = world.peer()
    peer.send(b"GET /health HTTP/1.1\r\n" + line)
    [found] = peer.answers()
    assert (found.status, found.headers["connection"]) == (431, "close")
    assert found.body == b"the head of the request is larger than 16384 bytes, the most that is accepted here\n"
    assert world.metrics.value("refused_requests_total", "header_too_large") == 1
    peer.send(b"Y: z\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
    assert peer.answers() == []
    world.clock.advance(2)
    assert peer.closed
    assert world.metrics.value("refused_requests_total", "slow_header") == 0


def test_the_bound_of_a_header_can_be_chosen():
    world = World(max_header_size=1024)
    for size, status in ((900, 200), (1100, 431)):
        peer = world.peer()
        peer.send(b"GET /health HTTP/1.1\r\nX: " + b"x" * size + b"\r\n\r\n")
        assert peer.answers()[0].status == status


def test_the_number_of_headers_is_bounded(world):
    peer = world.peer()
    peer.send(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 600)
    assert peer.answers()[0].status == 400
    assert peer.closed
    assert world.metrics.value("refused_requests_total", "bad_request") == 1


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_a_declared_body_that_is_too_large_is_refused_before_it_comes(world, expect):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\n" + expect + b"Content-Length: 11\r\n\r\n")
    [found] = peer.answers()
    assert found.status == 413
    assert found.headers["connection"] == "close"
    assert found.body == b"the request body is larger than 10 bytes, the most that is accepted here\n"
    assert world.metrics.value("refused_requests_total", "too_large") == 1
    peer.send(b"x" * 11)
    peer.send(b"GET /health HTTP/1.1\r\n\r\n")
    assert peer.answers() == []
    world.clock.advance(site_module.LINGER_SECONDS + 0.1)
    assert peer.closed
    world.clock.advance(0)
    assert world.sites.in_flight() == 0


def test_a_chunked_body_is_refused_when_it_becomes_too_large(world):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.send(b"a\r\n0123456789\r\n")
    assert peer.answers() == []
    peer.send(b"1\r\nx\r\n1\r\ny\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
    assert [found.status for found in peer.answers()] == [413]


def test_what_a_refused_peer_still_sends_is_bounded(world):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
    for _ in range(20):
        peer.send(b"x" * 100_000)
    assert peer.closed


def test_a_body_of_the_allowed_size_passes(world):
    assert world.peer().ask("POST", "/echo", b"0123456789").body == b"0123456789"


def test_a_body_nobody_reads_is_not_kept(world):
    assert world.peer().ask("POST", "/blind", b"secret").body == b""
    assert world.peer().ask("POST", "/blind", b"secret", x_read="yes").body == b"secret"
    assert world.peer().ask("PUT", "/blind", b"secret", x_read="yes").body == b""


def test_a_connection_serves_several_requests_in_their_order(world):
    peer = world.peer()
    peer.send(b"GET /slow HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\n")
    assert peer.answers() == []
    world.slow.finish()
    assert [found.status for found in peer.answers()] == [200, 200, 404]


def test_there_is_no_access_log_and_no_clock_for_one(world):
    site = world.sites.site_for(8080)
    site.doStart()
    assert world.peer().ask("GET", "/health").status == 200
    site.doStop()
    assert site.acceptableProtocols() == [b"http/1.1"]


# -- the drain


def drained(sites: Sites) -> list[None]:
    done: list[None] = []
    Deferred.fromCoroutine(sites.drain()).addCallback(done.append)
    return done


def test_a_drain_waits_for_the_running_requests(world):
    first, second = world.peer(), world.peer()
    first.request("GET", "/slow")
    second.request("GET", "/slow")
    assert world.sites.in_flight() == 2
    done = drained(world.sites)
    world.slow.finish()
    assert done == []
    assert first.answers()[0].status == 200
    assert first.closed
    second.leave()
    assert done == [None]
    assert world.sites.in_flight() == 0


def test_a_request_counts_from_its_header_on(world):
    peer = world.peer()
    peer.send(b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nx")
    assert world.sites.in_flight() == 1
    done = drained(world.sites)
    assert not peer.closed
    peer.send(b"yz")
    assert done == [None]
    [found] = peer.answers()
    assert found.body == b"xyz"
    assert found.headers["connection"] == "close"
    assert peer.closed


def test_a_drain_without_requests_is_done_at_once_and_closes_what_is_idle(world):
    used, fresh = world.peer(), world.peer()
    used.ask("GET", "/health")
    assert drained(world.sites) == [None]
    assert used.closed
    assert fresh.closed


def test_health_tells_of_a_drain_only_when_asked_to():
    for health_drain, status in ((True, 503), (False, 200)):
        world = World(health_drain=health_drain)
        assert world.peer().ask("GET", "/health").status == 200
        world.sites.start_drain()
        assert world.peer().ask("GET", "/health").status == status


def test_an_answer_without_text_has_no_type(world):
    class Empty(Resource):
        isLeaf = True

        def render(self, request: Request) -> bytes:
            return answer(request, 201)

    world.sites.add_route(8080, "/empty", Empty())
    found = world.peer().ask("POST", "/empty")
    assert (found.status, found.body, found.headers["content-length"]) == (201, b"", "0")
    assert "content-type" not in found.headers
