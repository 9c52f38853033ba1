"""The HTTP broadcaster over the site it is routed on."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface.verify import verifyObject

from anycable_tx import providers
from anycable_tx.broadcasters.http import HTTPBroadcaster, create
from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.config.secrets import BROADCAST, derive_key
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.transports.site import Sites
from tests.broadcasters.fakes import FakeNode
from tests.transports.peer import Answer, Peer

PATH = "/_broadcast"
KEY = derive_key("qwerty", BROADCAST)


class World:
    """An HTTP broadcaster with its settings, a fake node, and a clock."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {
            "http_broadcast_port": 8090,
            "http_broadcast_path": PATH,
            "broadcast_key": "",
            "http_broadcast_cors": False,
            "allowed_origins": (),
            "http_broadcast_max_body": 1000,
            "broadcast_strict": False,
            "broadcast_lenient": True,
            "public": False,
            "host": "localhost",
            **settings,
        }
        self.clock = Clock()
        self.metrics = Metrics()
        self.node = FakeNode()
        self.sites = Sites(self.settings, self.clock, self.metrics)
        self.broadcaster: HTTPBroadcaster = create(
            ProviderContext(self.settings, self.clock, self.node, self.metrics, site=self.sites)
        )

    def peer(self, host: str = "192.0.2.1") -> Peer:
        return Peer(self.sites.site_for(self.settings["http_broadcast_port"]), self.clock, host)

    def post(self, body: bytes, **headers: str) -> Answer:
        return self.peer().ask("POST", PATH, body, **headers)

    def stored(self) -> list[tuple[str, bytes]]:
        return [(publication.stream, publication.payload) for publication in self.node.published]


@pytest.fixture
def logged():
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def test_it_is_what_the_provider_named_http_makes():
    provider = providers.find("broadcaster", "http")
    world = World()
    context = ProviderContext(world.settings, world.clock, world.node, world.metrics, site=world.sites)
    broadcaster = providers.create(provider, context)
    assert isinstance(broadcaster, HTTPBroadcaster)
    assert verifyObject(IBroadcaster, broadcaster)
    assert [(option.name, option.default) for option in provider.options] == [("broadcast_hold", 12)]


@pytest.mark.statement("BR-1", "P6")
def test_a_publication_is_stored_and_then_answered_with_an_empty_201():
    world = World()
    found = world.post(b'{"stream":"a","data":"x"}')
    assert (found.status, found.body, found.headers["content-length"]) == (201, b"", "0")
    assert world.stored() == [("a", b'"x"')]


def test_the_answer_comes_after_the_broker_stored_it():
    world = World()
    world.node.slow = True
    peer = world.peer()
    peer.request("POST", PATH, b'{"stream":"a","data":"x"}')
    assert peer.answers() == []
    world.node.answer()
    assert peer.answers()[0].status == 201


@pytest.mark.statement("BR-4", "HE-12")
def test_a_batch_is_stored_in_order_and_counts_once():
    world = World()
    body = b"[" + b",".join(b'{"stream":"a","data":"%d"}' % n for n in range(10)) + b"]"
    assert world.post(body).status == 201
    assert world.stored() == [("a", b"%d" % n) for n in range(10)]
    assert world.metrics.value("publications_total") == 1


@pytest.mark.statement("BR-5", "BR-6", "BR-19", "HE-13")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[null]",
        b'[{"stream":"a","data":"x"},null]',
        b'[{"data":"y"},{"stream":"a","data":"x"}]',
        b'[{"stream":"a","data":"x"},{"stream":"b","meta":1}]',
        b"[" * 900,
    ],
)
def test_what_is_no_publication_is_counted_and_dropped_with_201(body):
    world = World()
    assert world.post(body).status == 201
    assert world.stored() == []
    assert world.metrics.value("failed_broadcast_msg_total") == 1
    assert world.metrics.value("publications_total") == 0
    assert world.post(b'{"stream":"a","data":"x"}').status == 201
    assert world.stored() == [("a", b'"x"')]


@pytest.mark.statement("CO-37")
def test_what_is_no_publication_is_logged_with_a_cut_payload(logged):
    World().post(b"x" * 142)
    [event] = [e for e in logged if e["log_format"] == "failed to parse pubsub message"]
    assert event["log_level"].name == "warn"
    assert event["attrs"]["data"] == "x" * 100 + "...(42)"
    assert "not JSON" in str(event["attrs"]["error"])


