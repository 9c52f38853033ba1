"""Messages, pings, whispers and input that makes no sense: what each says, and that the session stays usable."""

from __future__ import annotations

import orjson
import pytest

from anycable_tx.cable.replies import Reply, Status
from anycable_tx.errors import ControllerError
from tests.cable.support import A, B, Client, World, confirmed, pubsub, room

ROOM = room("a")


def said(*texts: str) -> list[bytes]:
    """What a controller transmits."""
    return [orjson.dumps({"identifier": ROOM, "message": text}) for text in texts]


def is_usable(client: Client) -> bool:
    """The next command is carried out."""
    client.subscribe(pubsub("usable"))
    return client.heard() in (["confirm_subscription"], ["reject_subscription"])


# -- messages


@pytest.mark.statement("CP-37")
def test_what_a_controller_transmits_arrives_in_its_order():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, said("1", "2", "3")))
    client.perform(ROOM, '{"action":"speak"}')
    assert client.heard() == ["1", "2", "3"]
    [(view, identifier, data)] = world.backend.called("perform")
    assert (view.sid, identifier, data) == (client.sid, ROOM, '{"action":"speak"}')


@pytest.mark.statement("CP-37")
def test_what_is_no_json_is_forwarded_as_it_is():
    world = World("backend")
    client = world.subscribed(ROOM)
    sent = []
    client.got = sent.append  # type: ignore[method-assign]
    world.backend.will("perform", Reply(Status.SUCCESS, [b"{not json ", b""]))
    client.perform(ROOM, "x")
    assert sent == [b"{not json ", b""]


@pytest.mark.statement("CP-38")
@pytest.mark.parametrize("data", [None, 1, {"action": "x"}, ["x"], True])
def test_data_that_is_no_text_reaches_no_controller(data):
    world = World("backend")
    client = world.subscribed(ROOM)
    client.perform(ROOM, data)
    assert client.take() == []
    assert world.backend.called("perform") == []
    assert is_usable(client)


def test_a_controller_that_fails_sends_nothing():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", ControllerError("down"), Reply(Status.ERROR, said("x"), ["b"]))
    client.perform(ROOM, "x")
    client.perform(ROOM, "y")
    world.publish("b")
    assert client.take() == []
    assert world.metrics.value("failed_client_msg_total") == 2
    assert is_usable(client)


@pytest.mark.statement("P9")
@pytest.mark.parametrize("name", ["message", "unsubscribe", "history", "whisper", "join", "leave", "presence"])
def test_a_command_about_no_subscription_is_ignored_and_counted(name):
    world = World("backend")
    client = world.connect()
    client.take()
    client.say(command=name, identifier=ROOM, data="x", history={"since": 1}, presence={"id": "1"})
    assert client.take() == []
    assert world.metrics.value("failed_client_msg_total", "not_subscribed") == 1
    assert is_usable(client)


def test_an_answer_may_start_and_stop_streams():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, streams=["b"], stopped_streams=["a"]))
    client.perform(ROOM, "x")
    world.publish("a")
    world.publish("b")
    assert [frame["stream_id"] for frame in client.take()] == ["b"]


@pytest.mark.statement("CP-96")
def test_streams_an_answer_started_come_back():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, streams=["b"], stopped_streams=["a"]))
    client.perform(ROOM, "x")
    client.cut()
    world.publish("b")
    again = client.again()
    again.catch_up(ROOM)
    world.publish("a")
    world.publish("b")
    assert again.heard() == ["welcome", 1, "confirm_history", 2]


def test_a_message_without_an_effect_saves_nothing():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.broker.calls.clear()
    client.perform(ROOM, "x")
    assert "save_session" not in world.broker.calls


# -- order


@pytest.mark.statement("CP-44")
def test_commands_take_effect_in_order_however_slow_the_first_is():
    world = World("backend")
    client = world.subscribed(ROOM)
    answer = world.backend.slowly("perform")
    world.backend.will("perform", Reply(Status.SUCCESS, said("second")))
    client.perform(ROOM, "1")
    client.perform(ROOM, "2")
    client.unsubscribe(ROOM)
    client.subscribe(ROOM)
    assert client.take() == []
    answer.callback(Reply(Status.SUCCESS, said("first")))
    assert client.heard() == ["first", "second", "confirm_subscription"]


@pytest.mark.statement("CP-44")
def test_sessions_do_not_wait_for_each_other():
    world = World("backend")
    slow, quick = world.subscribed(ROOM), world.subscribed(ROOM)
    world.backend.slowly("perform")
    world.backend.will("perform", Reply(Status.SUCCESS, said("here")))
    slow.perform(ROOM, "x")
    quick.perform(ROOM, "y")
    assert quick.heard() == ["here"]


def test_live_messages_do_not_wait_for_a_slow_command():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.slowly("perform")
    client.perform(ROOM, "x")
    world.publish("a")
    assert client.heard() == [1]


def test_a_failing_command_does_not_stop_the_ones_behind_it():
    world = World("backend")
    world.trouble = True
    client = world.subscribed(ROOM)
    first = world.backend.slowly("perform")
    world.backend.will("perform", Reply(Status.SUCCESS, said("second")))
    client.perform(ROOM, "1")
    client.perform(ROOM, "2")
    first.callback("no reply at all")
    assert client.heard() == ["second"]
    assert world.metrics.value("internal_errors_total") == 1


