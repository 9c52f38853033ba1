"""Subscribing and unsubscribing: what is confirmed, what is refused, and what stays silent."""

from __future__ import annotations

import pytest

from anycable_tx.cable.replies import Reply, Status
from anycable_tx.errors import BrokerUnavailable, ControllerError
from tests.cable.support import A, B, World, confirmed, rejected, room

ROOM = room("a")
DOWN = BrokerUnavailable("down")


@pytest.mark.statement("CP-30")
def test_a_confirmation_has_the_identifier_as_it_was_sent():
    identifier = '{ "stream_name":"a" , "channel":"\\u0024pubsub","é":1}'
    client = World().connect()
    client.subscribe(identifier)
    assert client.take()[1:] == [{"type": "confirm_subscription", "identifier": identifier}]


@pytest.mark.statement("CP-31")
def test_a_refused_subscription_is_rejected_once():
    client = World().connect()
    client.subscribe('{"channel":"unknown"}')
    assert client.take()[1:] == [{"type": "reject_subscription", "identifier": '{"channel":"unknown"}'}]
    assert client.session.subscriptions == {}


@pytest.mark.statement("CP-31", "RA-3")
def test_a_refused_subscription_joins_no_stream_and_keeps_no_state():
    world = World("backend")
    world.backend.will("subscribe", rejected(ROOM, streams=["a"], istate={"$p": "a", "k": "v"}))
    client = world.subscribed(ROOM)
    world.publish("a")
    client.join(ROOM, "7")
    client.present(ROOM)
    assert client.take() == []
    assert world.node.hub.streams == {}
    world.backend.will("subscribe", confirmed(ROOM))
    client.subscribe(ROOM)
    client.perform(ROOM, "x")
    assert world.backend.called("perform")[0][0].istate == {}


@pytest.mark.statement("CP-31")
def test_a_refused_identifier_may_be_tried_again():
    world = World("backend")
    world.backend.will("subscribe", rejected(ROOM))
    client = world.subscribed(ROOM)
    client.subscribe(ROOM)
    world.publish("a")
    assert client.heard() == ["confirm_subscription", 1]


@pytest.mark.statement("RA-3")
def test_a_refusals_connection_state_and_disconnect_are_honoured():
    world = World("backend")
    world.backend.will("subscribe", rejected(ROOM, cstate={"k": "v"}))
    world.backend.will("subscribe", rejected(ROOM, disconnect=True))
    client = world.subscribed(ROOM)
    client.subscribe(ROOM)
    assert world.backend.called("subscribe")[1][0].cstate == {"k": "v"}
    assert (client.heard(), client.closed) == (["reject_subscription"], (1000, "Command Failed"))


@pytest.mark.statement("CP-32")
def test_a_confirmed_identifier_is_not_confirmed_again():
    world = World("backend")
    client = world.subscribed(ROOM)
    client.subscribe(ROOM)
    assert client.take() == []
    assert len(world.backend.called("subscribe")) == 1


@pytest.mark.statement("CP-33")
def test_subscribes_repeated_while_the_first_is_pending_end_in_one_confirmation():
    world = World("backend")
    answer = world.backend.slowly("subscribe")
    client = world.connect()
    for _ in range(4):
        client.subscribe(ROOM)
    assert client.heard() == ["welcome"]
    answer.callback(confirmed(ROOM))
    assert client.heard() == ["confirm_subscription"]
    assert len(world.backend.called("subscribe")) == 1


@pytest.mark.statement("CP-34")
def test_identifiers_that_differ_in_the_order_of_keys_are_two():
    one, other = '{"channel":"$pubsub","stream_name":"a"}', '{"stream_name":"a","channel":"$pubsub"}'
    world = World()
    client = world.subscribed(one, other)
    world.publish("a")
    assert sorted(frame["identifier"] for frame in client.take()) == sorted([one, other])


@pytest.mark.statement("CP-35")
def test_after_unsubscribing_nothing_comes():
    world = World()
    client = world.subscribed(A)
    client.unsubscribe(A)
    world.publish("a")
    assert client.take() == []