@pytest.mark.statement("BR-19")
def test_strict_mode_answers_422_with_the_reason():
    world = World(broadcast_strict=True)
    found = world.post(b'{"stream":1,"data":"x"}')
    assert found.status == 422
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.body == b"'stream' is the number 1; a string that is not empty is accepted\n"
    assert world.metrics.value("failed_broadcast_msg_total") == 1


@pytest.mark.statement("BR-14")
@pytest.mark.parametrize(("lenient", "stored"), [(True, [("a", b'{"x":1}')]), (False, [])])
def test_an_object_as_data_is_the_message_or_dropped(lenient, stored):
    world = World(broadcast_lenient=lenient)
    assert world.post(b'{"stream":"a","data":{"x":1}}').status == 201
    assert world.stored() == stored


@pytest.mark.statement("BR-13")
def test_commands_go_to_all_nodes():
    world = World()
    assert world.post(b'{"command":"disconnect","payload":{"identifier":"u"}}').status == 201
    assert world.post(b'{"command":"dance"}').status == 201
    assert world.node.commands == [
        RemoteCommand("disconnect", {"identifier": "u", "reconnect": False}),
        RemoteCommand("dance"),
    ]


# -- who may


@pytest.mark.statement("BR-16")
def test_a_key_is_required_when_there_is_one(logged):
    assert KEY == "42923a28b760e667fc92f7c6123bb07a282822b329dd2ef48e7aee7830d98485"
    world = World(broadcast_key=KEY)
    body = b'{"stream":"a","data":"x"}'
    wrong = ["", KEY, f"bearer {KEY}", f"Bearer {KEY} ".replace(" ", "  "), f"Bearer {KEY[:-1]}", "Bearer \xe9"]
    assert world.post(body).status == 401
    for header in wrong:
        assert world.post(body, Authorization=header).status == 401
    assert world.stored() == []
    assert world.metrics.value("rejected_publications_total", "unauthorized") == len(wrong) + 1
    assert not any(KEY in str(event) for event in logged)
    assert world.post(body, Authorization=f"Bearer {KEY}").status == 201
    assert len(world.stored()) == 1


@pytest.mark.statement("BR-18")
def test_public_mode_and_the_word_none_need_no_key():
    for settings in ({"broadcast_key": KEY, "public": True}, {"broadcast_key": "none"}):
        assert World(**settings).post(b'{"stream":"a","data":"x"}').status == 201


@pytest.mark.statement("BR-15")
def test_it_is_on_its_own_port_only():
    world = World(http_broadcast_port=8080)
    assert world.sites.ports() == [("", 8080)]
    assert world.peer().ask("POST", PATH, b'{"stream":"a"}').status == 201
    assert Peer(world.sites.site_for(8090), world.clock).ask("POST", PATH, b'{"stream":"a"}').status == 404


@pytest.mark.statement("BR-17")
@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "HEAD", "DELETE"])
def test_only_post_is_accepted(method):
    world = World(broadcast_key=KEY)
    assert world.peer().ask(method, PATH).status == 422
    assert world.metrics.value("rejected_publications_total", "method") == 1


@pytest.mark.statement("BR-17")
def test_another_path_is_not_found():
    assert World().peer().ask("POST", PATH + "/", b"{}").status == 404


@pytest.mark.statement("BR-17")
def test_with_cors_a_preflight_is_answered_and_every_answer_has_the_headers():
    world = World(http_broadcast_cors=True, broadcast_key=KEY, allowed_origins=["*.ok.com"])
    found = world.peer().ask("OPTIONS", PATH, Origin="https://x.ok.com")
    assert (found.status, found.body) == (200, b"")
    for answer in (
        found,
        world.post(b"{}", Origin="https://x.ok.com"),
        world.peer().ask("GET", PATH, Origin="https://x.ok.com"),
        world.post(b'{"stream":"a"}', Origin="https://x.ok.com", Authorization=f"Bearer {KEY}"),
    ):
        assert answer.headers["access-control-allow-origin"] == "https://x.ok.com"
        assert answer.headers["access-control-allow-methods"] == "POST, OPTIONS"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "Origin"
        assert answer.headers["access-control-allow-headers"].startswith(
            "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization"
        )
    other = world.post(b'{"stream":"a"}', Origin="https://evil.com", Authorization=f"Bearer {KEY}")
    assert other.status == 201
    assert "access-control-allow-origin" not in other.headers


