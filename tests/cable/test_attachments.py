"""What the server believes of a client that comes back: where it started, and what its position proves."""

from __future__ import annotations

import orjson
import pytest

from anycable_tx.errors import BrokerUnavailable
from tests.cable.support import A, Client, World

CONFIRM, REJECT = "confirm_history", "reject_history"
DOWN = BrokerUnavailable("down")


def unread(client: Client) -> Client:
    """The client was cut before any message it was sent arrived; only the welcome did."""
    client.take()
    client.cut()
    client.positions = {}
    return client.again()


# -- where a subscription that asked for messages by time starts


@pytest.mark.statement("CP-70", "CP-104")
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "not answered"])
def test_what_was_asked_for_by_time_is_served_again_when_none_of_it_arrived(answered):
    world = World()
    since = world.now
    world.publish("a", count=2)
    client = world.connect()
    client.take()
    if not answered:
        world.broker.slow = {"history"}
    client.subscribe(A, history={"since": since})
    assert client.heard() == ["confirm_subscription", *([1, 2, CONFIRM] if answered else [])]
    again = unread(client)
    world.broker.answer_all()
    again.ask(A, since=since)
    world.publish("a")
    assert again.heard() == ["welcome", 1, 2, CONFIRM, 3]


@pytest.mark.statement("CP-70", "CP-104")
def test_a_later_question_does_not_say_where_a_subscription_starts_whose_own_was_refused():
    """Else a client that got nothing of it all is given the later answer only, and told that this is everything."""
    world = World()
    first = world.now
    world.publish("a", count=2)
    world.broker.failing = {"history": DOWN}
    client = world.connect()
    client.subscribe(A, history={"since": first})
    world.advance(4)
    assert client.heard() == ["welcome", "confirm_subscription", REJECT]
    world.broker.failing.clear()
    world.advance(10)
    world.publish("a")
    client.ask(A, since=world.now)
    assert client.heard() == [3, 3, CONFIRM]
    again = unread(client)
    again.ask(A, since=first)
    assert again.heard() == ["welcome", 1, 2, 3, CONFIRM]


@pytest.mark.statement("CP-70", "CP-104")
def test_the_answer_to_a_subscriptions_own_question_says_where_it_starts():
    """The clock of a client that comes back does not matter any more."""
    world = World()
    world.publish("a")
    world.advance(10)
    since = world.now
    world.publish("a")
    client = world.connect()
    client.subscribe(A, history={"since": since})
    assert client.heard() == ["welcome", "confirm_subscription", 2, CONFIRM]
    world.advance(30)
    again = unread(client)
    again.ask(A, since=world.now + 60)
    assert again.heard() == ["welcome", 2, CONFIRM]


@pytest.mark.statement("CP-70", "CP-104", "P3")
@pytest.mark.parametrize("settings", [{"history_limit": 2}, {"history_ttl": 8}], ids=["trimmed", "expired"])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "after another question"])
def test_a_refusal_that_did_not_arrive_is_told_again_however_far_the_clients_clock_went_on(settings, later):
    world = World(**settings)
    first = world.now
    world.publish("a", count=5)
    world.advance(10)
    client = world.connect()
    client.subscribe(A, history={"since": first})
    assert client.heard() == ["welcome", "confirm_subscription", REJECT]
    if later:
        client.ask(A, since=world.now)
        client.take()
    again = unread(client)
    world.advance(1)
    again.ask(A, since=world.now)
    assert again.heard() == ["welcome", REJECT]
    again.cut()
    third = again.again()
    third.ask(A, since=world.now + 60)
    world.publish("a")
    assert third.heard() == ["welcome", REJECT, 6]
    third.cut()
    back = third.again()
    back.catch_up(A)
    assert back.heard() == ["welcome", CONFIRM]


@pytest.mark.parametrize("since", [1, 2**53, 2**63, 2**70])
def test_whatever_time_was_asked_for_can_be_kept(since):
    world = World()
    world.broker.failing = {"history": DOWN}
    client = world.connect()
    asking = b',"identifier":%b,"history":{"since":%d}}' % (orjson.dumps(A), since)
    client.say(b'{"command":"subscribe"' + asking)
    world.advance(4)
    assert client.heard() == ["welcome", "confirm_subscription", REJECT]
    world.broker.failing.clear()
    again = unread(client)
    again.say(b'{"command":"history"' + asking)
    assert again.heard() == ["welcome", CONFIRM]


# -- what a position does not prove


def overtaken(world: World) -> Client:
    """A client that read 1, lost 2 and 3 on their way, came back and was sent 4 before it asked. It is gone again."""
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    world.publish("a", count=2)
    client.take()
    client.cut()
    client.positions = {"a": {"epoch": world.epoch, "offset": 1}}
    again = client.again()
    world.advance(2.2)
    world.publish("a")
    assert again.heard() == ["welcome", 4]
    again.cut()
    return again


@pytest.mark.statement("CP-90", "CP-100")
def test_a_position_reached_by_live_messages_before_any_question_proves_nothing():
    world = World()
    again = overtaken(world).again()
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", REJECT, 5]
    assert world.metrics.value("history_rejects_total", "behind") == 1


@pytest.mark.statement("CP-90", "CP-100")
def test_the_doubt_outlives_connections_on_which_nothing_is_asked():
    world = World()
    client = overtaken(world)
    for _ in range(2):
        client = client.again()
        world.advance(2.2)
        client.cut()
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", REJECT]


@pytest.mark.statement("CP-90", "CP-100")
def test_a_position_from_before_the_doubt_is_served():
    world = World()
    again = overtaken(world).again()
    again.ask(A, 1)
    assert again.heard() == ["welcome", 2, 3, 4, CONFIRM]


@pytest.mark.statement("CP-90", "CP-100")
def test_a_client_that_was_told_of_its_loss_is_believed_afterwards():
    world = World()
    again = overtaken(world).again()
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", REJECT, 5]
    again.cut()
    world.publish("a")
    last = again.again()
    last.catch_up(A)
    assert last.heard() == ["welcome", 6, CONFIRM]


@pytest.mark.statement("CP-90", "CP-100", "CP-104")
def test_a_client_that_missed_that_it_was_told_of_its_loss_is_told_again():
    world = World()
    lost = overtaken(world).again()
    lost.catch_up(A)
    assert lost.heard() == ["welcome", REJECT]
    lost.cut()
    again = lost.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", REJECT]


@pytest.mark.statement("CP-64", "CP-82")
def test_a_late_question_is_refused_if_its_barrier_had_opened_over_a_hole():
    """The client may have missed that it was told: a confirmation would say that it has everything."""
    world = World(history_limit=2)
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    client.cut()
    world.publish("a", count=4)
    again = client.again()
    world.advance(2.2)
    assert again.heard() == ["welcome", REJECT]
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == [REJECT, 6]