@pytest.mark.statement("CP-35")
def test_what_has_not_left_yet_stops_too():
    world = World()
    client, other = world.subscribed(A), world.subscribed(A)
    world.publish("a")
    client.unsubscribe(A)
    assert (client.take(), other.heard()) == ([], [1])


@pytest.mark.statement("CP-35")
def test_subscribing_again_works():
    world = World()
    client = world.subscribed(A)
    client.unsubscribe(A)
    world.publish("a")
    client.subscribe(A)
    world.publish("a")
    assert client.heard() == ["confirm_subscription", 2]


@pytest.mark.statement("CP-35")
def test_unsubscribing_one_identifier_keeps_the_other():
    world = World("backend")
    client = world.subscribed(ROOM, room("a", n=2))
    client.unsubscribe(ROOM)
    world.publish("a")
    assert [frame["identifier"] for frame in client.take()] == [room("a", n=2)]


@pytest.mark.statement("CP-36")
@pytest.mark.parametrize(
    "command",
    [
        {"command": "unsubscribe"},
        {"command": "message", "data": "{}"},
        {"command": "history", "history": {"since": 1}},
        {"command": "join", "presence": {"id": "7"}},
        {"command": "leave"},
        {"command": "presence", "data": {}},
        {"command": "whisper", "data": 1},
    ],
    ids=lambda command: command["command"],
)
def test_commands_for_an_unknown_identifier_say_nothing(command):
    world = World("backend")
    client = world.subscribed()
    client.say({**command, "identifier": "unknown"})
    assert client.take() == []
    assert client.bad == []
    assert [call[0] for call in world.backend.calls] == ["authenticate"]
    client.subscribe(ROOM)
    assert client.heard() == ["confirm_subscription"]


@pytest.mark.statement("CP-39")
def test_what_a_controller_transmits_keeps_its_place_around_the_confirmation():
    world = World("backend")
    reply = confirmed(ROOM, b'{"identifier":"x","message":"after"}')
    reply.transmissions.insert(0, b'{"identifier":"x","message":"before"}')
    world.backend.will("subscribe", reply)
    client = world.subscribed()
    client.subscribe(ROOM)
    assert client.heard() == ["before", "confirm_subscription", "after"]


@pytest.mark.statement("CP-45")
def test_an_unsubscribe_the_controller_fails_counts_all_the_same():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("unsubscribe", ControllerError("down"))
    client.unsubscribe(ROOM)
    world.publish("a")
    assert client.take() == []
    client.subscribe(ROOM)
    world.publish("a")
    assert client.heard() == ["confirm_subscription", 2]


@pytest.mark.statement("CP-45", "CP-35")
def test_nothing_comes_while_the_unsubscribe_is_pending():
    world = World("backend")
    client = world.subscribed(ROOM)
    answer = world.backend.slowly("unsubscribe")
    client.unsubscribe(ROOM)
    client.subscribe(ROOM)
    world.publish("a")
    assert client.take() == []
    answer.callback(Reply(Status.SUCCESS))
    world.publish("a")
    assert client.heard() == ["confirm_subscription", 2]


@pytest.mark.statement("CP-46", "RA-11")
def test_a_controller_that_disconnects_has_its_frames_sent_first():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, [b'{"type":"x"}'], streams=["b"], disconnect=True))
    client.perform(ROOM, "x")
    world.publish("a")
    world.publish("b")
    assert (client.heard(), client.closed) == (["x"], (1000, "Command Failed"))


@pytest.mark.statement("CP-46", "RA-11")
def test_a_subscribe_and_an_unsubscribe_may_disconnect_too():
    world = World("backend")
    world.backend.will("subscribe", confirmed(ROOM), confirmed(ROOM, disconnect=True))
    world.backend.will("unsubscribe", Reply(Status.SUCCESS, disconnect=True))
    first, second = world.subscribed(ROOM), world.subscribed()
    first.unsubscribe(ROOM)
    second.subscribe(ROOM, history={"since": 1})
    world.publish("a")
    assert (first.heard(), first.closed) == ([], (1000, "Command Failed"))
    assert (second.heard(), second.closed) == (["confirm_subscription"], (1000, "Command Failed"))