def test_a_body_above_the_limit_is_refused():
    world = World()
    found = world.post(b"x" * 1001)
    assert found.status == 413
    assert b"1000 bytes" in found.body
    assert world.post(b'{"stream":"a","data":"' + b"x" * 900 + b'"}').status == 201


def test_the_body_of_somebody_without_the_key_is_not_kept():
    world = World(broadcast_key=KEY)
    peer = world.peer()
    peer.send(b"POST /_broadcast HTTP/1.1\r\nContent-Length: 900\r\n\r\n" + b"x" * 800)
    [request] = peer.wire.protocol.requests
    assert request.content.tell() == 0
    peer.send(b"x" * 100)
    assert peer.answers()[0].status == 401


# -- outages


@pytest.mark.statement("BR-20")
def test_a_publication_started_during_an_outage_ends_in_201_and_is_stored_once():
    world = World()
    world.node.down = True
    peer = world.peer()
    peer.request("POST", PATH, b'{"stream":"a","data":"x"}')
    world.clock.pump([0.1] * 50)
    assert peer.answers() == []
    world.node.down = False
    world.clock.pump([0.1] * 11)
    assert peer.answers()[0].status == 201
    assert world.stored() == [("a", b'"x"')]


@pytest.mark.statement("BR-20")
def test_an_outage_longer_than_the_hold_ends_in_501(logged):
    world = World(broadcast_hold=3)
    world.node.down = True
    peer = world.peer()
    peer.request("POST", PATH, b'{"stream":"a","data":"x"}')
    world.clock.pump([0.1] * 31)
    [found] = peer.answers()
    assert (found.status, found.body) == (501, b"not stored: it is down\n")
    assert world.metrics.value("rejected_publications_total", "unavailable") == 1
    assert [e["log_format"] for e in logged if e["log_level"].name == "warn"] == [
        "broadcasts are held: the broker is unavailable",
        "request refused: {text}",
    ]


@pytest.mark.statement("BR-20")
def test_a_publisher_that_gives_up_and_tries_again_loses_nothing_and_publishes_once():
    """The schedule of the Ruby client: it waits 10 s for an answer and tries again after 2, 8 and 24 s."""
    world = World()
    world.node.down = True
    status = []
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds * 10)):
            now += 0.1
            world.node.down = now < 60
            world.clock.advance(0.1)

    for pause in (0, 2, 8, 24):
        advance(pause)
        peer = world.peer()
        peer.request("POST", PATH, b'{"stream":"a","data":"x"}')
        advance(10)
        status = [answer.status for answer in peer.answers()]
        if status:
            break
        peer.leave()
    assert status == [201]
    advance(30)
    assert world.stored() == [("a", b'"x"')]


def test_a_publisher_that_left_is_not_published_for():
    world = World()
    world.node.down = True
    peer = world.peer()
    peer.request("POST", PATH, b'{"stream":"a","data":"x"}')
    world.clock.advance(1)
    peer.leave()
    world.node.down = False
    world.clock.pump([0.5] * 10)
    assert world.stored() == []
    assert world.metrics.value("abandoned_publications_total") == 1
    assert world.sites.in_flight() == 0


def test_an_answer_lost_on_the_way_from_the_broker_does_not_publish_twice():
    world = World(broker="redis")
    world.node.loses_answers = True
    peer = world.peer()
    peer.request("POST", PATH, b'[{"stream":"a","data":"x"},{"stream":"a","data":"y"}]')
    world.clock.advance(0.5)
    world.node.loses_answers = False
    world.clock.advance(1)
    assert peer.answers()[0].status == 201
    assert world.stored() == [("a", b'"x"'), ("a", b'"y"')]


