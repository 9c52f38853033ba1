"""Nodes on one Redis, as broker, bus and way in: what happens to messages when the bus is cut or loses some."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.audit import ROUND, STEP
from anycable_tx.broadcasters import redis as legacy
from anycable_tx.broadcasters import redisx
from anycable_tx.brokers.redis import RedisBroker
from anycable_tx.cable.messages import Publication, StreamMessage
from anycable_tx.config.load import defaults
from anycable_tx.controllers.chain import Chain
from anycable_tx.node import Node
from anycable_tx.pubsub import probe
from anycable_tx.pubsub.redis import RedisPubSub
from anycable_tx.testing.processes import HOST, ProxyProcess
from anycable_tx.transports.groups import Flusher
from tests.pubsub.redis_support import Place, place, servers


@pytest.fixture(scope="module")
def running():
    with servers() as get:
        yield get


@pytest.fixture
def site(running):
    with place(running("redis")) as site:
        yield site


class Member:
    """A node whose streams are open, and what it handed to its clients."""

    def __init__(self, site: Place, *streams: str, **settings: Any) -> None:
        self.site = site
        self.more = settings
        settings = defaults(public=True)
        self.node = Node(settings, site.reactor, site.metrics, Flusher(site.reactor, site.metrics))
        self.handed: list[StreamMessage] = []
        self.node.hub.hand_over = lambda stream, message: self.handed.append(message)
        self.bus = site.start(RedisPubSub, self.node, **self.more)
        self.node.pubsub = self.bus
        self.node.broker = site.start(_broker, self.node, **self.more)
        self.node.controllers = Chain([], site.metrics)
        site.parts.append(self)
        for stream in streams:
            site.result(self.node.open_stream(stream))

    async def stop(self) -> None:
        await self.node.stop()

    def publish(self, *numbers: int, to: str = "a") -> None:
        for number in numbers:
            self.site.result(self.node.publish(Publication(to, b"%d" % number)))

    def heard(self) -> list[int]:
        return [int(message.payload) for message in self.handed]


def _broker(context: Any) -> Any:
    context.settings.update(
        {**defaults(public=True), "history_limit": 600, "redis_url": context.settings["redis_url"]}
    )
    broker = RedisBroker(context)
    broker._node = context.node  # type: ignore[attr-defined]
    return broker


@pytest.mark.statement("BR-39")
def test_cut_connections_lose_repeat_and_reorder_nothing(site):
    a, b, c = Member(site), Member(site, "a"), Member(site, "a")
    for start in range(0, 500, 100):
        a.publish(*range(start, start + 50))
        site.server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        a.publish(*range(start + 50, start + 100))
        site.turn(0.1)
    site.until(lambda: len(b.handed) >= 500 and len(c.handed) >= 500)
    site.turn()
    assert b.heard() == c.heard() == list(range(500))
    assert [m.offset for m in b.handed] == [m.offset for m in c.handed]


@pytest.mark.statement("F31")
def test_a_bus_that_stalls_with_its_connection_open_is_left_and_healed(site):
    with ProxyProcess(site.server.port) as proxy:
        a, b = Member(site), Member(site, "a", redis_url=f"redis://{HOST}:{proxy.port}")
        a.publish(1)
        site.until(lambda: b.heard() == [1])
        for connection in proxy.do("connections"):
            proxy.do("stall", direction="down", connection=connection)
        a.publish(2, 3)
        site.turn(0.1)
        assert b.heard() == [1]
        for _ in range(probe.MAX_MISSED + 1):
            site.reactor.pass_time(probe.PROBE_EACH)
            site.turn()
        site.until(lambda: b.heard() == [1, 2, 3])
        a.publish(4)
        site.until(lambda: b.heard() == [1, 2, 3, 4])
        for member in (b, b.node.broker, b.bus):  # they are to be stopped before the proxy
            site.stop(member)


@pytest.mark.statement("BR-41")
def test_a_last_message_that_the_bus_lost_is_found_by_the_audit(site):
    a, b = Member(site), Member(site, "a")
    a.publish(1)
    site.until(lambda: b.heard() == [1])
    b.bus._subscriber._connection.push = lambda answer: None
    a.publish(2)
    site.turn(0.1)
    assert b.heard() == [1]
    for _ in range(round(90 / ROUND * 6)):
        site.reactor.pass_time(ROUND / 6 + STEP)
        site.turn(0.02)
    site.until(lambda: b.heard() == [1, 2])


@pytest.mark.statement("BR-31", "BR-33")
def test_every_way_in_delivers_once_and_the_legacy_one_without_a_position(site):
    members = [Member(site, "a"), Member(site, "a")]
    for member in members:
        site.start(legacy.create, member.node)
        site.start(redisx.create, member.node, redisx_stream="rx")
    site.server.ask("PUBLISH", "__anycable__", '{"stream":"a","data":"1"}')
    site.until(lambda: all(member.heard() == [1] for member in members))
    site.server.ask("XADD", "rx", "*", "payload", '{"stream":"a","data":"2"}')
    site.until(lambda: all(member.heard() == [1, 2] for member in members))
    members[0].publish(3)
    site.until(lambda: all(member.heard() == [1, 2, 3] for member in members))
    site.turn(0.1)
    for member in members:
        assert [bool(message.offset) for message in member.handed] == [False, True, True]


def test_a_thousand_streams_are_healed_after_the_bus_was_lost(site):
    names = [f"s{number}" for number in range(1000)]
    a, b = Member(site), Member(site)
    for opening in [Deferred.fromCoroutine(b.node.open_stream(name)) for name in names]:
        site.result(opening)
    waiting: Deferred[None] = Deferred()
    b.bus._subscriber._pause.wait = lambda: waiting
    site.server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    site.until(lambda: b.bus._lost_since is not None)
    for number, name in enumerate(names):
        a.publish(number, to=name)
    assert b.handed == []
    waiting.callback(None)
    site.until(lambda: len(b.handed) >= 1000, 15)
    assert sorted(b.heard()) == list(range(1000))
