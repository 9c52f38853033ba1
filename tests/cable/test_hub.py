"""Broadcasts: who gets them, in which shape, in which order."""

from __future__ import annotations

import pytest

from anycable_tx.cable.replies import Reply, Status
from tests.cable.support import A, B, World, pubsub, room


@pytest.mark.statement("CP-48", "CP-47", "BR-1", "BR-42")
@pytest.mark.parametrize("extended", [False, True])
def test_a_stored_broadcast_carries_its_position(extended):
    world = World()
    client = world.subscribed(A, extended=extended)
    world.publish("a", {"x": 1})
    world.publish("a", 2)
    position = {"identifier": A, "stream_id": "a", "epoch": world.epoch}
    assert client.take() == [
        {**position, "message": {"x": 1}, "offset": 1},
        {**position, "message": 2, "offset": 2},
    ]
    assert world.epoch in world.broker.announcement


@pytest.mark.statement("CP-48")
def test_each_stream_counts_for_itself():
    world = World()
    client = world.subscribed(A, B)
    for stream in "abab":
        world.publish(stream)
    frames = client.take()
    for stream in "ab":
        assert [f["offset"] for f in frames if f["stream_id"] == stream] == [1, 2]


@pytest.mark.statement("CP-49", "BR-55")
def test_without_a_store_there_is_no_position():
    world = World(store=False)
    client = world.subscribed(A)
    world.publish("a", 1)
    assert client.take() == [{"identifier": A, "message": 1}]


@pytest.mark.statement("CP-49", "BR-9")
def test_a_transient_broadcast_has_no_position():
    world = World()
    client = world.subscribed(A)
    world.broadcast({"stream": "a", "data": "1", "meta": {"transient": True}})
    world.publish("a")
    assert client.take()[0] == {"identifier": A, "message": 1}
    assert client.frames[-1]["offset"] == 1


@pytest.mark.statement("CP-50", "CP-51", "BR-2")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"b":1,"a":[]}', {"b": 1, "a": []}),
        ('"s"', "s"),
        ("[1]", [1]),
        ("0", 0),
        ("false", False),
        ('""', ""),
        ("hello", "hello"),
        ("NaN", "NaN"),
        ("null", "null"),
        ("", ""),
    ],
)
def test_data_arrives_as_its_value_or_as_text(data, message):
    world = World()
    client = world.subscribed(A)
    world.broadcast({"stream": "a", "data": data})
    [frame] = client.take()
    assert frame["message"] == message
    assert type(frame["message"]) is type(message)


@pytest.mark.statement("CP-52", "BR-3")
def test_large_integers_keep_their_digits():
    world = World()
    client = world.subscribed(A)
    world.broadcast({"stream": "a", "data": '{"id":9007199254740993,"n":12345678901234567890123}'})
    client.take()
    assert b'"message":{"id":9007199254740993,"n":12345678901234567890123}' in client.sent[-1]


@pytest.mark.statement("CP-53", "BR-7")
def test_an_excluded_session_gets_it_on_none_of_its_identifiers():
    world = World("backend")
    one, other = room("a", n=1), room("a", n=2)
    author, reader = world.subscribed(one, other), world.subscribed(one)
    world.publish("a", "before")
    world.publish("a", exclude_socket=author.sid)
    world.publish("a", "behind")
    assert sorted(author.heard()) == [1, 1, 3, 3]
    assert reader.heard() == [1, 2, 3]


@pytest.mark.statement("CP-53")
def test_an_unknown_exclusion_excludes_nobody():
    world = World()
    client = world.subscribed(A)
    world.publish("a", exclude_socket="nobody")
    assert client.heard() == [1]


@pytest.mark.statement("CP-53")
def test_transient_messages_honour_the_exclusion_behind_a_barrier_too():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    for sid in (client.sid, again.sid, "other"):
        world.publish("a", sid, exclude_socket=sid, transient=True)
    again.catch_up(A)
    assert again.heard() == ["welcome", "confirm_history", "other"]


@pytest.mark.statement("CP-54", "BR-8")
def test_the_broadcast_type_is_the_frames_type():
    world = World()
    client = world.subscribed(A)
    world.broadcast({"stream": "a", "data": "1", "meta": {"broadcast_type": "note", "unknown": 1}})
    assert client.take()[0]["type"] == "note"


@pytest.mark.statement("CP-55")
def test_two_identifiers_on_one_stream_get_one_frame_each():
    world = World("backend")
    one, other = room("a", n=1), room("a", n=2)
    client = world.subscribed(one, other)
    world.publish("a", count=2)
    frames = client.take()
    for identifier in (one, other):
        assert [f["offset"] for f in frames if f["identifier"] == identifier] == [1, 2]


