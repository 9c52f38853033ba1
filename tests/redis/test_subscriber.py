"""Subscriptions: confirmed, kept through losses, and never half there."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from anycable_tx.redis.api import RedisUnavailable
from anycable_tx.redis.connection import REPLY_LIMIT
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.redis_servers import RedisServer
from tests.redis.conftest import Make
from tests.redis.support import turn


def start(work: Any) -> Deferred[Any]:
    """*work*, begun; its end is waited for later."""
    return Deferred.fromCoroutine(work)


def channels(server: RedisServer) -> list[bytes]:
    return sorted(server.ask("PUBSUB", "CHANNELS", "*"))


def test_messages_come_in_order_from_the_moment_of_the_confirmation(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    it.subscribe("a", "b")
    for n in range(100):
        server.ask("PUBLISH", "ab"[n % 2], n)
    it.until(lambda: len(it.heard.messages) == 100)
    assert it.heard.messages == [(b"ab"[n % 2 : n % 2 + 1], b"%d" % n) for n in range(100)]
    assert it.heard.events == ["up"]


def test_after_the_confirmation_of_its_end_nothing_comes(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    subscriber = it.subscribe("a", "b")
    it.reactor.result(subscriber.unsubscribe(["a", "never subscribed"]))
    assert channels(server) == [b"b"]
    server.ask("PUBLISH", "a", "1")
    server.ask("PUBLISH", "b", "2")
    it.until(lambda: it.heard.messages)
    assert it.heard.messages == [(b"b", b"2")]


def test_a_channel_is_confirmed_only_once_nothing_about_it_is_under_way(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    subscriber = it.subscribe("other")
    first = start(subscriber.subscribe(["a"]))
    end = start(subscriber.unsubscribe(["a"]))
    second = start(subscriber.subscribe(["a"]))
    confirmed: list[int] = []
    second.addCallback(lambda _: confirmed.append(server.ask("PUBLISH", "a", "x")))
    it.until(lambda: confirmed)
    assert confirmed == [1]
    assert first.called
    assert end.called
    it.until(lambda: it.heard.messages)
    it.reactor.result(subscriber.unsubscribe(["a"]))
    assert channels(server) == [b"other"]


@pytest.mark.statement("F45")
def test_ten_thousand_channels_are_back_before_it_is_up_again(own: RedisServer, make: Make) -> None:
    it = make(own.url)
    names = [f"channel {n}" for n in range(10_000)]
    it.subscribe(*names)
    own.ask("CLIENT", "KILL", "TYPE", "pubsub")
    it.until(lambda: it.heard.events == ["up", "down"])
    began = it.reactor.loop.time()
    it.until(lambda: it.heard.events == ["up", "down", "up"])
    assert it.reactor.loop.time() - began < 5
    assert len(channels(own)) == 10_000
    assert it.metrics.value("redis_reconnects_total", "subscriber") == 1


def test_what_is_asked_for_while_there_is_no_connection_is_there_with_the_next(own: RedisServer, make: Make) -> None:
    it = make(own.url)
    subscriber = it.subscribe("a", "b")
    own.kill()
    it.until(lambda: "down" in it.heard.events)
    it.reactor.result(subscriber.unsubscribe(["a"]))
    joined = start(subscriber.subscribe(["c"]))
    turn(it.reactor, 0.05)
    assert not joined.called
    own.start()
    it.reactor.result(joined)
    assert it.heard.events.count("up") == 2
    assert channels(own) == [b"b", b"c"]


def test_the_end_of_a_subscription_does_not_wait_for_a_lost_connection(own: RedisServer, make: Make) -> None:
    it = make(own.url)
    subscriber = it.subscribe("a")
    own.stall()
    leaving = start(subscriber.unsubscribe(["a"]))
    turn(it.reactor, 0.05)
    assert not leaving.called
    own.kill()
    it.reactor.result(leaving)


def test_a_stalled_connection_is_found_by_its_keepalive(own: RedisServer, make: Make) -> None:
    it = make(own.url, redis_keepalive_interval=10)
    it.subscribe("a")
    for _ in range(7):  # at 10, 20 and 30 s it is tried, and five seconds later there was an answer
        it.reactor.pass_time(5)
        turn(it.reactor, 0.02)
    assert it.heard.events == ["up"]
    own.stall()
    it.reactor.pass_time(5)
    turn(it.reactor, 0.05)
    assert "down" not in it.heard.events
    it.reactor.pass_time(REPLY_LIMIT)
    it.until(lambda: "down" in it.heard.events)
    own.resume()
    it.until(lambda: it.heard.events.count("up") == 2)
    assert own.ask("PUBLISH", "a", "x") == 1


def test_it_can_be_told_that_its_connection_is_of_no_use(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    subscriber = it.subscribe("a")
    subscriber.move("nothing comes")
    it.until(lambda: it.heard.events == ["up", "down", "up"])
    assert channels(server) == [b"a"]


def test_a_receiver_that_fails_is_reported_and_the_next_message_comes(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    got: list[bytes] = []

    def receive(channel: bytes, payload: bytes) -> None:
        got.append(payload)
        if payload == b"1":
            raise ValueError("a mistake")

    subscriber = it.client.subscriber(receive, up=lambda: None, down=lambda: None)
    it.reactor.result(subscriber.subscribe(["a"]))
    records: list[Any] = []
    globalLogPublisher.addObserver(records.append)
    try:
        server.ask("PUBLISH", "a", "1")
        server.ask("PUBLISH", "a", "2")
        it.until(lambda: got == [b"1", b"2"])
    finally:
        globalLogPublisher.removeObserver(records.append)
    assert any(isinstance(record["log_failure"].value, ValueError) for record in records if "log_failure" in record)
    assert it.metrics.value("internal_errors_total") == 1


def test_a_stop_is_for_good_and_says_nothing(server: RedisServer, make: Make) -> None:
    it = make(server.url)
    subscriber = it.subscribe("a")
    it.reactor.result(subscriber.stop())
    it.until(lambda: channels(server) == [])
    with pytest.raises(RedisUnavailable, match="stopped"):
        it.reactor.result(subscriber.subscribe(["b"]))
    assert it.heard.events == ["up"]


def test_who_waits_for_a_confirmation_when_it_stops_learns_that(make: Make) -> None:
    it = make(f"redis://127.0.0.1:{free_port()}", started=False)
    subscriber = it.client.subscriber(it.heard.receive, up=lambda: None, down=lambda: None)
    joined = start(subscriber.subscribe(["a"]))
    it.reactor.result(subscriber.stop())
    with pytest.raises(RedisUnavailable, match="stopped"):
        it.reactor.result(joined)
