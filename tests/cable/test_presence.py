"""Presence: who is announced to whom, when, and how often."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from anycable_tx.cable.replies import PresenceChange, Reply, Status
from anycable_tx.cable.signing import sign_name
from anycable_tx.errors import BrokerUnavailable
from tests.cable.support import A, Client, World, confirmed, room

JOINED = {"id": "7", "info": {"n": "x"}, "type": "join"}
LEFT = {"id": "7", "type": "leave"}


def events(client: Client) -> list[dict[str, Any]]:
    """The presence messages the client got since the last look."""
    return [frame["message"] for frame in client.take() if frame.get("type") == "presence"]


@pytest.mark.statement("CP-110", "BR-52")
def test_a_join_is_announced_to_everybody_the_joiner_included():
    world = World()
    joiner, other = world.subscribed(A), world.subscribed(A, extended=False)
    joiner.join(A, "7", {"n": "x"})
    for client in (joiner, other):
        assert client.take() == [{"type": "presence", "identifier": A, "message": JOINED}]


@pytest.mark.statement("CP-110")
def test_each_gets_it_on_its_own_identifier():
    world = World("backend")
    one, other = room("a", n=1), room("a", n=2)
    world.backend.will("subscribe", confirmed(one, istate={"$p": "a"}))
    joiner = world.subscribed(one)
    watcher = world.subscribed(other)
    joiner.join(one, "7")
    assert [frame["identifier"] for frame in watcher.take()] == [other]


@pytest.mark.statement("CP-110")
def test_numeric_ids_are_text():
    client = World().subscribed(A)
    client.join(A, 7)
    assert events(client) == [{"id": "7", "type": "join"}]


@pytest.mark.statement("CP-111", "BR-52")
def test_more_sessions_of_one_id_come_and_go_silently():
    world = World()
    watcher = world.subscribed(A)
    first, second = world.subscribed(A), world.subscribed(A)
    first.join(A, "7", {"n": "x"})
    second.join(A, "7", {"n": "x"})
    assert events(watcher) == [JOINED]
    first.leave(A)
    assert events(watcher) == []
    second.leave(A)
    assert events(watcher) == [LEFT]


def test_new_info_is_announced_again():
    world = World()
    client = world.subscribed(A)
    client.join(A, "7", 1)
    client.join(A, "7", 1)
    client.join(A, "7", 2)
    assert events(client) == [{"id": "7", "info": n, "type": "join"} for n in (1, 2)]


@pytest.mark.statement("CP-111")
def test_leaving_twice_is_announced_once():
    client = World().subscribed(A)
    client.join(A, "7")
    client.leave(A)
    client.leave(A)
    assert [event["type"] for event in events(client)] == ["join", "leave"]


@pytest.mark.statement("CP-111")
def test_a_leave_may_carry_a_presence_object():
    client = World().subscribed(A)
    client.join(A, "7")
    client.say(command="leave", identifier=A, presence={"id": "8"})
    assert [event["id"] for event in events(client)] == ["7", "7"]


@pytest.mark.statement("CP-112")
def test_unsubscribing_ends_presence_at_once():
    world = World()
    client, watcher = world.subscribed(A), world.subscribed(A)
    client.join(A, "7")
    assert [event["type"] for event in events(client)] == ["join"]
    client.unsubscribe(A)
    assert [event["type"] for event in events(watcher)] == ["join", "leave"]
    assert events(client) == []


@pytest.mark.statement("CP-112", "BR-52")
def test_disconnecting_ends_presence_after_its_time():
    world = World(presence_ttl=10)
    client, watcher = world.subscribed(A), world.subscribed(A)
    client.join(A, "7")
    events(watcher)
    client.cut()
    world.advance(9.5)
    assert events(watcher) == []
    world.advance(2.5)
    assert events(watcher) == [LEFT]
    world.advance(30)
    assert events(watcher) == []


@pytest.mark.statement("CP-113", "CP-118", "BR-52")
@pytest.mark.parametrize("joins", [True, False], ids=["joins again", "does not"])
def test_a_resume_is_not_announced_at_all(joins):
    world = World()
    client, watcher = world.subscribed(A), world.subscribed(A)
    client.join(A, "7", {"n": "x"})
    events(watcher)
    client.cut()
    world.advance(5)
    again = client.again()
    again.catch_up(A)
    if joins:
        again.join(A, "7", {"n": "x"})
    world.advance(60)
    assert events(watcher) == []
    again.leave(A)
    assert events(watcher) == [LEFT]


@pytest.mark.statement("CP-113")
def test_subscribing_again_in_time_is_not_announced_at_all():
    world = World(sessions_ttl=0)
    client, watcher = world.subscribed(A), world.subscribed(A)
    client.join(A, "7")
    events(watcher)
    client.cut()
    world.advance(5)
    again = world.connect()
    again.subscribe(A, presence={"id": "7"})
    world.advance(60)
    assert events(watcher) == []


@pytest.mark.statement("CP-114")
def test_the_members_are_told_when_asked():
    world = World()
    client, other = world.subscribed(A), world.subscribed(A)
    client.present(A)
    assert events(client) == [{"type": "info", "total": 0}]
    client.join(A, "7", {"n": "x"})
    other.join(A, "8")
    events(client)
    client.present(A)
    records = [{"info": {"n": "x"}, "id": "7"}, {"id": "8"}]
    assert events(client) == [{"type": "info", "total": 2, "records": records}]


@pytest.mark.statement("CP-115")
def test_records_can_be_declined():
    client = World().subscribed(A)
    client.join(A, "7")
    events(client)
    client.present(A, return_records=False)
    assert events(client) == [{"type": "info", "total": 1}]


@pytest.mark.statement("CP-114")
@pytest.mark.parametrize("data", [None, 1, "x", []])
def test_odd_data_beside_the_question_does_not_matter(data):
    client = World().subscribed(A)
    client.say(command="presence", identifier=A, data=data)
    assert events(client) == [{"type": "info", "total": 0}]


@pytest.mark.statement("CP-116")
def test_a_subscribe_that_joins_is_confirmed_replayed_and_joined():
    world = World()
    world.publish("a")
    client = world.connect()
    position = {"epoch": world.epoch, "offset": 0}
    client.subscribe(A, presence={"id": "7"}, history={"streams": {"a": position}})
    assert client.heard() == ["welcome", "confirm_subscription", 1, "confirm_history", "presence"]


@pytest.mark.statement("CP-116")
def test_a_rejected_subscribe_does_not_join():
    world = World()
    client = world.connect()
    client.subscribe('{"channel":"$pubsub"}', presence={"id": "7"})
    assert client.heard() == ["welcome", "reject_subscription"]
    assert "join" not in world.broker.calls


@pytest.mark.statement("CP-117", "BR-54")
def test_a_base_session_stays_present_while_connected():
    world = World(presence_ttl=10)
    watcher, client = world.subscribed(A), world.subscribed(A, extended=False)
    client.join(A, "7")
    events(watcher)
    world.advance(45)
    assert events(watcher) == []


@pytest.mark.statement("CP-119", "BR-52")
def test_a_second_id_of_one_session_is_ignored():
    world = World()
    client = world.subscribed(A)
    client.join(A, "7")
    client.join(A, "8")
    client.present(A)
    assert [event["type"] for event in events(client)] == ["join", "info"]
    assert world.metrics.value("presence_refused_total") == 1
    client.leave(A)
    assert events(client) == [LEFT]


@pytest.mark.statement("CP-120")
def test_without_a_store_there_is_no_presence():
    client = World(store=False).subscribed(A)
    client.join(A, "7")
    client.leave(A)
    client.present(A)
    assert client.take() == [
        {"type": "presence", "identifier": A, "message": {"type": "error", "total": 0}},
    ]


@pytest.mark.statement("CP-120")
def test_a_store_that_is_down_is_an_error_too():
    world = World()
    client = world.subscribed(A)
    world.broker.failing = {"members": BrokerUnavailable("down"), "join": BrokerUnavailable("down")}
    client.join(A, "7")
    client.present(A)
    assert events(client) == [{"type": "error", "total": 0}]


@pytest.mark.statement("CP-122")
def test_presence_needs_the_right():
    world = World("backend")
    client = world.subscribed(room("a"))
    client.join(room("a"), "7")
    client.leave(room("a"))
    client.present(room("a"))
    assert client.take() == []


@pytest.mark.statement("CP-122")
def test_a_join_without_an_id_object_is_ignored():
    client = World().subscribed(A)
    client.say(command="join", identifier=A)
    assert client.take() == []


@pytest.mark.statement("CP-123")
@pytest.mark.parametrize(
    ("settings", "whispers", "joins"),
    [({}, False, True), ({"streams_whisper": True}, True, True), ({"streams_presence": False}, False, False)],
)
def test_signed_streams_have_the_rights_they_are_given(settings, whispers, joins):
    world = World("settings", noauth=True, streams_secret="s", broker="memory", **settings)
    identifier = orjson.dumps({"channel": "$pubsub", "signed_stream_name": sign_name("a", b"s")}).decode()
    client, other = world.subscribed(identifier), world.subscribed(identifier)
    client.whisper(identifier, "psst")
    client.join(identifier, "7")
    assert other.heard() == ["psst"] * whispers + ["presence"] * joins


@pytest.mark.statement("CP-123")
def test_public_streams_have_both_rights():
    world = World()
    client, other = world.subscribed(A), world.subscribed(A)
    client.whisper(A, "psst")
    client.join(A, "7")
    assert other.heard() == ["psst", "presence"]


@pytest.mark.statement("CP-78")
def test_presence_events_are_not_stored():
    client = World().subscribed(A)
    client.join(A, "7")
    client.heard()
    client.ask(A, 0)
    assert client.heard() == ["confirm_history"]


# -- asked for by a controller


def test_a_controller_may_join_and_leave():
    world = World("backend")
    here = room("a")
    world.backend.will(
        "subscribe", confirmed(here, istate={"$p": "a"}, presence=PresenceChange("join", "7", {"n": "x"}))
    )
    world.backend.will("perform", Reply(Status.SUCCESS, presence=PresenceChange("leave")))
    client = world.connect()
    client.subscribe(here)
    assert client.heard() == ["welcome", "confirm_subscription", "presence"]
    client.perform(here, "x")
    assert events(client) == [LEFT]


def test_a_member_that_a_controller_joined_leaves_when_it_unsubscribes():
    world = World("backend")
    here, watched = room("a"), room("a", n=2)
    watcher = world.subscribed(watched)
    world.backend.will("subscribe", confirmed(here, istate={"$p": "a"}, presence=PresenceChange("join", "7")))
    client = world.subscribed(here)
    client.unsubscribe(here)
    assert [event["type"] for event in events(watcher)] == ["join", "leave"]


# -- late answers


@pytest.mark.statement("CP-112")
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
def test_a_client_that_left_while_it_joined_does_not_stay(asking):
    world = World(presence_ttl=10)
    client, watcher = world.subscribed(A), world.subscribed(A)
    world.broker.slow = {"join"}
    world.broker.asking = asking
    client.join(A, "7")
    client.cut()
    world.broker.answer_all()
    world.advance(15)
    watcher.present(A)
    assert events(watcher)[-1] == {"type": "info", "total": 0}


@pytest.mark.statement("CP-112", "CP-116")
def test_a_client_that_left_while_it_subscribed_does_not_join():
    world = World("backend")
    answer = world.backend.slowly("subscribe")
    client = world.connect()
    client.subscribe(room("a"), presence={"id": "7"})
    client.cut()
    answer.callback(confirmed(room("a"), istate={"$p": "a"}, presence=PresenceChange("join", "7")))
    assert "join" not in world.broker.calls
