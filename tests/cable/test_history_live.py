"""Replay and live delivery together, with a broker and a bus that take their time: in order, once, no hole."""

from __future__ import annotations

import random

import pytest

from tests.cable.support import A, Client, World, room

CONFIRM, REJECT = "confirm_history", "reject_history"
late = pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])


def offsets(client: Client, identifier: str = "") -> list[int]:
    """Every offset the client was sent so far."""
    return [
        f["offset"] for f in client.frames if "offset" in f and f["identifier"] == (identifier or f["identifier"])
    ]


@pytest.mark.statement("CP-77", "BR-49")
@late
@pytest.mark.parametrize("bus", [False, True], ids=["local", "bus"])
def test_subscribing_with_history_under_constant_publishing(asking, bus):
    world = World(bus=bus)
    world.publish("a", count=5)
    world.broker.slow = {"history", "tail"}
    world.broker.asking = asking
    client = world.connect()
    client.subscribe(A, history={"streams": {"a": {"epoch": world.epoch, "offset": 2}}})
    for _ in range(10):
        world.publish("a")
        client.take()
        if world.broker.waiting:
            world.broker.answer()
    world.broker.answer_all()
    world.advance(1)
    world.publish("a", count=2)
    client.take()
    types = [frame.get("type") for frame in client.frames if "offset" not in frame]
    assert types == ["welcome", "confirm_subscription", CONFIRM]
    assert offsets(client) == list(range(3, 18))


@pytest.mark.statement("CP-77", "BR-49")
@late
def test_asking_on_a_live_subscription_under_constant_publishing(asking):
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=3)
    client.take()
    world.broker.slow = {"history"}
    world.broker.asking = asking
    client.ask(A, 3)
    for _ in range(6):
        world.publish("a")
        if world.broker.waiting:
            world.broker.answer()
    world.broker.answer_all()
    world.publish("a")
    heard = client.heard()
    assert heard.count(CONFIRM) == 1
    assert offsets(client) == list(range(1, 11))


@pytest.mark.statement("CP-77")
@late
def test_a_subscription_becomes_live_even_if_a_message_comes_with_each_answer(asking):
    """However slowly the broker answers: otherwise the session's next command would wait for ever."""
    world = World()
    client = world.subscribed(A)
    world.broker.slow = {"history"}
    world.broker.asking = asking
    client.ask(A, 0)
    for _ in range(10):
        world.publish("a")
        if world.broker.waiting:
            world.broker.answer()
    assert not world.broker.waiting
    assert client.heard().count(CONFIRM) == 1
    assert offsets(client) == list(range(1, 11))


@pytest.mark.statement("CP-77")
def test_live_messages_wait_until_the_answer_is_out():
    world = World()
    world.publish("a", count=2)
    client = world.subscribed(A)
    world.broker.slow = {"history"}
    client.ask(A, 0)
    world.publish("a", "transient", transient=True)
    world.publish("a")
    assert client.take() == []
    world.broker.answer_all()
    assert client.heard() == [1, 2, CONFIRM, 3, "transient"]


@late
def test_unsubscribing_during_a_replay(asking):
    """No frame for the old subscription comes behind the new one's confirmation."""
    world = World()
    world.publish("a", count=2)
    client = world.subscribed(A)
    world.broker.slow = {"history"}
    world.broker.asking = asking
    client.ask(A, 0)
    client.unsubscribe(A)
    client.subscribe(A)
    world.publish("a")
    world.broker.answer_all()
    world.publish("a")
    heard = client.heard()
    assert heard[-2:] == ["confirm_subscription", 4]
    assert heard[:-2] in ([1, 2, CONFIRM], [1, 2, 3, CONFIRM], [1, 2, CONFIRM, 3])


@late
def test_a_client_that_leaves_while_it_waits_is_forgotten(asking):
    world = World()
    world.publish("a", count=2)
    client = world.subscribed(A)
    world.broker.slow = {"history"}
    world.broker.asking = asking
    client.ask(A, 0)
    client.cut()
    world.broker.answer_all()
    world.advance(6)
    assert client.take() == []
    assert world.node.hub.streams == {}


def test_a_remote_disconnect_stops_a_replay():
    world = World("backend")
    world.publish("a", "x" * 40_000, count=6)
    client = world.subscribed(room("a"), stalled=True, query="me")
    client.ask(room("a"), 0)
    world.ban('{"user":"me"}')
    client.drain()
    world.publish("a")
    assert client.heard() == [1, 2, "disconnect"]
    client.cut()
    assert client.again(query="me").take()[0].get("restored") is None


