"""What one client may do: how fast it may send, and how many subscriptions it may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from anycable_tx.cable.pace import BURST, Pace
from tests.cable.support import World, pubsub

TOO_MANY = {"type": "disconnect", "reason": "too_many_commands", "reconnect": True}


def test_a_client_may_send_a_burst_and_then_at_the_rate():
    world = World(max_commands_rate=2)
    client = world.connect()
    client.take()
    for _ in range(20):
        client.say(command="ping")
    world.advance(0.5)
    client.say(command="ping")
    assert client.heard() == ["pong"] * 21
    assert client.closed is None
    client.say(command="ping")
    assert client.take() == [TOO_MANY]
    assert client.closed == (1008, "Too many commands")


def test_others_are_not_concerned():
    world = World(max_commands_rate=1)
    client, other = world.connect(), world.subscribed(pubsub("a"))
    for _ in range(11):
        client.say(command="ping")
    assert client.closed is not None
    world.publish("a", 1)
    assert other.heard() == [1]


@pytest.mark.parametrize("frame", [b"", b"{", b"null", b"[]", b'{"command":"pong"}', b'{"command":"nonsense"}'])
def test_whatever_a_client_sends_counts(frame):
    client = World(max_commands_rate=1).connect()
    for _ in range(11):
        client.say(frame)
    assert client.closed == (1008, "Too many commands")


def test_commands_behind_the_last_one_that_was_allowed_are_not_carried_out():
    world = World("backend", max_commands_rate=1)
    client = world.connect()
    answer = world.backend.slowly("subscribe")
    for n in range(11):
        client.subscribe(pubsub(f"s{n}"))
    asked = len(world.backend.calls)
    answer.callback(None)
    assert client.closed is not None
    assert len(world.backend.calls) == asked


def test_without_a_rate_a_client_sends_as_fast_as_it_can():
    client = World(max_commands_rate=0).connect()
    client.take()
    for _ in range(20_000):
        client.say(command="ping")
    assert client.closed is None


@given(st.integers(1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_in_any_span_no_more_is_allowed_than_the_rate_and_one_burst(rate, pauses):
    clock = Clock()
    pace, clear, allowed = Pace(rate, clock.seconds), 0.0, []
    for pause in pauses:
        clock.advance(pause)
        for _ in range(rate):
            spent = pace.spent(clear)
            if spent < 0:
                break
            clear = spent
            allowed.append(clock.seconds())
    for start in range(0, len(allowed), 7):
        count = len(allowed) - start
        assert count <= rate * (allowed[-1] - allowed[start] + BURST) + 1e-6 * count


def test_a_client_at_the_rate_is_never_refused():
    clock = Clock()
    pace, clear = Pace(3, clock.seconds), 0.0
    for _ in range(10_000):
        clock.advance(1 / 3)
        clear = pace.spent(clear)
        assert clear >= 0


# -- subscriptions


def test_beyond_the_limit_a_subscription_is_refused_and_the_others_go_on():
    world = World(max_subscriptions=2)
    client = world.subscribed(pubsub("a"), pubsub("b"))
    client.subscribe(pubsub("c"))
    assert client.take() == [{"type": "reject_subscription", "identifier": pubsub("c")}]
    assert world.metrics.value("subscription_rejects_total", "too_many_subscriptions") == 1
    world.publish("a", 1)
    world.publish("c", 2)
    assert client.heard() == [1]


def test_a_backend_is_not_asked_for_what_is_too_much():
    world = World("backend", max_subscriptions=1)
    client = world.connect()
    client.subscribe(pubsub("a"))
    asked = len(world.backend.calls)
    client.subscribe(pubsub("b"))
    assert len(world.backend.calls) == asked


def test_who_unsubscribes_may_subscribe_again():
    world = World(max_subscriptions=1)
    client = world.subscribed(pubsub("a"))
    client.unsubscribe(pubsub("a"))
    client.subscribe(pubsub("b"))
    assert client.heard() == ["confirm_subscription"]


def test_a_session_comes_back_with_all_it_had():
    world = World(max_subscriptions=2)
    client = world.subscribed(pubsub("a"), pubsub("b"))
    world.node.max_subscriptions = 1
    back = client.again()
    assert len(back.session.subscriptions) == 2
