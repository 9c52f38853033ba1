"""The way to the broker: order, holding through an outage, and its bounds."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from anycable_tx.broadcasters import ingest as ingest_module
from anycable_tx.broadcasters.ingest import Ingest, Job
from anycable_tx.cable.messages import Publication, RemoteCommand
from anycable_tx.metrics import Metrics
from tests.broadcasters.fakes import FakeNode


class World:
    def __init__(self, hold: float = 12) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.node = FakeNode()
        self.ingest = Ingest(self.node, self.clock, self.metrics, hold)
        self.outcomes: dict[str, str] = {}

    def send(self, name: str, *streams: str, size: int = 10) -> Job:
        """A request that publishes its name to each of *streams*; its outcome is noted under the name."""
        job = Job([Publication(stream, f'"{name}{n}"'.encode()) for n, stream in enumerate(streams)], size)
        self.run(name, job)
        return job

    def run(self, name: str, job: Job) -> None:
        done = Deferred.fromCoroutine(self.ingest.store(job))
        done.addCallbacks(lambda _: self.outcomes.setdefault(name, "stored"), lambda f: self.note(name, f))

    def note(self, name: str, failure: Failure) -> None:
        self.outcomes[name] = failure.type.__name__

    def stored(self) -> list[str]:
        return [publication.payload.decode().strip('"') for publication in self.node.published]


@pytest.fixture
def world() -> World:
    return World()


def test_what_the_broker_takes_at_once_is_stored_at_once(world):
    world.send("a", "s", "t")
    assert world.outcomes == {"a": "stored"}
    assert world.stored() == ["a0", "a1"]
    assert world.clock.getDelayedCalls() == []


@pytest.mark.statement("BR-4")
def test_the_publications_of_a_request_are_stored_one_after_the_other(world):
    world.node.slow = True
    world.send("a", "s", "t", "s")
    assert world.stored() == ["a0"]
    world.node.answer()
    assert world.stored() == ["a0", "a1"]
    world.node.answer()
    world.node.answer()
    assert world.stored() == ["a0", "a1", "a2"]
    assert world.outcomes == {"a": "stored"}


def test_requests_for_one_stream_are_worked_off_in_their_order(world):
    world.node.slow = True
    for name in "abc":
        world.send(name, "s")
    world.send("d", "other")
    assert world.stored() == ["a0", "d0"]
    world.node.answer()
    world.node.answer()
    world.clock.advance(0)
    assert world.stored() == ["a0", "d0", "b0"]
    world.node.answer()
    world.clock.advance(0)
    world.node.answer()
    assert world.stored() == ["a0", "d0", "b0", "c0"]
    assert set(world.outcomes.values()) == {"stored"}


def test_requests_that_share_streams_crosswise_do_not_wait_for_each_other(world):
    world.node.slow = True
    world.send("a", "s", "t")
    world.send("b", "t", "s")
    world.send("c", "s")
    while world.node.waiting:
        world.node.answer()
        world.clock.advance(0)
    assert world.stored() == ["a0", "a1", "b0", "b1", "c0"]


def test_a_long_queue_is_no_deep_stack(world):
    world.node.slow = True
    for _ in range(3000):
        world.send("a", "s")
    world.node.slow = False
    world.node.answer()
    for _ in range(3000):
        world.clock.advance(0)
    assert len(world.stored()) == 3000
    assert world.ingest._tails == {}


@pytest.mark.statement("BR-20")
def test_a_publication_started_during_an_outage_is_stored_once_when_it_ends(world):
    world.node.down = True
    world.send("a", "s")
    world.clock.pump([0.1] * 50)
    assert world.outcomes == {}
    assert world.metrics.value("held_publications_total") == 1
    world.node.down = False
    world.clock.pump([0.1] * 10)
    assert world.outcomes == {"a": "stored"}
    assert world.stored() == ["a0"]


@pytest.mark.statement("BR-20")
def test_a_publication_is_refused_when_the_outage_outlasts_the_hold(world):
    world.node.down = True
    world.send("a", "s")
    world.clock.pump([0.1] * 119)
    assert world.outcomes == {}
    world.clock.pump([0.1] * 2)
    assert world.outcomes == {"a": "BrokerUnavailable"}
    assert world.clock.getDelayedCalls() == []


def test_attempts_become_rarer_but_not_rarer_than_one_a_second(world):
    world.node.down = True
    world.send("a", "s")
    world.clock.pump([0.01] * 1000)
    assert 12 <= world.node.attempts <= 15


def test_without_a_hold_the_first_failure_counts():
    world = World(hold=0)
    world.node.down = True
    world.send("a", "s")
    assert world.outcomes == {"a": "BrokerUnavailable"}


def test_order_survives_an_outage(world):
    world.node.down = True
    for name in "abc":
        world.send(name, "s")
        world.clock.advance(0.5)
    world.node.down = False
    world.clock.pump([0.1] * 15)
    assert world.stored() == ["a0", "b0", "c0"]


def test_the_rest_of_a_batch_is_tried_again_not_what_is_stored(world):
    world.node.fail_streams = {"t"}
    world.send("a", "s", "t", "u")
    world.clock.advance(0.1)
    world.node.fail_streams = set()
    world.clock.advance(0.2)
    assert world.stored() == ["a0", "a1", "a2"]


def test_those_that_wait_behind_others_are_refused_when_their_own_time_is_over(world):
    world.node.down = True
    world.send("a", "s")
    world.clock.pump([1] * 5)
    world.send("b", "s")
    world.clock.pump([1] * 8)
    assert world.outcomes == {"a": "BrokerUnavailable"}
    world.clock.pump([1] * 5)
    assert world.outcomes == {"a": "BrokerUnavailable", "b": "BrokerUnavailable"}


def test_the_number_of_held_requests_is_bounded(world, monkeypatch):
    monkeypatch.setattr(ingest_module, "MAX_HELD", 3)
    world.node.down = True
    for name, stream in (("a", "s"), ("b", "s"), ("c", "t"), ("d", "s"), ("e", "u")):
        world.send(name, stream)
    assert world.outcomes == {"d": "BrokerUnavailable", "e": "BrokerUnavailable"}
    world.node.down = False
    world.clock.pump([0.1] * 20)
    assert [world.outcomes[name] for name in "abc"] == ["stored"] * 3
    world.node.down = True
    world.send("f", "s")
    assert "f" not in world.outcomes


def test_the_bytes_of_held_requests_are_bounded(world, monkeypatch):
    monkeypatch.setattr(ingest_module, "MAX_HELD_BYTES", 100)
    world.node.down = True
    world.send("a", "s", size=60)
    world.send("b", "t", size=60)
    world.send("c", "u", size=40)
    assert world.outcomes == {"b": "BrokerUnavailable"}


def test_waiting_for_a_slow_but_healthy_broker_is_not_limited(world, monkeypatch):
    monkeypatch.setattr(ingest_module, "MAX_HELD", 3)
    world.node.slow = True
    for name in "abcdefgh":
        world.send(name, "s")
    assert world.outcomes == {}
    assert world.metrics.value("held_publications_total") == 0


def test_what_its_publisher_left_behind_is_given_up(world):
    world.node.down = True
    first, second = world.send("a", "s"), world.send("b", "s")
    first.abandoned = second.abandoned = True
    world.send("c", "s")
    world.node.down = False
    world.clock.pump([0.1] * 5)
    assert world.stored() == ["c0"]
    assert first.attempted
    assert not second.attempted
    assert world.metrics.value("abandoned_publications_total") == 2


@pytest.mark.statement("BR-13")
def test_a_command_is_sent_and_held_like_a_publication(world):
    world.node.down = True
    world.run("a", Job(RemoteCommand("disconnect", {"identifier": "u"}), 10))
    world.clock.advance(0.1)
    world.node.down = False
    world.clock.advance(0.2)
    assert world.outcomes == {"a": "stored"}
    assert world.node.commands == [RemoteCommand("disconnect", {"identifier": "u"})]


def test_an_unexpected_error_is_passed_on_and_blocks_nobody(world):
    world.node.bug = ZeroDivisionError()
    world.send("a", "s")
    world.node.bug = None
    world.send("b", "s")
    assert world.outcomes == {"a": "ZeroDivisionError", "b": "stored"}


def test_finished_waits_for_what_is_on_its_way(world):
    done: list[None] = []
    Deferred.fromCoroutine(world.ingest.finished()).addCallback(done.append)
    assert done == [None]
    world.node.slow = True
    world.send("a", "s")
    Deferred.fromCoroutine(world.ingest.finished()).addCallback(done.append)
    assert done == [None]
    world.node.answer()
    assert done == [None, None]
