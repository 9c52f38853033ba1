"""What a node does with its streams when the bus is back."""

from __future__ import annotations

from anycable_tx import streams
from anycable_tx.streams import HEALED_AT_ONCE
from tests.cable.support import A, World, pubsub


def test_when_the_bus_is_back_streams_are_healed_a_few_at_a_time():
    world = World(bus=True)
    client = world.subscribed(A)
    for number in range(200):
        client.subscribe(pubsub(f"s{number}"))
    client.heard()
    world.bus.holding = True
    for number in range(200):
        world.publish(f"s{number}")
    world.bus.lose()
    world.broker.slow = {"history"}
    world.node.bus_lost()
    world.node.bus_restored()
    assert len(world.broker.waiting) == HEALED_AT_ONCE
    for _ in range(200):
        world.broker.answer()
        assert len(world.broker.waiting) <= HEALED_AT_ONCE
    world.broker.answer_all()
    world.turn()
    assert client.heard() == [1] * 200
    assert world.metrics.value("gaps_healed_total") == 201


def test_a_stream_that_cannot_be_healed_leaves_the_others_alone(monkeypatch):
    world = World(bus=True)
    world.trouble = True
    monkeypatch.setattr(streams, "HEALED_AT_ONCE", 1)
    client = world.subscribed(A)
    client.subscribe(pubsub("b"))
    client.heard()
    world.bus.holding = True
    world.publish("a")
    world.publish("b")
    world.bus.lose()
    hand_over = world.node.hub.hand_over

    def failing(stream, message):
        if stream.name == "a":
            raise ZeroDivisionError("a bug")
        hand_over(stream, message)

    world.node.hub.hand_over = failing
    world.node.bus_restored()
    world.advance(1)
    assert len(client.heard()) == 1
    assert world.metrics.value("internal_errors_total") == 1