@pytest.mark.statement("CP-77")
def test_an_answer_from_behind_what_was_delivered_is_not_believed():
    """A lagging copy of the store: the client is told, instead of a hole left."""
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.take()
    world.broker.slow = {"history"}
    client.ask(A, 2)
    world.publish("a", count=2)
    world.broker.answer_all()
    assert client.heard()[0] == CONFIRM
    assert offsets(client) == [1, 2, 3, 4]


@pytest.mark.statement("CP-82")
def test_a_hole_that_appears_while_a_client_waits_is_told_once():
    world = World(history_limit=2)
    world.publish("a")
    client = world.subscribed(A)
    world.broker.slow = {"history"}
    client.ask(A, 1)
    world.publish("a", count=5)
    world.broker.answer_all()
    world.publish("a")
    assert client.heard() == [CONFIRM, REJECT, 7]


@pytest.mark.statement("CP-77", "CP-90")
def test_the_bus_may_be_behind_the_store():
    world = World(bus=True)
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    world.bus.holding = True
    world.publish("a", count=2)
    client.ask(A, 1)
    assert client.heard() == [2, 3, CONFIRM]
    world.bus.release()
    world.publish("a")
    assert client.heard() == [4]


@pytest.mark.statement("CP-77", "CP-55")
def test_one_clients_question_brings_what_the_bus_owes_to_everybody():
    world = World(bus=True)
    one, other = world.subscribed(A), world.subscribed(A)
    world.bus.holding = True
    world.publish("a", count=2)
    one.ask(A, 0)
    assert (one.heard(), other.heard()) == ([1, 2, CONFIRM], [1, 2])
    world.bus.release()
    assert (one.heard(), other.heard()) == ([], [])


@pytest.mark.statement("CP-77")
def test_what_one_client_reads_ahead_of_the_bus_is_not_read_again_for_the_others():
    world = World(bus=True)
    live, client = world.subscribed(A), world.subscribed(A)
    client.cut()
    again = client.again()
    world.publish("a")
    world.bus.holding = True
    world.publish("a", count=2)
    world.broker.calls.clear()
    world.advance(2.2)
    assert (again.heard(), live.heard()) == (["welcome", 1, 2, 3], [1, 2, 3])
    assert world.broker.calls.count("history") == 1
    world.bus.release()
    assert (again.heard(), live.heard()) == ([], [])


@pytest.mark.statement("CP-77", "BR-49")
@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_answers_and_messages(seed):
    """Clients subscribe, ask, leave and resume while the bus spoils what it carries."""
    chance = random.Random(seed)
    world = World(bus=True, history_limit=1000)
    world.broker.slow = {"history", "tail", "save_session"}
    clients = []
    for n in range(60):
        if n % 6 == 0:
            client = world.connect()
            client.subscribe(A, history={"streams": {"a": {"epoch": world.epoch, "offset": 0}}})
            clients.append(client)
        if n % 4 == 1:
            world.bus.holding = True
        world.publish("a")
        if n % 4 == 0:
            pending = world.bus.pending
            chance.shuffle(pending)
            del pending[: chance.randrange(len(pending) + 1)]
            pending += chance.choices(pending, k=2) if pending else []
            world.bus.release()
        world.broker.asking = chance.random() < 0.5
        for _ in range(chance.randrange(3)):
            if world.broker.waiting:
                world.broker.answer()
        world.clock.advance(chance.choice([0, 0.05, 0.2]))
    world.bus.release()
    world.broker.answer_all()
    world.advance(5)
    last = world.publish("a").offset
    world.advance(5)
    for client in clients:
        client.take()
        assert [f["type"] for f in client.frames if "offset" not in f] == ["welcome", "confirm_subscription", CONFIRM]
        assert offsets(client) == list(range(1, last + 1))


@pytest.mark.statement("CP-77")
def test_a_time_does_not_pass_over_what_the_bus_has_not_brought_yet():
    """What is older than the time that is asked for is owed to a live subscription all the same."""
    world = World(bus=True)
    client = world.subscribed(A)
    world.bus.holding = True
    world.publish("a")
    world.advance(5)
    world.publish("a")
    client.ask(A, since=world.now)
    world.bus.release()
    world.publish("a")
    assert client.heard() == [1, 2, CONFIRM, 3]


@pytest.mark.statement("CP-77")
def test_a_late_answer_to_a_time_in_the_future_passes_over_nothing():
    world = World(history_since_slack=0)
    world.broker.asking = True
    world.broker.slow = {"history"}
    client = world.connect()
    client.subscribe(A, history={"since": world.now + 60})
    world.publish("a")
    world.advance(5)
    world.broker.slow = set()
    world.broker.answer_all()
    assert client.heard() == ["welcome", "confirm_subscription", 1, CONFIRM]