@pytest.mark.statement("RA-13")
@pytest.mark.parametrize("answer", [ControllerError("down"), Reply(Status.ERROR), RuntimeError("bug")])
def test_a_failed_subscribe_stays_silent_and_may_be_tried_again(answer):
    world = World("backend")
    world.backend.will("subscribe", answer)
    client = world.subscribed(ROOM)
    world.publish("a")
    assert client.take() == []
    client.subscribe(ROOM)
    assert client.heard() == ["confirm_subscription"]
    assert world.metrics.value("failed_client_msg_total") == 1


@pytest.mark.statement("RA-13")
@pytest.mark.parametrize("method", ["tail"])
def test_a_stream_that_cannot_be_opened_stays_silent_and_may_be_tried_again(method):
    world = World("backend")
    identifier = room("a", "b", "c")
    client = world.subscribed(room("a"))
    world.broker.failing = {method: DOWN}
    client.subscribe(identifier)
    world.publish("a")
    assert client.heard() == [1]
    world.broker.failing.clear()
    client.subscribe(identifier)
    for stream in "abc":
        world.publish(stream)
    assert client.heard(identifier) == ["confirm_subscription", 2, 1, 1]
    assert world.metrics.value("failed_client_msg_total") == 1


def test_a_subscription_whose_record_cannot_be_saved_is_live():
    world = World()
    client = world.connect()
    world.broker.failing = {"save_session": DOWN}
    client.subscribe(A)
    world.publish("a")
    assert client.heard() == ["welcome", "confirm_subscription", 1]


@pytest.mark.statement("CP-57")
def test_nothing_precedes_the_confirmation_while_the_streams_are_opened():
    world = World("backend", bus=True)
    world.broker.slow = {"tail"}
    client = world.connect()
    client.subscribe(room("a", "b"))
    for _ in range(2):
        world.publish("a")
        world.publish("b")
        assert [frame["type"] for frame in client.take()] in (["welcome"], [])
        world.broker.answer()
    world.publish("a")
    world.publish("b")
    heard = client.take()
    assert heard[0]["type"] == "confirm_subscription"
    assert [f["offset"] for f in heard[1:] if f["stream_id"] == "a"][-1] == 3
    assert [f["offset"] for f in heard[1:] if f["stream_id"] == "b"][-1] == 3


@pytest.mark.statement("CP-57", "CP-77")
@pytest.mark.parametrize("method", ["save_session", "tail", "history"])
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
def test_a_subscriber_misses_nothing_after_its_confirmation(method, asking):
    world = World(bus=True)
    world.broker.asking = asking
    client = world.connect()
    world.broker.slow = {method}
    client.subscribe(A)
    heard = client.heard()
    for _ in range(4):
        world.publish("a")
        heard += client.heard()
        if world.broker.waiting:
            world.broker.answer()
    world.broker.answer_all()
    world.advance(1)
    world.publish("a")
    heard += client.heard()
    assert heard[:2] == ["welcome", "confirm_subscription"]
    offsets = heard[2:]
    assert offsets == list(range(offsets[0], 6))


@pytest.mark.statement("CP-90")
def test_a_subscription_that_was_not_confirmed_does_not_come_back():
    """The client subscribes again by itself; it would take a restored identifier for confirmed."""
    world = World("backend")
    client = world.subscribed(ROOM)
    world.broker.slow = {"tail"}
    client.subscribe(room("x", "y"))
    world.broker.answer()
    client.cut()
    world.broker.answer_all()
    again = client.again()
    assert again.take()[0]["restored_ids"] == [ROOM]
    world.advance(6)
    assert list(world.node.hub.streams) == ["a"]


def test_an_answer_for_a_client_that_left_is_dropped():
    world = World("backend")
    answer = world.backend.slowly("subscribe")
    client = world.connect()
    client.subscribe(ROOM)
    client.cut()
    answer.callback(confirmed(ROOM))
    assert client.heard() == ["welcome"]
    assert world.node.hub.streams == {}


