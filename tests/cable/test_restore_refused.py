"""Resumed clients that are refused: what the refusal proves, and where they go on."""

from __future__ import annotations

from tests.cable.support import A, Client, World


def went_live_unasked(client: Client) -> Client:
    """*client* comes back after it lost what it was sent, and is sent the next message before it has asked."""
    known = client.positions
    client.take()
    client.cut()
    again = client.again()
    again.positions = known
    client.world.advance(2.2)
    client.world.publish("a")
    again.take()
    return again


def test_a_refused_client_is_not_sent_again_what_it_has_by_a_node_that_lags():
    world = World(nodes=2)
    world.subscribed(A, node=1)
    client = world.subscribed(A)
    world.buses[1].holding = True
    again = went_live_unasked(client)
    again.cut()
    back = again.again(node=1)
    back.catch_up(A)
    world.buses[1].release()
    world.publish("a")
    assert back.heard() == ["welcome", "reject_history", 2]


def test_a_position_in_the_future_does_not_hide_what_comes_after_a_refusal():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    again.ask(A, 1000)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 1]
