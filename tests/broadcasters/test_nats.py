"""Publications from a NATS subject: every node hands them to its own clients."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from anycable_tx.broadcasters import channel as module
from anycable_tx.broadcasters.nats import create
from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.pubsub import nats as pubsub
from tests.pubsub.nats_support import Watched, place, servers

CHANNEL = "__anycable__"


@pytest.fixture(scope="module")
def running():
    with servers() as get:
        yield get


@pytest.fixture(params=["nats", "nats-2.9", "nats-core"])
def each(request, running):
    with place(running(request.param)) as site:
        yield site


@pytest.fixture
def site(running):
    with place(running("nats")) as site:
        yield site


@pytest.mark.statement("BR-31")
def test_a_publication_reaches_every_node_once_without_a_position(each):
    parts = [each.start(create) for _ in range(2)]
    each.server.publish(CHANNEL, b'{"stream":"a","data":"1","offset":7,"epoch":"e"}')
    each.until(lambda: all(part.node.delivered for part in parts))
    each.turn()
    assert [part.node.delivered for part in parts] == [[StreamMessage("a", b"1")]] * 2
    assert [part.node.publications for part in parts] == [[], []]


def test_batches_keep_their_order_and_meta_is_kept(site):
    part = site.start(create, nats_channel="other.channel")
    site.server.publish(
        "other.channel",
        b'[{"stream":"a","data":"1"},{"stream":"b","data":"x","meta":{"exclude_socket":"s","broadcast_type":"t"}}]',
    )
    site.until(lambda: part.node.delivered)
    assert part.node.delivered == [
        StreamMessage("a", b"1"),
        StreamMessage("b", b'"x"', exclude_socket="s", broadcast_type="t"),
    ]
    assert site.metrics.value("publications_total") == 1


def test_a_command_is_carried_out_here_and_not_sent_on(site):
    part = site.start(create)
    site.server.publish(CHANNEL, b'{"command":"disconnect","payload":{"identifier":"u"}}')
    site.until(lambda: part.node.executed)
    assert part.node.executed == [RemoteCommand("disconnect", {"identifier": "u", "reconnect": False})]
    assert part.node.broadcast == []


@pytest.mark.statement("BR-6")
@pytest.mark.parametrize(
    "text", [b"[null]", b'[{"stream":"a","data":"x"},null]', b"[" * 10000, b"\xff" * 1_000_000, b""]
)
def test_garbage_is_counted_and_survived(site, text):
    part = site.start(create)
    site.server.publish(CHANNEL, text)
    site.until(lambda: site.metrics.value("failed_broadcast_msg_total") == 1)
    site.server.publish(CHANNEL, b'{"stream":"a","data":"1"}')
    site.until(lambda: part.node.delivered == [StreamMessage("a", b"1")])


def test_a_lost_connection_comes_back_and_is_a_problem_while_it_does_not():
    with Watched(jetstream=False) as server, place(server) as site:
        part = site.start(create)
        assert part.problem() == ""
        server.kill()
        site.until(lambda: part._deaf_since is not None)
        assert part.problem() == ""
        site.reactor.pass_time(module.DEAF_AFTER)
        assert CHANNEL in part.problem()
        server.start()
        site.reactor.pass_time(20)
        site.until(lambda: part.problem() == "")
        server.publish(CHANNEL, b'{"stream":"a","data":"1"}')
        site.until(lambda: part.node.delivered)


def test_nats_absent_at_the_start_is_waited_for():
    with Watched(jetstream=False) as server, place(server) as site:
        server.kill()
        part = site.make(create)
        starting = Deferred.fromCoroutine(part.start())
        site.turn()
        site.reactor.pass_time(6)
        site.result(starting)
        site.reactor.pass_time(6)
        assert CHANNEL in part.problem()
        server.start()
        site.reactor.pass_time(20)
        site.until(lambda: part.problem() == "")
        server.publish(CHANNEL, b'{"stream":"a","data":"1"}')
        site.until(lambda: part.node.delivered)
        site.turn()
        assert part.node.delivered == [StreamMessage("a", b"1")]


def test_a_stop_before_the_subject_is_heard_leaves_nothing():
    with Watched(jetstream=False) as server, place(server) as site:
        server.kill()
        part = site.make(create)
        starting = Deferred.fromCoroutine(part.start())
        site.turn()
        site.reactor.pass_time(6)
        site.result(starting)
        site.stop(part)
        assert list(part._nats._subscriptions) == [part._nats._answers]


def test_nothing_is_heard_after_the_stop_even_if_others_need_the_connection(site):
    part = site.start(create)
    site.start(pubsub.create, part.node)
    site.stop(part)
    site.turn()
    assert CHANNEL not in site.server.subjects()
    site.server.publish(CHANNEL, b'{"stream":"a","data":"1"}')
    site.turn()
    assert part.node.delivered == []


@pytest.mark.statement("BR-78")
def test_the_start_says_which_subject_is_heard(site):
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        site.start(create)
    finally:
        globalLogPublisher.removeObserver(events.append)
    (said,) = (event for event in events if event["log_format"] == "subscribing for broadcasts")
    assert said["attrs"] == {"context": "broadcast", "provider": "nats", "channel": CHANNEL}


def test_publications_that_came_too_fast_are_told_of(site):
    part = site.start(create)
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        part._subscription.lost()
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert [event["log_level"].name for event in events] == ["warn"]