def test_a_client_that_says_too_much_is_not_read_until_it_was_answered():
    world = World("backend", max_commands_pending=3)
    client = world.subscribed(ROOM)
    answers = [world.backend.slowly("perform") for _ in range(5)]
    paused = []
    for n in range(5):
        client.perform(ROOM, str(n))
        paused.append(client.paused)
    assert paused == [False, False, False, True, True]
    for answer in answers:
        answer.callback(Reply(Status.SUCCESS))
        paused.append(client.paused)
    assert paused[5:] == [True, False, False, False, False]


@pytest.mark.statement("CP-43", "CP-133")
def test_pings_are_answered_while_a_command_waits():
    world = World("backend")
    client = world.subscribed(ROOM)
    world.backend.slowly("perform")
    client.perform(ROOM, "x")
    client.say(command="ping")
    assert client.take() == [{"type": "pong"}]


# -- input that makes no sense


@pytest.mark.statement("CP-43", "CP-47")
@pytest.mark.parametrize("extended", [False, True])
def test_a_ping_is_answered_with_a_pong(extended):
    client = World().subscribed(extended=extended)
    client.say(command="ping")
    assert client.take() == [{"type": "pong"}]


def test_a_pong_is_not_answered():
    client = World().subscribed()
    client.say(command="pong")
    assert client.take() == []


@pytest.mark.statement("CP-40")
@pytest.mark.parametrize("text", [b"null", b"{}", b'{"command":"dance","identifier":"x"}', b'{"identifier":"x"}'])
def test_what_is_no_known_command_says_nothing(text):
    client = World().subscribed()
    client.say(text)
    assert client.take() == []
    assert is_usable(client)


@pytest.mark.statement("CP-41")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"[null]",
        b'"ping"',
        b"\xff\xfe",
        b'{"command":1}',
        b'{"command":"subscribe","identifier":{"channel":"x"}}',
        b'{"command":"history","identifier":"x","history":{"since":"now"}}',
        b'{"command":"join","identifier":"x","presence":7}',
    ],
)
def test_broken_input_says_nothing_and_is_refused_by_name(text):
    client = World().subscribed()
    client.say(text)
    assert client.take() == []
    assert len(client.bad) == 1
    assert client.closed is None
    assert is_usable(client)


@pytest.mark.statement("CP-41")
def test_a_broken_frame_does_not_overtake_a_waiting_command():
    world = World("backend")
    client = world.subscribed(ROOM)
    answer = world.backend.slowly("perform")
    client.perform(ROOM, "x")
    client.say(b"{")
    answer.callback(Reply(Status.SUCCESS, said("x")))
    assert client.heard() == ["x"]


# -- whispers


@pytest.mark.statement("CP-121")
@pytest.mark.parametrize("data", [1, 0, "", "text", False, [1, {"a": None}], {"x": 1}])
def test_a_whisper_reaches_everybody_but_its_sender(data):
    world = World()
    sender, other, elsewhere = world.subscribed(A), world.subscribed(A), world.subscribed(B)
    sender.whisper(A, data)
    assert (sender.take(), elsewhere.take()) == ([], [])
    assert other.take() == [{"identifier": A, "message": data}]


@pytest.mark.statement("CP-121")
def test_a_whisper_without_data_says_null():
    world = World()
    sender, other = world.subscribed(A), world.subscribed(A)
    sender.say(command="whisper", identifier=A)
    assert other.take() == [{"identifier": A, "message": "null"}]


@pytest.mark.statement("CP-121")
def test_a_whisper_does_not_reach_its_sender_through_another_identifier():
    world = World("backend")
    one, other = room("a", n=1), room("a", n=2)
    world.backend.will("subscribe", confirmed(one, istate={"$w": "a"}))
    sender = world.subscribed(one, other)
    listener = world.subscribed(other)
    sender.whisper(one, "psst")
    assert (sender.take(), listener.heard()) == ([], ["psst"])


@pytest.mark.statement("CP-121", "CP-78")
def test_a_whisper_is_not_stored():
    world = World()
    client = world.subscribed(A)
    client.whisper(A, "psst")
    client.ask(A, 0)
    assert client.heard() == ["confirm_history"]
    world.publish("a")
    assert client.heard() == [1]


@pytest.mark.statement("CP-122")
def test_a_whisper_needs_the_right():
    world = World("backend")
    client, other = world.subscribed(ROOM), world.subscribed(ROOM)
    client.whisper(ROOM, "psst")
    assert other.take() == []
    assert world.metrics.value("broadcast_msg_total") == 0


@pytest.mark.statement("CP-122")
def test_the_right_to_whisper_can_be_given_and_taken_away():
    world = World("backend")
    client, other = world.subscribed(ROOM), world.subscribed(ROOM)
    world.backend.will("perform", Reply(Status.SUCCESS, istate={"$w": "a"}), Reply(Status.SUCCESS, istate={"$w": ""}))
    client.perform(ROOM, "give")
    client.whisper(ROOM, "psst")
    assert other.heard() == ["psst"]
    client.perform(ROOM, "take")
    client.whisper(ROOM, "psst")
    assert other.heard() == []


@pytest.mark.statement("CP-121", "CP-96")
def test_the_right_to_whisper_survives_a_resume():
    world = World()
    client, other = world.subscribed(A), world.subscribed(A)
    client.cut()
    again = client.again()
    again.catch_up(A)
    again.whisper(A, "psst")
    assert (again.heard(), other.heard()) == (["welcome", "confirm_history"], ["psst"])


@pytest.mark.statement("CP-49", "CP-121")
def test_a_whisper_works_without_a_store():
    world = World(store=False)
    client, other = world.subscribed(A), world.subscribed(A)
    client.whisper(A, "psst")
    assert other.take() == [{"identifier": A, "message": "psst"}]
