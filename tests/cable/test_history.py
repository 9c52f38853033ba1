"""History: answered whole or refused, and nothing else (P4)."""

from __future__ import annotations

import pytest

from tests.cable.support import A, B, Client, World, pubsub, room

CONFIRM, REJECT = "confirm_history", "reject_history"


def published(count: int, **settings: int) -> tuple[World, Client]:
    """A subscriber of ``a`` who came after *count* messages."""
    world = World(**settings)
    world.publish("a", count=count) if count else None
    return world, world.subscribed(A)


# -- by position


@pytest.mark.statement("CP-60", "BR-43")
def test_everything_after_the_position_and_then_the_confirmation():
    _, client = published(5)
    client.ask(A, 2)
    assert client.heard() == [3, 4, 5, CONFIRM]


@pytest.mark.statement("CP-60", "CP-47")
def test_a_replayed_message_looks_like_a_live_one():
    world, client = published(2)
    client.ask(A, 1)
    assert client.take()[0] == {
        "identifier": A,
        "message": 1,
        "stream_id": "a",
        "epoch": world.epoch,
        "offset": 2,
    }


@pytest.mark.statement("CP-61", "BR-43")
def test_the_newest_position_is_confirmed_alone():
    _, client = published(5)
    client.ask(A, 5)
    assert client.heard() == [CONFIRM]


@pytest.mark.statement("CP-62", "BR-43")
@pytest.mark.parametrize("epoch", ["other", ""])
def test_a_position_of_another_epoch_is_refused(epoch):
    world, client = published(5)
    client.ask(A, streams={"a": {"epoch": epoch, "offset": 5}})
    assert client.heard() == [REJECT]
    assert world.metrics.value("history_rejects_total", "unknown_epoch") == 1


@pytest.mark.statement("CP-63", "BR-43")
@pytest.mark.parametrize("offset", [6, 2**53, 2**63, 2**70])
def test_a_position_beyond_the_newest_is_refused(offset):
    world, client = published(5)
    client.say(
        b'{"command":"history","identifier":%b,"history":{"streams":{"a":{"epoch":"%b","offset":%d}}}}'
        % (b'"' + A.replace('"', '\\"').encode() + b'"', world.epoch.encode(), offset)
    )
    assert client.heard() == [REJECT]


@pytest.mark.statement("CP-41")
@pytest.mark.parametrize("offset", [-1, "5", 1.5, True])
def test_a_position_that_is_none_says_nothing(offset):
    world, client = published(5)
    client.ask(A, streams={"a": {"epoch": world.epoch, "offset": offset}})
    assert (client.take(), len(client.bad)) == ([], 1)


@pytest.mark.statement("CP-64", "BR-46", "P9")
def test_a_true_gap_is_refused():
    world, client = published(6, history_limit=4)
    client.ask(A, 1)
    assert client.heard() == [REJECT]
    assert world.metrics.value("history_rejects_total", "trimmed") == 1


@pytest.mark.statement("CP-65", "BR-46")
def test_the_position_before_the_oldest_is_served_in_full():
    _, client = published(6, history_limit=4)
    client.ask(A, 2)
    assert client.heard() == [3, 4, 5, 6, CONFIRM]


@pytest.mark.statement("CP-66", "BR-47")
def test_after_everything_expired_the_newest_position_is_confirmed():
    world, client = published(3, history_ttl=10)
    world.advance(30)
    client.ask(A, 3)
    client.ask(A, 2)
    assert client.heard() == [CONFIRM, REJECT]


@pytest.mark.statement("CP-67")
def test_offset_0_replays_a_stream_from_its_beginning():
    _, client = published(3)
    client.ask(A, 0)
    assert client.heard() == [1, 2, 3, CONFIRM]


@pytest.mark.statement("CP-67")
def test_offset_0_of_an_unpublished_stream_is_confirmed():
    _, client = published(0)
    client.ask(A, 0)
    assert client.heard() == [CONFIRM]


@pytest.mark.statement("CP-67", "CP-64")
def test_offset_0_of_a_trimmed_stream_is_refused():
    _, client = published(5, history_limit=4)
    client.ask(A, 0)
    assert client.heard() == [REJECT]


@pytest.mark.statement("CP-68")
def test_one_refused_stream_refuses_all():
    world = World("backend")
    world.publish("a", count=3)
    world.publish("b", count=3)
    both = room("a", "b")
    client = world.subscribed(both)
    good, bad = {"epoch": world.epoch, "offset": 1}, {"epoch": "other", "offset": 1}
    client.ask(both, streams={"a": good, "b": bad})
    client.ask(both, streams={"a": bad, "b": good})
    assert client.heard() == [REJECT, REJECT]
    client.ask(both, streams={"a": good, "b": good})
    assert client.heard() == [2, 3, 2, 3, CONFIRM]


@pytest.mark.statement("CP-69")
def test_positions_of_other_streams_are_ignored():
    world, client = published(3)
    client.ask(A, streams={"a": {"epoch": world.epoch, "offset": 2}, "b": {"epoch": "other", "offset": 9}})
    assert client.heard() == [3, CONFIRM]


