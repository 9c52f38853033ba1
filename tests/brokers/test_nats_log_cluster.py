"""The stream logs of NATS brokers on a cluster: killed servers, lost quorums, rolling restarts, few replicas."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from time import time
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.background import sleep as pause
from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.nats_servers import NatsCluster
from tests.brokers.nats_support import Brokers, Made, brokers

#: A publisher asks again when it was refused, as the broadcaster over HTTP does.
PATIENCE = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    with NatsCluster() as running:
        yield running


@pytest.fixture
def nodes(cluster: NatsCluster) -> Iterator[Brokers]:
    for each in cluster.servers:
        if each.process is None:
            each.start(30)
    cluster.ready()
    with brokers(*cluster.urls) as made:
        yield made


class Publisher:
    """Publishes numbers to one stream, one after the other, by whichever of the brokers comes next."""

    def __init__(self, nodes: Brokers, made: list[Made]) -> None:
        self.nodes, self.made = nodes, made
        self.receipts: list[Receipt] = []
        self.stall = 0.0
        self._goes_on = True
        self._done = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        number = 0
        while self._goes_on:
            began = time()
            while True:
                broker = self.made[number % len(self.made)].broker
                try:
                    receipt = await broker.publish(Publication("chat", str(number).encode(), id=f"p-{number}"))
                    break
                except BrokerUnavailable:
                    assert time() - began < PATIENCE
                    await pause(self.nodes.reactor, 0.2)
            self.receipts.append(receipt)
            self.stall = max(self.stall, time() - began)
            number += 1
            await pause(self.nodes.reactor, 0.005)

    def until(self, count: int) -> None:
        self.nodes.reactor.until(lambda: len(self.receipts) >= count or self._done.called, PATIENCE + 10)

    def more(self, count: int = 50) -> None:
        self.until(len(self.receipts) + count)

    def stop(self) -> int:
        self._goes_on = False
        self.nodes.run(self._done, PATIENCE)
        return len(self.receipts)


def log(nodes: Brokers, cluster: NatsCluster) -> str:
    (name,) = cluster.ask_api("STREAM.NAMES", {"subject": nodes.names.all_stored("default")})["streams"]
    return str(name)


def check_all(
    nodes: Brokers, made: list[Made], publisher: Publisher, begin: Position, *, repeated: bool = False
) -> None:
    """All was stored once, in the order of the receipts; what the bus lost shows. It may have *repeated* some."""
    count = publisher.stop()
    offsets = [receipt.offset for receipt in publisher.receipts]
    assert offsets == sorted(set(offsets))
    assert {receipt.epoch for receipt in publisher.receipts} == {begin.epoch}
    nodes.reactor.until(lambda: not any(each.broker.problem() for each in made), 30)
    for each in made:
        history = nodes.run(each.broker.history("chat", HistoryRequest(begin)))
        assert [int(message.payload) for message in history.messages] == list(range(count))
        assert [message.offset for message in history.messages] == offsets
        first = {message.offset: message for message in reversed(each.messages)}
        messages = sorted(first.values(), key=each.messages.index) if repeated else each.messages
        heard = [message.offset for message in messages]
        assert heard == sorted(set(heard))
        for before, message in pairwise(messages):
            # What the bus did not bring is missed.
            assert (message.prev == before.offset) == (
                offsets.index(message.offset) == offsets.index(before.offset) + 1
            )


def started(nodes: Brokers, count: int = 2, **settings: Any) -> tuple[list[Made], Position]:
    own = {"nats_replicas": 3, "history_limit": 5000, **settings}
    made = [nodes.make(sweeps=True, **own) for _ in range(count)]
    for each in made:
        nodes.listen(each, "chat")
    position: Position = nodes.run(made[0].broker.tail("chat"))
    return made, position


@pytest.mark.statement("BR-64", "F52", "P6")
def test_a_killed_leader_stalls_publishing_for_a_while_and_nothing_is_lost_or_doubled(
    nodes: Brokers, cluster: NatsCluster
) -> None:
    made, begin = started(nodes)
    publisher = Publisher(nodes, made)
    publisher.more()
    leader = cluster.leader(log(nodes, cluster))
    leader.kill()
    publisher.more(100)
    assert publisher.stall < 12  # the servers take 4 to 9 s to elect another one
    check_all(nodes, made, publisher, begin)
    leader.start(30)


@pytest.mark.statement("BR-65", "F52")
def test_without_a_quorum_nothing_is_acknowledged_and_nothing_unproven_is_served(
    nodes: Brokers, cluster: NatsCluster
) -> None:
    made, begin = started(nodes)
    publisher = Publisher(nodes, made)
    publisher.more()
    publisher.stop()
    stored = publisher.receipts
    last = stored[-1]
    leader = cluster.leader(log(nodes, cluster))
    others = [each for each in cluster.servers if each is not leader]
    leader.kill()
    others[0].kill()
    with pytest.raises(BrokerUnavailable):
        nodes.run(made[0].broker.publish(Publication("chat", b'"too early"', id="early")), 30)
    nodes.reactor.until(lambda: all(each.broker.problem() for each in made), 30)
    for each in made:
        nodes.reactor.until(lambda node=each: not node.nats.problem(), 30)
        for position in (stored[10], last):
            asked = Position(position.epoch, position.offset)
            history = nodes.run(each.broker.history("chat", HistoryRequest(asked)), 30)
            assert [m.offset for m in history.messages] == [r.offset for r in stored if r.offset > asked.offset]
        with pytest.raises(BrokerUnavailable):
            nodes.run(each.broker.history("never published", HistoryRequest(begin)), 30)
        with pytest.raises(BrokerUnavailable):
            nodes.run(each.broker.tail("chat"), 30)
    leader.start(30)
    others[0].start(30)
    nodes.reactor.until(lambda: not any(each.broker.problem() for each in made), 30)
    receipt = nodes.run(made[1].broker.publish(Publication("chat", b'"late"', id="late")), 30)
    assert receipt.epoch == last.epoch
    assert receipt.offset > last.offset
    assert all(each.node.bus == [] for each in made)


@pytest.mark.statement("BR-66", "F56")
def test_servers_can_be_restarted_one_by_one_and_once_more(nodes: Brokers, cluster: NatsCluster) -> None:
    made, begin = started(nodes)
    publisher = Publisher(nodes, made)
    publisher.more()
    name = log(nodes, cluster)
    for server in cluster.servers * 2:
        server.stop()
        publisher.more(20)
        server.start(30)
        nodes.reactor.until(lambda: all_current(cluster, name), 30)
        publisher.more(20)
    assert publisher.stall < 10
    check_all(nodes, made, publisher, begin)
    assert all(each.node.bus == [] for each in made)


@pytest.mark.statement("F52", "P6")
def test_a_leader_that_stands_still_is_replaced_and_what_it_says_later_changes_nothing(
    nodes: Brokers, cluster: NatsCluster
) -> None:
    made, begin = started(nodes, nats_ping_interval=1.0)
    publisher = Publisher(nodes, made)
    publisher.more()
    leader = cluster.leader(log(nodes, cluster))
    leader.stall()
    try:
        publisher.more(100)
    finally:
        leader.resume()
    publisher.more(20)
    assert publisher.stall < 15
    check_all(nodes, made, publisher, begin)
    assert all(each.node.bus == [] for each in made)


@pytest.mark.statement("F52", "F56", "P6")
def test_a_cluster_that_was_killed_as_a_whole_goes_on_where_it_was(nodes: Brokers, cluster: NatsCluster) -> None:
    made, begin = started(nodes)
    publisher = Publisher(nodes, made)
    publisher.more()
    for server in cluster.servers:
        server.kill()
    nodes.reactor.until(lambda: all(each.broker.problem() for each in made), 30)
    for server in cluster.servers:
        server.launch()
    publisher.more()
    # Servers that come back read their own logs again, and may say once more what they had said before they died.
    check_all(nodes, made, publisher, begin, repeated=True)
    assert all(each.node.bus == [] for each in made)


def all_current(cluster: NatsCluster, name: str) -> bool:
    replicas = cluster.ask_api(f"STREAM.INFO.{name}").get("cluster", {}).get("replicas", [])
    return len(replicas) == 2 and all(each.get("current") for each in replicas)


def test_nodes_that_start_at_once_make_one_log(nodes: Brokers, cluster: NatsCluster) -> None:
    made = [nodes.make(start=False, nats_replicas=3) for _ in range(4)]
    waiting = [Deferred.fromCoroutine(each.broker.start()) for each in made]
    for each in waiting:
        nodes.run(each, 30)
    nodes.reactor.until(lambda: not any(each.broker.problem() for each in made), 30)
    assert len({nodes.run(each.broker.tail("chat")).epoch for each in made}) == 1
    assert log(nodes, cluster)
    assert all(each.node.bus == [] for each in made)


def test_replicas_are_added_to_a_log_that_has_too_few(nodes: Brokers, cluster: NatsCluster) -> None:
    (node,), begin = started(nodes, 1, nats_replicas=1)
    name = log(nodes, cluster)
    assert cluster.ask_api(f"STREAM.INFO.{name}")["config"]["num_replicas"] == 1
    publisher = Publisher(nodes, [node])
    publisher.more()
    node.broker._logs._replicas = 3
    nodes.run(node.broker._logs.raise_replicas(), 30)
    assert cluster.ask_api(f"STREAM.INFO.{name}")["config"]["num_replicas"] == 3
    nodes.reactor.until(lambda: all_current(cluster, name), 30)
    check_all(nodes, [node], publisher, begin)
