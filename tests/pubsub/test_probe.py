"""A bus that is silent although it is connected."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from anycable_tx.errors import BrokerUnavailable
from anycable_tx.pubsub.probe import MAX_MISSED, PROBE_EACH, Probe


class World:
    """A probe, what it sent, and how often it found silence. What is sent comes back at once if it ``echoes``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[bytes] = []
        self.silences = 0
        self.echoes = True
        self.broken = False
        self.probe = Probe(self.clock, self.send, self.silent)
        self.running = Deferred.fromCoroutine(self.probe.run())
        self.running.addErrback(lambda failure: None)

    async def send(self, text: bytes) -> None:
        if self.broken:
            raise BrokerUnavailable("no connection")
        self.sent.append(text)
        if self.echoes:
            self.probe.heard(text)

    def silent(self) -> None:
        self.silences += 1

    def beat(self, times: int = 1) -> None:
        self.clock.pump([PROBE_EACH] * times)


@pytest.fixture
def world():
    world = World()
    yield world
    world.running.cancel()


def test_a_bus_that_answers_is_not_silent(world):
    world.beat(10)
    assert world.sent == [b"%d" % number for number in range(1, 11)]
    assert world.silences == 0


def test_a_bus_that_answers_nothing_is_silent_again_and_again(world):
    world.echoes = False
    world.beat(MAX_MISSED)
    assert world.silences == 0
    world.beat()
    assert world.silences == 1
    world.beat(MAX_MISSED)
    assert world.silences == 2


def test_a_late_answer_is_an_answer(world):
    world.echoes = False
    for _ in range(5):
        world.beat(MAX_MISSED)
        assert world.probe.heard(world.sent[-1])
    assert world.silences == 0


def test_nothing_is_sent_or_missed_while_it_is_paused(world):
    world.echoes = False
    world.beat()
    world.probe.paused = True
    world.beat(10)
    assert (len(world.sent), world.silences) == (1, 0)


def test_what_cannot_be_sent_is_no_silence(world):
    world.broken = True
    world.beat(10)
    assert world.silences == 0


def test_what_was_sent_before_starting_over_proves_nothing(world):
    world.echoes = False
    world.beat()
    world.probe.start_over()
    assert not world.probe.heard(world.sent[0])
    world.beat()
    assert world.probe.heard(world.sent[1])


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"99", b"0", b"\xff"])
def test_what_was_never_sent_proves_nothing(world, text):
    world.beat()
    world.probe.start_over()
    assert not world.probe.heard(text)