# -- by time


@pytest.mark.statement("CP-70", "BR-44")
def test_since_is_in_whole_seconds_and_inclusive():
    world = World()
    for _ in range(3):
        world.publish("a")
        world.advance(1)
    client = world.subscribed(A)
    client.ask(A, since=world.now - 2)
    assert client.heard() == [2, 3, CONFIRM]


@pytest.mark.statement("CP-70")
def test_a_stream_with_a_position_is_not_served_by_since():
    _, client = published(3)
    client.ask(A, 2, since=1)
    assert client.heard() == [3, CONFIRM]


@pytest.mark.statement("CP-70")
def test_a_stream_with_neither_is_skipped():
    world = World("backend")
    world.publish("a", count=2)
    world.publish("b", count=2)
    both = room("a", "b")
    client = world.subscribed(both)
    client.ask(both, 1)
    assert client.heard() == [2, CONFIRM]


@pytest.mark.statement("CP-70", "CP-42")
def test_since_serves_the_streams_without_a_position():
    world = World("backend")
    world.publish("a", count=2)
    world.publish("b", count=2)
    both = room("a", "b")
    client = world.subscribed(both)
    client.ask(both, 1, since=world.now)
    assert client.heard() == [2, 1, 2, CONFIRM]


@pytest.mark.statement("CP-71", "BR-44")
def test_since_in_the_future_or_on_an_unknown_stream_is_confirmed():
    world, client = published(0)
    client.ask(A, since=1)
    client.ask(A, since=world.now + 3600)
    assert client.heard() == [CONFIRM, CONFIRM]
    world.publish("a")
    world.advance(2)
    client.heard()
    client.ask(A, since=world.now + 3600)
    assert client.heard() == [CONFIRM]


@pytest.mark.statement("CP-71")
def test_a_negative_since_is_confirmed():
    _, client = published(2)
    client.ask(A, since=-5)
    assert client.heard() == [CONFIRM]


@pytest.mark.statement("CP-72")
def test_since_before_something_discarded_is_refused():
    world, client = published(5, history_limit=4)
    client.ask(A, since=world.now)
    assert client.heard() == [REJECT]
    world.advance(2)
    client.ask(A, since=world.now)
    assert client.heard() == [CONFIRM]


@pytest.mark.statement("CP-42")
@pytest.mark.parametrize("since", [False, None, 0])
def test_a_since_of_false_is_served_by_positions(since):
    _, client = published(3)
    client.ask(A, 2, since=since)
    assert client.heard() == [3, CONFIRM]


@pytest.mark.statement("CP-75")
@pytest.mark.parametrize("history", [{}, {"since": 0}, {"streams": None}, {"since": False}, None, False])
def test_a_question_for_nothing_says_nothing(history):
    _, client = published(3)
    client.say(command="history", identifier=A, history=history)
    assert client.take() == []


def test_a_history_command_without_a_question_says_nothing():
    _, client = published(3)
    client.say(command="history", identifier=A)
    assert client.take() == []


# -- with the subscription


@pytest.mark.statement("CP-73")
def test_a_subscribe_with_history_is_confirmed_first():
    world = World()
    world.publish("a", count=3)
    client = world.connect()
    client.subscribe(A, history={"streams": {"a": {"epoch": world.epoch, "offset": 1}}})
    world.publish("a")
    assert client.heard() == ["welcome", "confirm_subscription", 2, 3, CONFIRM, 4]


@pytest.mark.statement("CP-73")
def test_a_rejected_subscribe_gets_no_history():
    client = World().connect()
    client.subscribe('{"channel":"$pubsub"}', history={"since": 1})
    assert client.heard() == ["welcome", "reject_subscription"]


@pytest.mark.statement("CP-73", "CP-62")
def test_a_subscribe_whose_history_is_refused_is_live():
    world = World()
    world.publish("a")
    client = world.connect()
    client.subscribe(A, history={"streams": {"a": {"epoch": "other", "offset": 1}}})
    world.publish("a")
    assert client.heard() == ["welcome", "confirm_subscription", REJECT, 2]


@pytest.mark.statement("CP-74")
def test_a_subscribe_with_no_positions_gets_both_confirmations():
    world = World()
    world.publish("a")
    client = world.connect()
    client.subscribe(A, history={"streams": {}})
    assert client.heard() == ["welcome", "confirm_subscription", CONFIRM]


@pytest.mark.statement("CP-75")
@pytest.mark.parametrize("history", [{}, {"since": 0}, None])
def test_a_subscribe_with_a_question_for_nothing_gets_one_confirmation(history):
    client = World().connect()
    client.subscribe(A, history=history)
    assert client.heard() == ["welcome", "confirm_subscription"]


# -- what is kept


@pytest.mark.statement("CP-76", "BR-55")
def test_without_a_store_history_is_refused_where_there_is_a_stream():
    world = World("backend", store=False)
    client = world.subscribed(room("a"), room())
    client.ask(room("a"), since=world.now)
    client.ask(room(), since=world.now)
    assert [(frame["type"], frame["identifier"]) for frame in client.take()] == [
        (REJECT, room("a")),
        (CONFIRM, room()),
    ]


