"""Catching up: a loss is told where it is, nothing comes twice, the cursor stands where sending stopped."""

from __future__ import annotations

import pytest

from anycable_tx.errors import BrokerUnavailable
from tests.cable.support import A, Client, World, room

CONFIRM, REJECT = "confirm_history", "reject_history"
DOWN = BrokerUnavailable("down")


# -- what cannot be had any more


@pytest.mark.statement("CP-64", "CP-82")
def test_a_loss_is_told_before_the_messages_behind_it_whatever_the_other_streams_wait_for():
    """Cut in between, the client would have passed over the hole unawares."""
    world = World("backend", history_limit=2)
    here = room("a", "b")
    client = world.subscribed(here)
    client.cut()
    world.publish("a", count=4)
    world.publish("b")
    again = client.again()
    again.heard()
    world.broker.slow = {"history"}
    world.advance(2.2)
    world.broker.answer()
    world.publish("a")
    assert again.heard() == [REJECT, 5], "the answer for b is still awaited"
    world.broker.answer_all()
    assert again.heard() == [1]


@pytest.mark.statement("CP-82")
def test_a_client_of_the_base_protocol_is_not_told_of_a_loss_it_did_not_ask_about():
    world = World(history_limit=2)
    world.publish("a")
    client = world.subscribed(A, extended=False)
    world.broker.slow = {"history"}
    client.ask(A, 1)
    world.publish("a", count=5)
    world.broker.answer_all()
    world.publish("a")
    assert client.heard() == [CONFIRM, 7]


# -- a bus that is behind


def ahead_of_the_bus(world: World) -> Client:
    """A client that read 1 to 3 on the first node and moved to the second, whose bus has brought 1 only."""
    world.subscribed(A, node=1)
    client = world.subscribed(A, node=0)
    world.publish("a")
    world.buses[1].holding = True
    world.publish("a", count=2)
    assert client.heard() == [1, 2, 3]
    client.cut()
    again = client.again(node=1)
    assert again.heard() == ["welcome"]
    return again


@pytest.mark.statement("CP-77", "CP-82")
def test_what_a_client_was_sent_does_not_come_again_from_a_bus_behind_it_when_the_store_fails():
    world = World(nodes=2)
    again = ahead_of_the_bus(world)
    world.broker.failing = {"history": DOWN, "tail": DOWN}
    world.advance(10)
    assert again.heard() == [REJECT]
    world.broker.failing.clear()
    world.buses[1].release()
    world.publish("a")
    world.advance(1)
    assert again.heard() == [4]


@pytest.mark.statement("CP-77", "CP-82")
def test_what_was_read_from_the_store_does_not_come_again_from_a_bus_behind_it_when_the_store_fails_then():
    """The store answers once, for the client, and not when the node reads what the bus owes to everybody."""
    world = World(nodes=2)
    again = ahead_of_the_bus(world)
    world.publish("a", count=2)
    world.broker.slow = {"history"}
    world.advance(2.2)
    world.broker.failing = {"history": DOWN, "tail": DOWN}
    world.broker.answer_all()
    world.advance(10)
    assert again.heard() == [4, 5]
    world.broker.failing.clear()
    world.buses[1].release()
    world.publish("a")
    world.advance(1)
    assert again.heard() == [6]


# -- a paced replay that is cut


@pytest.mark.statement("CP-100", "CP-104")
@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "not asked for"])
def test_the_first_part_of_a_replay_that_was_cut_is_not_sent_again_to_a_client_that_never_asks(asks):
    world = World()
    client = world.subscribed(A)
    client.cut()
    world.publish("a", "x" * 40_000, count=6)
    slow = client.again(stalled=True)
    if asks:
        slow.catch_up(A)
    else:
        world.advance(2.2)
    assert slow.heard() == ["welcome", 1, 2]
    slow.drain()
    assert slow.heard() == [3, 4]
    slow.cut()
    again = slow.again()
    world.advance(2.2)
    assert again.heard() == ["welcome", 5, 6]