@pytest.mark.parametrize("leaves", [True, False])
def test_a_publisher_without_an_id_that_was_not_told_is_recognised_by_its_body(leaves):
    world = World(broker="redis", broadcast_hold=1)
    world.node.loses_answers = True
    body = b'{"stream":"a","data":"x"}'
    peer = world.peer()
    peer.request("POST", PATH, body)
    if leaves:
        peer.leave()
    world.clock.pump([0.1] * 11)
    assert [answer.status for answer in peer.answers()] == ([] if leaves else [501])
    world.node.loses_answers = False
    assert world.peer("192.0.2.2").ask("POST", PATH, body).status == 201
    assert len(world.stored()) == 2
    assert world.post(body).status == 201
    assert len(world.stored()) == 2
    assert world.post(body).status == 201
    assert len(world.stored()) == 3


def test_a_broker_in_this_process_gets_no_ids_it_does_not_need():
    for broker in ("memory", "none", ""):
        world = World(broker=broker)
        world.post(b'{"stream":"a"}')
        assert world.node.published[0].id == ""
    world = World(broker="nats")
    world.post(b'{"stream":"a"}')
    world.post(b'{"stream":"a"}')
    assert world.node.published[0].id != world.node.published[1].id != ""


@pytest.mark.statement("BR-21")
def test_the_same_id_is_stored_once():
    world = World()
    for _ in range(2):
        assert world.post(b'{"stream":"a","data":"x"}', Idempotency_Key="k").status == 201
    assert world.post(b'{"stream":"a","data":"x","meta":{"id":"k"}}').status == 201
    assert [publication.id for publication in world.node.published] == ["k"]
    batch = b'[{"stream":"a","data":"1"},{"stream":"b","data":"2"}]'
    for _ in range(2):
        assert world.post(batch, Idempotency_Key="k").status == 201
    assert [publication.id for publication in world.node.published] == ["k", "k:0", "k:1"]


@pytest.mark.statement("BR-21")
def test_a_batch_stored_in_part_is_refused_and_sending_it_again_completes_it():
    world = World(broadcast_hold=0)
    world.node.fail_streams = {"b"}
    batch = b'[{"stream":"a","data":"1"},{"stream":"b","data":"2"},{"stream":"c","data":"3"}]'
    assert world.post(batch, Idempotency_Key="k").status == 501
    assert world.stored() == [("a", b"1")]
    world.node.fail_streams = set()
    assert world.post(batch, Idempotency_Key="k").status == 201
    assert world.stored() == [("a", b"1"), ("b", b"2"), ("c", b"3")]


def test_a_long_key_is_still_a_key():
    world = World()
    for last in "aab":
        assert world.post(b'{"stream":"a"}', Idempotency_Key="k" * 500 + last).status == 201
    assert len(world.node.published) == 2
    assert all(len(publication.id) <= 128 for publication in world.node.published)


def test_an_unexpected_error_is_a_500_with_a_traceback(logged):
    world = World()
    world.node.bug = ZeroDivisionError("oops")
    found = world.post(b'{"stream":"a"}')
    assert (found.status, found.body) == (500, b"internal error\n")
    assert world.metrics.value("internal_errors_total") == 1
    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [ZeroDivisionError]


# -- start and stop


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "http://localhost:8090/_broadcast (no authorization)"),
        ({"broadcast_key": "k"}, "http://localhost:8090/_broadcast (authorization required)"),
        ({"http_broadcast_cors": True}, "http://localhost:8090/_broadcast (no authorization, CORS enabled)"),
        ({"ssl_cert": "c.pem", "host": "h"}, "https://h:8090/_broadcast (no authorization)"),
    ],
)
def test_the_announcement_says_where_and_who_may(settings, line):
    assert World(**settings).broadcaster.announcement == f"Accept broadcast requests at {line}"


def test_a_stop_ends_what_was_taken_and_takes_no_more():
    world = World()
    world.node.slow = True
    first, second = world.peer(), world.peer()
    Deferred.fromCoroutine(world.broadcaster.start())
    first.request("POST", PATH, b'{"stream":"a","data":"x"}')
    done: list[None] = []
    Deferred.fromCoroutine(world.broadcaster.stop()).addCallback(done.append)
    second.request("POST", PATH, b'{"stream":"b","data":"y"}')
    assert second.answers() == []
    assert second.closed
    assert done == []
    world.node.answer()
    assert done == [None]
    assert first.answers()[0].status == 201
    assert world.stored() == [("a", b'"x"')]