@pytest.mark.statement("CP-78", "BR-9")
def test_transient_messages_are_not_replayed_and_take_no_offset():
    world, client = published(1)
    world.publish("a", "now", transient=True)
    world.publish("a")
    assert client.heard() == ["now", 2]
    client.ask(A, 0)
    assert client.heard() == [1, 2, CONFIRM]


@pytest.mark.statement("CP-79")
def test_no_position_is_given_twice_however_long_the_stream_was_idle():
    world, client = published(3, history_ttl=2)
    epoch = world.epoch
    world.advance(60)
    world.publish("a")
    [frame] = client.take()
    assert (frame["epoch"], frame["offset"]) == (epoch, 4)


@pytest.mark.statement("CP-80", "BR-48")
def test_a_limit_of_0_is_live_only():
    world, client = published(0, history_limit=0)
    world.publish("a", "x")
    assert client.take() == [{"identifier": A, "message": "x"}]
    client.ask(A, 0)
    client.ask(A, 1)
    assert client.heard() == [CONFIRM, REJECT]


@pytest.mark.statement("CP-81", "BR-45")
def test_no_more_than_the_limit_is_replayed():
    _, client = published(10, history_limit=4)
    client.ask(A, 6)
    assert client.heard() == [7, 8, 9, 10, CONFIRM]


@pytest.mark.statement("CP-81", "BR-45")
def test_nothing_too_old_is_replayed():
    world = World(history_ttl=10)
    world.publish("a")
    world.advance(8)
    world.publish("a")
    client = world.subscribed(A)
    world.advance(3.5)
    client.ask(A, 1)
    client.ask(A, 0)
    assert client.heard() == [2, CONFIRM, REJECT]


@pytest.mark.statement("BR-70")
def test_rules_give_streams_limits_of_their_own():
    rules = (
        {"match": "typing:*", "class": "typing", "history_limit": 0},
        {"match": "chat/*", "class": "chat", "history_limit": 3},
    )
    world = World(broker_rules=rules, history_limit=1)
    for stream in ("typing:1", "chat/1", "other"):
        client = world.subscribed(pubsub(stream))
        world.publish(stream, count=3)
        client.take()
        client.ask(pubsub(stream), 0, stream)
        expected = {"typing:1": [CONFIRM], "chat/1": [1, 2, 3, CONFIRM], "other": [REJECT]}[stream]
        assert client.heard() == expected


# -- what is excluded or typed


@pytest.mark.statement("CP-53", "BR-7", "BR-50")
def test_a_replay_leaves_out_what_its_session_must_not_get():
    world = World()
    author, other = world.subscribed(A), world.subscribed(A)
    world.publish("a", exclude_socket=author.sid)
    world.publish("a")
    assert (author.heard(), other.heard()) == ([2], [1, 2])
    author.ask(A, 0)
    other.ask(A, 0)
    assert (author.heard(), other.heard()) == ([2, CONFIRM], [1, 2, CONFIRM])


@pytest.mark.statement("CP-54", "BR-8", "BR-50")
def test_a_replay_keeps_the_type():
    world, client = published(0)
    world.publish("a", broadcast_type="note")
    [live] = client.take()
    client.ask(A, 0)
    assert client.take()[0] == live
    assert live["type"] == "note"


# -- live delivery around it


@pytest.mark.statement("CP-60")
def test_a_question_on_a_live_subscription_is_answered_as_asked():
    world, client = published(0)
    world.publish("a", count=3)
    client.ask(A, 1)
    world.publish("a")
    assert client.heard() == [1, 2, 3, 2, 3, CONFIRM, 4]


@pytest.mark.statement("CP-62")
def test_a_refused_question_on_a_live_subscription_changes_nothing():
    world, client = published(0)
    world.publish("a", count=2)
    client.ask(A, streams={"a": {"epoch": "other", "offset": 2}})
    world.publish("a", count=2)
    assert client.heard() == [1, 2, REJECT, 3, 4]


@pytest.mark.statement("CP-69")
def test_each_identifier_has_its_own_answer():
    world = World()
    client = world.subscribed(A, B)
    world.publish("a", count=2)
    world.publish("b", count=2)
    client.take()
    client.ask(B, 1, "b")
    assert [frame["identifier"] for frame in client.take()] == [B, B]


def test_a_long_replay_waits_for_a_slow_reader():
    world = World()
    world.publish("a", "x" * 40_000, count=6)
    client = world.subscribed(A, stalled=True)
    client.ask(A, 0)
    assert client.heard() == [1, 2]
    world.publish("a")
    client.drain()
    assert client.heard() == [3, 4]
    client.drain()
    client.drain()
    assert client.heard() == [5, 6, CONFIRM, 7]


def test_a_client_that_leaves_in_the_middle_of_a_replay_stops_it():
    world = World()
    world.publish("a", "x" * 40_000, count=6)
    client = world.subscribed(A, stalled=True)
    client.ask(A, 0)
    client.cut()
    client.drain()
    assert client.heard() == [1, 2]
    assert client.stalls == 1
