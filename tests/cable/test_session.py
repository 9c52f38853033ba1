"""What a session keeps, what it lets go of, and the record it leaves."""

from __future__ import annotations

import pytest

from anycable_tx.cable.messages import Position
from anycable_tx.cable.records import SessionRecord, StreamRecord
from anycable_tx.cable.replies import Reply, Status
from anycable_tx.cable.session import Session, Subscription
from tests.cable.support import A, World, confirmed, room


def record_of(world: World, sid: str) -> SessionRecord:
    """What the broker keeps."""
    record = SessionRecord.decode(world.broker.target._sessions._sessions[sid].record)
    assert record is not None
    return record


@pytest.mark.statement("CP-96")
def test_connection_state_is_merged_and_an_empty_value_deletes():
    world = World("backend")
    here = room()
    client = world.subscribed(here)
    world.backend.will(
        "perform",
        Reply(Status.SUCCESS, cstate={"a": "1", "b": "2"}),
        Reply(Status.SUCCESS, cstate={"a": "", "c": "3"}),
    )
    for data in "123":
        client.perform(here, data)
    assert [view.cstate for view, _, _ in world.backend.called("perform")] == [
        {},
        {"a": "1", "b": "2"},
        {"b": "2", "c": "3"},
    ]


@pytest.mark.statement("CP-96")
def test_channel_state_belongs_to_its_identifier():
    world = World("backend")
    one, other = room(n=1), room(n=2)
    world.backend.will("subscribe", confirmed(one, istate={"k": "1", "$w": "w", "$p": "p"}), confirmed(other))
    client = world.subscribed(one, other)
    client.perform(one, "x")
    client.perform(other, "x")
    assert [view.istate for view, _, _ in world.backend.called("perform")] == [{"k": "1", "$w": "w", "$p": "p"}, {}]


def test_controllers_get_copies():
    world = World("backend")
    here = room()
    world.backend.will("subscribe", confirmed(here, istate={"k": "1"}, cstate={"c": "1"}))
    client = world.subscribed(here)
    client.perform(here, "x")
    view = world.backend.called("perform")[0][0]
    view.istate.clear()
    view.cstate.clear()
    client.perform(here, "x")
    again = world.backend.called("perform")[1][0]
    assert (again.istate, again.cstate) == ({"k": "1"}, {"c": "1"})


def test_the_request_is_kept_only_where_a_controller_looks_at_it_again():
    for keeps in (False, True):
        world = World("backend")
        world.controllers.keeps_env = keeps
        client = world.subscribed(room(), query="x")
        client.perform(room(), "x")
        env = world.backend.called("perform")[0][0].env
        assert (env.url if env else None) == ("http://localhost/cable?x" if keeps else None)


@pytest.mark.statement("CP-96", "CP-97")
def test_the_record_of_a_session_at_rest_tells_where_it_stood():
    world = World()
    world.publish("a", count=2)
    client = world.subscribed(A)
    world.publish("a", count=3)
    client.take()
    client.cut()
    record = record_of(world, client.sid)
    assert record.subscriptions == {A: {"a": StreamRecord(2, Position(world.epoch, 5), False, exact=True)}}
    assert record.istate == {A: {"$w": "a", "$p": "a"}}


def test_the_record_of_a_held_session_is_a_proof_only_at_rest():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    assert record_of(world, again.sid).subscriptions[A]["a"].held is False
    again.cut()
    assert record_of(world, again.sid).subscriptions[A]["a"].held is True


def test_the_record_of_a_closing_session_stays_where_it_was_closed():
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.session.disconnect(1001, "Server restart")
    world.publish("a")
    client.cut()
    assert record_of(world, client.sid).subscriptions[A]["a"].cursor == Position(world.epoch, 2)
    assert client.heard() == [1, 2]


@pytest.mark.statement("CP-53")
def test_the_ids_a_session_had_are_remembered():
    world = World()
    client = first = world.subscribed(A)
    for _ in range(3):
        client.cut()
        client = client.again()
        client.catch_up(A)
    assert client.session.previous[0] == first.sid
    assert len(client.session.previous) == 3


def test_it_is_closed_once():
    world = World()
    client = world.subscribed(A)
    client.session.disconnect(1000, "one", "first", reconnect=True)
    client.session.disconnect(1001, "two", "second")
    assert client.take() == [{"type": "disconnect", "reason": "first", "reconnect": True}]
    assert client.closed == (1000, "one")


def test_what_was_said_before_the_close_leaves_first():
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.session.disconnect(1000, "bye", "remote")
    assert client.heard() == [1, 2, "disconnect"]


def test_a_closing_session_carries_out_no_command():
    world = World("backend")
    client = world.subscribed(room())
    answer = world.backend.slowly("perform")
    client.perform(room(), "1")
    client.perform(room(), "2")
    client.session.disconnect(1000, "bye")
    answer.callback(Reply(Status.SUCCESS, [b'{"type":"late"}'], ["a"]))
    world.publish("a")
    assert client.take() == []
    assert len(world.backend.called("perform")) == 1


def test_nothing_waits_for_a_closing_session():
    world = World()
    client = world.subscribed(A)
    client.session.disconnect(1001, "Server restart")
    world.publish("a", "now", transient=True)
    [attachment] = client.session.subscriptions[A].attachments
    assert attachment.barrier is not None
    assert attachment.barrier.waiting == []


def test_a_session_has_no_dict():
    """A connection costs about a kilobyte because nothing of it has one."""
    for kind in (Session, Subscription):
        assert not hasattr(kind.__new__(kind), "__dict__")