@pytest.mark.statement("CP-55")
def test_two_identifiers_catch_up_independently():
    world = World("backend")
    one, other = room("a", n=1), room("a", n=2)
    client = world.subscribed(one, other)
    world.publish("a")
    client.take()
    client.ask(one, 0)
    world.publish("a")
    assert client.heard(one) == [1, "confirm_history", 2]
    assert [f["offset"] for f in client.frames if f.get("identifier") == other and "offset" in f] == [1, 2]


@pytest.mark.statement("CP-55")
def test_one_identifier_with_two_streams_gets_both():
    world = World("backend")
    client = world.subscribed(room("a", "b"))
    world.publish("a")
    world.publish("b")
    assert sorted(frame["stream_id"] for frame in client.take()) == ["a", "b"]


@pytest.mark.statement("CP-56")
def test_interleaved_publishers_show_every_connection_growing_offsets():
    world = World("backend")
    clients = [world.subscribed(room("a", "b")) for _ in range(5)]
    for round in range(20):
        for publisher in range(16):
            world.publish("ab"[(round + publisher) % 2], [publisher, round])
        if round % 3 == 0:
            world.turn()
    for client in clients:
        frames = client.take()
        for stream in "ab":
            assert [f["offset"] for f in frames if f["stream_id"] == stream] == list(range(1, 161))


@pytest.mark.statement("CP-57")
def test_no_broadcast_precedes_the_confirmation():
    world = World("backend")
    answer = world.backend.slowly("subscribe")
    client = world.connect()
    client.subscribe(room("a"))
    world.publish("a")
    answer.callback(Reply(Status.SUCCESS, [b'{"type":"confirm_subscription"}'], ["a"]))
    world.publish("a")
    assert client.heard() == ["welcome", "confirm_subscription", 2]


@pytest.mark.statement("CP-58", "BR-4", "HE-12")
def test_a_batch_keeps_its_order():
    world = World()
    client = world.subscribed(A, B)
    world.broadcast([{"stream": "ab"[n % 3 == 0], "data": str(n)} for n in range(10)])
    frames = client.take()
    for stream in "ab":
        messages = [f["message"] for f in frames if f["stream_id"] == stream]
        assert messages == sorted(messages)
    assert len(frames) == 10
    assert world.metrics.value("broadcast_msg_total") == 10


def test_who_subscribes_between_two_messages_gets_the_second():
    """Neither has left yet when the second client comes."""
    world = World()
    first, second = world.subscribed(A), world.subscribed()
    world.publish("a")
    second.subscribe(A)
    world.publish("a")
    assert (first.heard(), second.heard()) == ([1, 2], ["confirm_subscription", 2])


def test_who_leaves_between_two_messages_gets_neither_and_disturbs_nobody():
    world = World()
    clients = [world.subscribed(A) for _ in range(5)]
    world.publish("a")
    clients[2].cut()
    world.publish("a")
    assert [client.heard() for client in clients] == [[1, 2], [1, 2], [], [1, 2], [1, 2]]


def test_many_come_and_go():
    world = World()
    clients = [world.subscribed(A) for _ in range(40)]
    for client in clients[::2]:
        client.cut()
    world.publish("a")
    joined = [world.subscribed(A) for _ in range(10)]
    world.publish("a")
    assert [client.heard() for client in clients[1::2]] == [[1, 2]] * 20
    assert [client.heard() for client in joined] == [[2]] * 10


@pytest.mark.statement("CP-136")
def test_everything_arrives_in_the_order_it_was_said():
    world = World("backend")
    here = room("a")
    client = world.subscribed(here)
    world.publish("a")
    client.say(command="ping")
    world.publish("a")
    world.backend.will("perform", Reply(Status.SUCCESS, [b'{"identifier":"x","message":"said"}']))
    client.perform(here, "x")
    world.publish("a", "now", transient=True)
    client.ask(here, 2)
    world.publish("a")
    assert client.heard() == [1, "pong", 2, "said", "now", "confirm_history", 3]


@pytest.mark.statement("CP-47")
def test_odd_stream_names_reach_their_subscribers_only():
    world = World()
    names = ["a b", "a..b", ">", "chat.*", "*", "chat/1", "x" * 3000, "\u2603", '"', "\x00", "A", "a"]
    client = world.subscribed(*map(pubsub, names))
    for name in names:
        world.publish(name, name)
    assert [(f["stream_id"], f["message"], f["identifier"]) for f in client.take()] == [
        (name, name, pubsub(name)) for name in names
    ]


def test_a_published_id_that_comes_again_is_delivered_once():
    world = World()
    client = world.subscribed(A)
    first = world.publish("a", "x", id="once")
    again = world.publish("a", "x", id="once")
    assert (again.offset, again.duplicate) == (first.offset, True)
    assert client.heard() == [1]


def test_nothing_is_left_of_streams_whose_subscribers_are_gone():
    world = World()
    clients = [world.subscribed(pubsub(f"s{n}"), A) for n in range(20)]
    for client in clients:
        client.cut()
    world.advance(6)
    assert world.node.hub.streams == {}
    assert len(world.node._lingering) == 0
