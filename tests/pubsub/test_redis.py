"""The bus over Redis: who hears what, and what happens when it is lost, silent or spoilt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.pubsub import probe
from anycable_tx.pubsub import redis as module
from anycable_tx.pubsub.redis import create
from anycable_tx.redis.api import RedisUnavailable
from anycable_tx.testing.redis_servers import redis_server
from tests.pubsub.redis_support import Place, place, servers

INTERNAL = "__anycable_internal__"
ODD = ["a b", "a..b", ">", "chat.*", "*", INTERNAL, "chat/1", "x" * 3000, "\U0001f600 {tag}", "ac:st:chat/1"]


@pytest.fixture(scope="module")
def running():
    with servers() as get:
        yield get


@pytest.fixture
def site(running):
    with place(running("redis")) as site:
        yield site


@pytest.fixture(params=["redis", "valkey"])
def each(request, running):
    with place(running(request.param)) as site:
        yield site


def message(stream: str, number: int = 1, **more: Any) -> StreamMessage:
    return StreamMessage(stream, b'{"n":%d}' % number, number, number - 1, "e", 5.0, **more)


def channels(site: Place) -> set[str]:
    return {c.decode() for c in site.server.ask("PUBSUB", "CHANNELS", "*") if not c.startswith(b"ac:probe:")}


def heard(bus: Any) -> list[tuple[str, int]]:
    return [(m.stream, m.offset) for m in bus.node.delivered]


@pytest.mark.statement("BR-35")
def test_a_message_reaches_the_node_that_subscribed_with_its_position(each):
    a, b = each.start(create), each.start(create)
    each.result(b.subscribe("chat"))
    sent = message("chat", 7, exclude_socket="s", broadcast_type="note", id="i")
    each.result(a.publish(sent))
    each.until(lambda: b.node.delivered)
    assert b.node.delivered == [sent]
    assert a.node.delivered == []


@pytest.mark.statement("BR-34")
def test_payloads_on_the_bus_are_those_of_anycable_servers(site):
    bus = site.start(create, redis_verbatim_channels=True)
    found = []
    ear = site.start(create)
    subscriber = ear._redis.subscriber(lambda *m: found.append(m), up=lambda: None, down=lambda: None)
    site.result(subscriber.subscribe(["chat", INTERNAL]))
    site.result(bus.publish(message("chat", 3, exclude_socket="s")))
    site.result(bus.publish_command(RemoteCommand("disconnect", {"identifier": "u", "reconnect": True})))
    site.until(lambda: len(found) == 2)
    (channel, text), (internal, command) = found
    document = json.loads(text)
    assert channel == b"chat"
    assert {key: document[key] for key in ("stream", "data", "meta", "offset", "epoch")} == {
        "stream": "chat", "data": '{"n":3}', "meta": {"exclude_socket": "s"}, "offset": 3, "epoch": "e",
    }  # fmt: skip
    assert internal == INTERNAL.encode()
    document = json.loads(command)
    assert (document["command"], document["payload"]) == ("disconnect", {"identifier": "u", "reconnect": True})
    site.result(subscriber.stop())


@pytest.mark.statement("BR-36")
def test_only_what_has_subscribers_is_subscribed(site):
    bus = site.start(create)
    assert channels(site) == {INTERNAL}
    site.result(bus.subscribe("chat"))
    assert channels(site) == {INTERNAL, "ac:st:chat"}
    site.result(bus.unsubscribe("chat"))
    assert channels(site) == {INTERNAL}
    site.result(bus.unsubscribe("chat"))
    site.result(bus.unsubscribe("never"))


def test_a_subscription_is_confirmed_before_it_is_done(site):
    a, b = site.start(create), site.start(create)
    for number in range(1, 30):
        site.result(b.subscribe(f"s{number}"))
        site.result(a.publish(message(f"s{number}", number)))
    site.until(lambda: len(b.node.delivered) == 29)


@pytest.mark.statement("BR-37")
@pytest.mark.parametrize("subscribed", [True, False])
def test_a_thousand_toggles_end_as_the_last_of_them_says(site, subscribed):
    bus = site.start(create)
    calls: list[Deferred[Any]] = []
    for number in range(1000 + subscribed):
        calls.append(Deferred.fromCoroutine(bus.unsubscribe("a") if number % 2 else bus.subscribe("a")))
    for call in calls:
        site.result(call)
    assert channels(site) == ({INTERNAL, "ac:st:a"} if subscribed else {INTERNAL})
    site.result(bus.publish(message("a")))
    site.turn()
    assert heard(bus) == ([("a", 1)] if subscribed else [])


def test_a_channel_is_not_subscribed_again_before_redis_confirmed_that_it_is_left(site):
    bus = site.start(create)
    site.result(bus.subscribe("a"))
    confirmed: Deferred[None] = Deferred()
    unsubscribe = bus._subscriber.unsubscribe

    async def late(names: Any) -> None:
        await unsubscribe(names)
        await confirmed

    bus._subscriber.unsubscribe = late
    leaving = Deferred.fromCoroutine(bus.unsubscribe("a"))
    again = Deferred.fromCoroutine(bus.subscribe("a"))
    site.turn()
    assert channels(site) == {INTERNAL}
    confirmed.callback(None)
    site.result(again)
    assert leaving.called
    assert channels(site) == {INTERNAL, "ac:st:a"}


@pytest.mark.statement("BR-38")
@pytest.mark.parametrize("verbatim", [False, True])
def test_odd_names_are_delivered_once_and_commands_still_work(site, verbatim):
    bus = site.start(create, redis_verbatim_channels=verbatim)
    for stream in ODD:
        site.result(bus.subscribe(stream))
    for number, stream in enumerate(ODD, 1):
        site.result(bus.publish(message(stream, number)))
    site.until(lambda: len(bus.node.delivered) >= len(ODD))
    for stream in ODD:
        site.result(bus.unsubscribe(stream))
    site.result(bus.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
    site.until(lambda: bus.node.executed)
    site.turn()
    assert heard(bus) == [(stream, number) for number, stream in enumerate(ODD, 1)]
    assert bus.node.executed == [RemoteCommand("disconnect", {"identifier": "u"})]
    assert channels(site) == {INTERNAL}


def test_a_command_is_carried_out_once_by_every_node(each):
    buses = [each.start(create) for _ in range(3)]
    each.result(buses[0].publish_command(RemoteCommand("takeover", {"sid": "s"})))
    each.until(lambda: all(bus.node.executed for bus in buses))
    each.turn()
    assert [bus.node.executed for bus in buses] == [[RemoteCommand("takeover", {"sid": "s"})]] * 3


def test_a_command_of_another_kind_of_server_is_carried_out(site):
    bus = site.start(create)
    site.server.ask("PUBLISH", INTERNAL, '{"command":"disconnect","payload":{"identifier":"u","reconnect":false}}')
    site.until(lambda: bus.node.executed)
    assert bus.node.executed == [RemoteCommand("disconnect", {"identifier": "u", "reconnect": False})]


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ("ac:st:a", "no JSON"),
        ("ac:st:a", "[null]"),
        ("ac:st:a", "[" * 10000),
        ("ac:st:a", '{"stream":"b","data":"1"}'),
        ("ac:st:a", '{"command":"disconnect","payload":{"identifier":"u"}}'),
        (INTERNAL, "no JSON"),
        (INTERNAL, "[1]"),
        (INTERNAL, '{"command":5}'),
        (INTERNAL, b"\xff\xfe"),
    ],
)
def test_what_cannot_be_understood_is_counted_and_nothing_more(site, channel, text):
    bus = site.start(create)
    site.result(bus.subscribe("a"))
    site.server.ask("PUBLISH", channel, text)
    site.until(lambda: site.metrics.value("failed_bus_msg_total") == 1)
    site.result(bus.publish(message("a")))
    site.until(lambda: heard(bus) == [("a", 1)])
    assert bus.node.executed == []


# -- faults


def test_a_lost_connection_is_told_and_comes_back_with_all_streams(each):
    bus = each.start(create)
    names = [f"s{number}" for number in range(600)]
    for call in [Deferred.fromCoroutine(bus.subscribe(name)) for name in names]:
        each.result(call)
    each.server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    each.until(lambda: bus.node.bus == ["lost", "restored"])
    assert len(channels(each)) == 601
    for number, name in enumerate(names, 1):
        each.result(bus.publish(message(name, number)))
    each.until(lambda: len(bus.node.delivered) == 600)


def test_a_command_sent_while_a_node_was_cut_off_is_carried_out_when_it_is_back(site):
    a, b = site.start(create), site.start(create)
    for number in range(3):
        site.result(a.publish_command(RemoteCommand("takeover", {"sid": str(number)})))
    site.until(lambda: len(b.node.executed) == 3)
    waiting: Deferred[None] = Deferred()
    b._subscriber._pause.wait = lambda: waiting
    site.server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    site.until(lambda: b.node.bus == ["lost"] and a.node.bus == ["lost", "restored"])
    site.result(a.publish_command(RemoteCommand("disconnect", {"identifier": "u"})))
    waiting.callback(None)
    site.until(lambda: len(b.node.executed) == 4)
    site.turn()
    assert [c.command for c in b.node.executed] == ["takeover"] * 3 + ["disconnect"]
    assert [c.command for c in a.node.executed] == ["takeover"] * 3 + ["disconnect"]


def test_a_server_killed_and_started_empty_is_found_again():
    with redis_server() as server, place(server) as site:
        bus = site.start(create)
        site.result(bus.subscribe("a"))
        server.kill()
        site.until(lambda: bus.node.bus == ["lost"])
        with pytest.raises(RedisUnavailable):
            site.result(bus.publish(message("a")))
        site.reactor.pass_time(module.LOST_TOO_LONG)
        assert "lost" in bus.problem()
        server.start()
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert bus.problem() == ""
        site.until(lambda: not bus._redis.problem())
        site.result(bus.publish(message("a")))
        site.until(lambda: heard(bus) == [("a", 1)])


def test_a_subscription_during_an_outage_fails_in_time_and_leaves_nothing():
    with redis_server() as server, place(server) as site:
        bus = site.start(create)
        server.kill()
        site.until(lambda: bus.node.bus == ["lost"])
        opening = Deferred.fromCoroutine(bus.subscribe("a"))
        site.turn()
        assert not opening.called
        site.reactor.pass_time(module.PATIENCE)
        with pytest.raises(BrokerUnavailable, match="not confirmed"):
            site.result(opening)
        site.result(bus.unsubscribe("a"))
        server.start()
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert channels(site) == {INTERNAL}


def test_a_start_without_redis_is_a_lost_bus_that_comes_back():
    with redis_server() as server, place(server) as site:
        server.kill()
        bus = site.make(create)
        starting = Deferred.fromCoroutine(bus.start())
        site.turn()
        site.reactor.pass_time(5)
        site.result(starting)
        assert bus.node.bus == ["lost"]
        server.start()
        site.until(lambda: bus.node.bus == ["lost", "restored"])
        assert channels(site) == {INTERNAL}


def test_a_connection_on_which_nothing_arrives_is_found_out_and_replaced(site):
    bus = site.start(create)
    site.result(bus.subscribe("a"))
    bus._subscriber._connection.push = lambda answer: None
    for _ in range(probe.MAX_MISSED + 1):
        site.reactor.pass_time(probe.PROBE_EACH)
        site.turn()
    site.until(lambda: bus.node.bus == ["lost", "restored"])
    site.result(bus.publish(message("a")))
    site.until(lambda: heard(bus) == [("a", 1)])


def test_a_quiet_bus_is_not_taken_for_a_silent_one(site):
    bus = site.start(create)
    for _ in range(5):
        site.reactor.pass_time(probe.PROBE_EACH)
        site.turn()
    assert bus._probe._returned >= 4
    assert bus.node.bus == []


def test_nothing_is_delivered_after_the_stop(site):
    a, b = site.start(create), site.start(create)
    site.result(b.subscribe("a"))
    site.stop(b)
    site.result(a.publish(message("a")))
    site.turn()
    assert b.node.delivered == []
    assert channels(site) == {INTERNAL}
