"""Resumed clients that are refused: what the refusal proves, and where they go on."""

from __future__ import annotations

from anycable_tx.cable import live
from anycable_tx.errors import BrokerUnavailable
from tests.cable.support import A, Client, World, room

DOWN = BrokerUnavailable("down")


def went_live_unasked(client: Client) -> Client:
    """*client* comes back after it lost message 1, and is sent message 2 before it has asked."""
    client.world.publish("a")
    client.take()
    client.cut()
    again = client.again()
    client.world.advance(2.2)
    client.world.publish("a")
    assert again.heard() == ["welcome", 2]
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
    assert back.heard() == ["welcome", "reject_history", 3]


def test_a_position_in_the_future_does_not_hide_what_comes_after_a_refusal():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    again.ask(A, 1000)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 1]


def test_a_client_that_was_told_unasked_proves_with_its_position_that_it_read_so():
    world = World(history_limit=2)
    client = went_live_unasked(world.subscribed(A))
    client.cut()
    world.publish("a", count=5)
    again = client.again()
    world.advance(2.2)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 8]
    again.cut()
    world.publish("a")
    back = again.again()
    back.catch_up(A)
    assert back.heard() == ["welcome", 9, "confirm_history"]


def test_a_client_that_did_not_read_that_it_was_told_unasked_is_refused(monkeypatch):
    """3 and 4 were lost on the way; what follows them proves nothing, for the refusal came behind it."""
    monkeypatch.setattr(live, "REPLAY_PART", 1)
    world = World(history_limit=1000)
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.take()
    known = dict(client.positions)
    world.publish("a", count=2)
    client.take()
    client.cut()
    world.publish("a", count=2)
    again = client.again()
    world.broker.slow = {"history"}
    world.advance(2.2)
    world.publish("a", count=101)
    world.broker.slow, world.broker.failing = set(), {"history": DOWN}
    world.broker.answer_all()
    world.advance(4)
    assert again.heard() == ["welcome", 5, 6, "reject_history"]
    again.positions = {"a": {**known["a"], "offset": 6}}
    world.broker.failing = {}
    again.cut()
    back = again.again()
    back.catch_up(A)
    assert back.heard() == ["welcome", "reject_history"]


def test_a_late_question_to_a_node_that_lags_is_answered_from_the_clients_position():
    """The node that lags resumes from an old record, for it does not hear from the one that has a newer."""
    world = World(nodes=2)
    world.subscribed(A)
    client = world.subscribed(A)
    client.cut()
    world.buses[0].holding = True
    world.publish("a")
    middle = client.again(node=1)
    middle.catch_up(A)
    assert middle.heard() == ["welcome", 1, "confirm_history"]
    again = middle.again()
    world.advance(2.2)
    world.publish("a")
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]


def test_a_refused_client_is_not_sent_again_what_it_was_sent_since_its_record_was_kept():
    world = World(nodes=2, history_limit=2)
    world.subscribed(A)
    client = world.subscribed(A)
    client.cut()
    world.buses[0].holding = True
    world.publish("a")
    middle = client.again(node=1)
    middle.catch_up(A)
    assert middle.heard() == ["welcome", 1, "confirm_history"]
    again = middle.again()
    world.publish("a", count=5)
    again.catch_up(A)
    world.buses[0].release()
    world.publish("a")
    heard = again.heard()
    assert (heard[:2], heard[-1]) == (["welcome", "reject_history"], 7)
    assert 1 not in heard


def test_a_client_that_had_nothing_to_lose_before_it_went_live_unasked_is_answered():
    world = World()
    world.publish("a", count=3)
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    world.advance(2.2)
    world.publish("a")
    assert again.heard() == ["welcome", 4]
    again.cut()
    world.publish("a")
    back = again.again()
    back.catch_up(A)
    assert back.heard() == ["welcome", 5, "confirm_history"]


def test_a_client_that_lost_the_answer_to_its_subscribe_has_not_got_it(monkeypatch):
    """2 was on its way to a client that reads slowly; what comes behind it proves nothing."""
    monkeypatch.setattr(live, "REPLAY_PART", 1)
    world = World("backend")
    world.publish("a")
    world.publish("b", count=2)
    client = world.connect(stalled=True)
    streams = {stream: {"epoch": world.epoch, "offset": offset} for stream, offset in (("a", 0), ("b", 1))}
    client.subscribe(room("a", "b"), history={"streams": streams})
    client.heard()
    client.cut()
    again = client.again()
    again.positions = {}
    world.advance(2.2)
    world.publish("b")
    again.take()
    again.cut()
    back = again.again()
    back.catch_up(room("a", "b"))
    assert back.heard() == ["welcome", "reject_history"]


def test_what_went_live_unasked_is_on_record_for_the_next_node():
    """Message 1 was lost on the way, and the node that takes over cannot ask the one that sent what came next."""
    world = World(nodes=2)
    world.subscribed(A)
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    client.cut()
    middle = client.again(node=1)
    world.advance(2.2)
    world.publish("a")
    assert middle.heard() == ["welcome", 2]
    back = middle.again()
    back.catch_up(A)
    world.publish("a")
    assert back.heard() == ["welcome", "reject_history", 3]


def test_a_late_answer_ends_the_doubt_on_record_too():
    world = World(nodes=2)
    world.subscribed(A)
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    client.cut()
    middle = client.again(node=1)
    world.advance(2.2)
    middle.catch_up(A)
    world.publish("a")
    assert middle.heard() == ["welcome", "confirm_history", 2]
    world.advance(0.2)
    back = middle.again()
    world.publish("a")
    back.catch_up(A)
    assert back.heard() == ["welcome", 3, "confirm_history"]


def test_a_late_question_from_before_what_the_node_lost_is_refused():
    """The bus lost 1 to 3, and the store has only 3 and 4 still."""
    world = World(nodes=1, bus=True, history_limit=2)
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    world.advance(2.2)
    world.bus.holding = True
    world.publish("a", count=3)
    world.bus.lose()
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history"]
    again.ask(A, 0)
    world.publish("a")
    assert again.heard() == ["reject_history", 5]


def test_a_position_that_was_made_up_is_not_believed_when_it_comes_to_exist():
    world = World(bus=True)
    client = world.subscribed(A)
    world.bus.holding = True
    world.broker.slow, world.broker.asking = {"history"}, False
    client.ask(A, 1)
    world.publish("a")
    world.broker.slow = set()
    world.broker.answer_all()
    world.bus.release()
    assert client.heard() == ["reject_history", 1]


def test_a_record_that_is_out_of_date_proves_nothing_for_the_resumes_that_follow():
    world = World(nodes=2)
    world.subscribed(A)
    client = world.subscribed(A, node=1)
    world.advance(0.2)
    world.publish("a")
    assert client.heard() == [1]
    middle = client.again()
    middle.take()
    again = middle.again()
    again.positions = client.positions
    again.catch_up(A)
    assert again.heard() == ["welcome", "confirm_history"]


def test_a_second_refusal_does_not_make_a_client_prove_more():
    world = World(history_limit=2)
    client = world.subscribed(A)
    world.publish("a")
    client.take()
    client.cut()
    world.publish("a", count=4)
    again = client.again()
    world.advance(2.2)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 6]
    again.ask(A, 1)
    assert again.heard() == ["reject_history"]
    again.cut()
    back = again.again()
    back.catch_up(A)
    assert back.heard() == ["welcome", "confirm_history"]