def test_an_answer_for_a_client_that_was_taken_over_is_dropped():
    world = World("backend")
    client = world.subscribed(ROOM)
    answer = world.backend.slowly("perform")
    client.perform(ROOM, "x")
    again = client.again()
    answer.callback(Reply(Status.SUCCESS, [b'{"type":"x"}'], ["b"]))
    again.catch_up(ROOM)
    world.publish("b")
    assert client.take() == []
    assert again.heard() == ["welcome", "confirm_history"]


@pytest.mark.statement("RA-17")
def test_unsubscribing_drops_the_channels_state():
    world = World("backend")
    world.backend.will("subscribe", confirmed(ROOM, istate={"k": "v"}), confirmed(ROOM))
    world.backend.will("unsubscribe", Reply(Status.SUCCESS, istate={"left": "over"}))
    client = world.subscribed(ROOM)
    client.unsubscribe(ROOM)
    assert world.backend.called("unsubscribe")[0][0].istate == {"k": "v"}
    client.subscribe(ROOM)
    client.perform(ROOM, "x")
    assert world.backend.called("perform")[0][0].istate == {}


@pytest.mark.statement("RA-17")
def test_the_last_unsubscribe_releases_the_bus():
    world = World(bus=True)
    one, other = world.subscribed(A, B), world.subscribed(A)
    one.unsubscribe(A)
    world.advance(6)
    assert world.bus.streams == {"a", "b"}
    other.cut()
    world.advance(6)
    assert world.bus.streams == {"b"}


@pytest.mark.statement("RA-18")
def test_the_report_of_the_end_has_the_state_of_subscriptions_only():
    world = World("backend")
    left, refused, kept = room("a"), room("b"), room("c")
    world.backend.will(
        "subscribe",
        confirmed(left, istate={"k": "1"}),
        rejected(refused, istate={"k": "2"}),
        confirmed(kept, istate={"k": "3"}, cstate={"c": "4"}),
    )
    client = world.subscribed(left, refused, kept, query="me")
    client.unsubscribe(left)
    client.cut()
    [(view, subscriptions)] = world.backend.called("disconnect")
    assert subscriptions == {kept: {"k": "3"}}
    assert (view.identifiers, view.cstate) == ('{"user":"me"}', {"c": "4"})


@pytest.mark.statement("RA-20")
def test_stop_all_beside_a_list_stops_all():
    world = World("backend")
    identifier = room("a", "b", "c")
    client = world.subscribed(identifier)
    world.backend.will("perform", Reply(Status.SUCCESS, stop_streams=True, stopped_streams=["a"], streams=["d"]))
    client.perform(identifier, "x")
    for stream in "abcd":
        world.publish(stream)
    assert [frame["stream_id"] for frame in client.take()] == ["d"]


@pytest.mark.statement("RA-20")
def test_repeated_streams_are_joined_and_left_once():
    world = World("backend")
    identifier = room("a")
    client = world.subscribed(identifier)
    world.backend.will(
        "perform",
        Reply(Status.SUCCESS, streams=["a", "b", "b"]),
        Reply(Status.SUCCESS, stopped_streams=["b", "b"]),
    )
    client.perform(identifier, "join")
    world.publish("a")
    world.publish("b")
    assert sorted(frame["stream_id"] for frame in client.take()) == ["a", "b"]
    client.perform(identifier, "leave")
    world.publish("a")
    world.publish("b")
    assert [frame["stream_id"] for frame in client.take()] == ["a"]


def test_a_stream_stopped_and_started_in_one_answer_is_live():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, stopped_streams=["a"], streams=["a"]))
    client.perform(ROOM, "x")
    world.publish("a")
    assert client.heard() == [1]


@pytest.mark.statement("CP-47")
@pytest.mark.parametrize("extended", [False, True])
def test_both_protocols_know_subscribing(extended):
    world = World()
    client = world.subscribed(extended=extended)
    client.subscribe(A)
    client.ask(A, 0)
    world.publish("a")
    assert client.heard() == ["confirm_subscription", "confirm_history", 1]
    client.unsubscribe(A)
    world.publish("a")
    assert client.take() == []
