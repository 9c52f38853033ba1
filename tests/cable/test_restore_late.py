"""Resuming when the broker, the bus or the controllers answer late, or not at all, and clients do not wait."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.cable.messages import Member
from anycable_tx.cable.replies import ConnectReply, Status
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.sync import result_of
from tests.cable.support import A, B, Client, World, room
from tests.cable.test_restore import is_restored

DOWN = BrokerUnavailable("down")


def left(world: World, *streams: str, **settings: Any) -> Client:
    """A client that got the first message of each stream and is gone, while the second came."""
    identifiers = [{"a": A, "b": B}[stream] for stream in streams]
    client = world.subscribed(*identifiers)
    for stream in streams:
        world.publish(stream)
    client.take()
    client.cut()
    for stream in streams:
        world.publish(stream)
    return client


def members(world: World, stream: str) -> list[Member]:
    found: list[Member] = result_of(world.broker.target.members(stream))
    return found


@pytest.mark.statement("CP-90", "CP-99")
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
def test_everything_may_answer_late(asking):
    world = World()
    client = left(world, "a", "b")
    world.broker.asking = asking
    world.broker.slow = {"claim_session", "move_presence", "tail", "history", "save_session"}
    again = client.again()
    again.catch_up(A, B)
    world.advance(6)  # the streams' subscriptions lingered till now
    for _ in range(30):  # a message comes before each answer
        world.publish("a")
        if world.broker.waiting:
            world.broker.answer()
    world.broker.answer_all()
    world.advance(1)
    last = world.publish("a").offset
    heard = again.heard(A)
    assert [offset for offset in heard if isinstance(offset, int)] == list(range(2, last + 1))
    assert again.frames[0]["type"] == "welcome"
    assert heard.count("confirm_history") == 1


@pytest.mark.statement("CP-99")
def test_live_messages_wait_while_the_streams_are_opened():
    world = World(bus=True)
    client = left(world, "a")
    world.advance(6)
    world.broker.slow = {"tail"}
    again = client.again()
    world.publish("a")
    again.catch_up(A)
    assert again.heard() == ["welcome"]
    world.broker.answer_all()
    world.publish("a")
    assert again.heard() == [2, 3, "confirm_history", 4]


@pytest.mark.parametrize("method", ["claim_session", "move_presence", "tail", "save_session", "history"])
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
@pytest.mark.statement("CP-104")
def test_a_client_cut_while_it_is_resumed_loses_nothing(method, asking):
    """Wherever the resume stood, the client comes back with both subscriptions and gets the rest once."""
    world = World()
    client = left(world, "a", "b")
    world.advance(6)
    world.broker.asking = asking
    world.broker.slow = {method}
    broken = client.again()
    broken.catch_up(A, B)
    got = broken.take()
    broken.cut()
    world.broker.answer_all()
    world.publish("a")
    known = broken if got else client
    again = known.again()
    again.catch_up(A, B)
    assert is_restored(again)
    assert again.frames[0]["restored_ids"] == [A, B]
    assert [frame["offset"] for frame in (*got, *again.frames) if frame.get("stream_id") == "a"] == [2, 3]
    assert [frame["offset"] for frame in (*got, *again.frames) if frame.get("stream_id") == "b"] == [2]


@pytest.mark.statement("CP-100", "CP-104")
@pytest.mark.parametrize("answers", range(12))
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
@pytest.mark.parametrize("bus", [True, False], ids=["bus", "local"])
def test_a_client_cut_after_any_number_of_answers_gets_the_rest_once(answers, asking, bus):
    """Messages come all the time; the second attempt is broken as well, the third is not."""
    world = World(bus=bus)
    client = left(world, "a", "b")
    world.advance(6)
    got = list(client.frames)
    for _ in range(2):
        world.broker.asking = asking
        world.broker.slow = {"claim_session", "move_presence", "tail", "history", "save_session"}
        broken = client.again()
        broken.catch_up(A, B)
        for _ in range(answers):
            world.publish("a")
            if world.broker.waiting:
                world.broker.answer()
        got += broken.take()
        broken.cut()
        world.broker.answer_all()
        if broken.sid:
            client = broken
        world.advance(6)
    again = client.again()
    again.catch_up(A, B)
    last = world.publish("a").offset
    got += again.take()
    assert is_restored(again)
    assert [frame["offset"] for frame in got if frame.get("stream_id") == "a"] == list(range(1, last + 1))
    assert [frame["offset"] for frame in got if frame.get("stream_id") == "b"] == [1, 2]
    assert "reject_history" not in [frame.get("type") for frame in got]


@pytest.mark.statement("CP-104")
def test_a_client_cut_between_two_streams_keeps_both():
    world = World("backend")
    client = world.subscribed(room("a", "b"))
    client.cut()
    world.advance(6)
    world.broker.slow = {"tail"}
    broken = client.again()
    broken.heard()
    world.broker.answer()
    broken.cut()
    world.broker.answer_all()
    again = broken.again()
    again.catch_up(room("a", "b"))
    world.publish("a")
    world.publish("b")
    assert again.heard() == ["welcome", "confirm_history", 1, 1]


@pytest.mark.statement("CP-103", "CP-104")
def test_a_client_taken_over_between_two_streams_keeps_both():
    world = World("backend")
    client = world.subscribed(room("a", "b"))
    client.cut()
    world.advance(6)
    world.broker.slow = {"tail"}
    broken = client.again()
    broken.heard()
    world.broker.answer()
    again = broken.again()
    world.broker.answer_all()
    again.catch_up(room("a", "b"))
    world.publish("a")
    world.publish("b")
    assert again.heard() == ["welcome", "confirm_history", 1, 1]
    assert (broken.closed, broken.heard()) == ((1000, "Session resumed elsewhere"), [])


def test_nothing_is_left_of_clients_that_did_not_wait():
    world = World(sessions_ttl=10)
    client = left(world, "a")
    for method in ("claim_session", "move_presence", "tail", "save_session", "history"):
        world.broker.slow = {method}
        broken = client.again()
        broken.catch_up(A)
        if broken.take():
            client = broken
        broken.cut()
        world.broker.answer_all()
    world.advance(20)
    assert world.metrics.value("clients_num") == 0
    assert len(world.broker.target._sessions) == 0
    assert world.node.hub.streams == {}


# -- races for one session


@pytest.mark.statement("CP-103")
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
@pytest.mark.parametrize("method", ["claim_session", "move_presence", "tail", "save_session"])
def test_of_two_clients_with_one_session_exactly_one_has_it(method, asking):
    world = World()
    client = left(world, "a")
    world.advance(6)
    world.broker.asking = asking
    world.broker.slow = {method}
    first, second = client.again(), client.again()
    world.broker.answer_all()
    for one in (first, second):
        one.catch_up(A)
        one.take()
    winners = [one for one in (first, second) if one.closed is None and one.frames[0].get("restored")]
    assert len(winners) == 1
    world.publish("a")
    assert winners[0].heard(A) == [3]
    [loser] = {first, second} - set(winners)
    assert loser.take() == []
    assert world.metrics.value("clients_num") == 1 + (loser.closed is None)


@pytest.mark.statement("CP-103")
def test_a_slow_check_does_not_make_two_winners():
    world = World("backend")
    client = world.subscribed(room("a"))
    client.cut()
    verdict = world.backend.slowly("check_restore")
    first, second = client.again(), client.again()
    verdict.callback(None)
    assert is_restored(second)
    assert (first.take(), first.closed) == ([], (1000, "Session resumed elsewhere"))
    assert world.metrics.value("clients_num") == 1


def went_on(world: World) -> Client:
    """A client that has resumed, was sent 2 and 3 since its record was kept, and is connected still."""
    client = left(world, "a")
    again = client.again()
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", 2, "confirm_history", 3]
    return again


@pytest.mark.statement("CP-103", "CP-104")
def test_of_two_claims_at_once_the_one_with_the_older_record_does_not_replay_what_was_read():
    """Both were given what was kept at the welcome; the first took the live session over, and its welcome is lost."""
    world = World()
    client = went_on(world)
    world.broker.slow = {"claim_session"}
    first, second = client.again(), client.again()
    world.broker.answer_all()
    assert is_restored(second)
    assert (first.closed, client.closed) == ((1000, "Session resumed elsewhere"),) * 2
    second.positions = dict(client.positions)
    second.catch_up(A)
    world.publish("a")
    assert second.heard(A) == ["confirm_history", 4]


@pytest.mark.statement("CP-103", "CP-104", "CP-150")
def test_a_record_kept_before_the_session_went_on_does_not_replay_what_was_read():
    """Claimed on another node, which has nothing but that record."""
    world = World(nodes=2)
    client = went_on(world)
    again = client.again(node=1)
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", "confirm_history", 4]


@pytest.mark.statement("CP-103", "CP-104")
def test_a_session_that_was_taken_over_is_claimed_again_from_where_it_ended():
    """Even by a client that never asks: the first heir's welcome was lost."""
    world = World()
    client = world.subscribed(A)
    world.advance(0.2)
    world.publish("a", count=2)
    assert client.heard() == [1, 2]
    client.again()
    again = client.again()
    world.publish("a")
    world.advance(2.2)
    assert again.heard() == ["welcome", 3]


@pytest.mark.statement("CP-103", "CP-105")
def test_a_session_closed_while_it_is_checked_stays_resumable():
    world = World("backend")
    client = world.subscribed(room("a"))
    client.cut()
    verdict = world.backend.slowly("check_restore")
    broken = client.again()
    broken.cut()
    verdict.callback(ConnectReply(Status.SUCCESS))
    assert broken.take() == []
    assert is_restored(client.again())


@pytest.mark.statement("CP-102")
@pytest.mark.parametrize("method", ["move_presence", "tail", "save_session"])
def test_a_remote_disconnect_reaches_a_session_that_is_being_resumed(method):
    world = World("backend")
    client = world.subscribed(room("a"), query="me")
    client.cut()
    world.advance(6)
    world.broker.slow = {method}
    again = client.again(query="me")
    world.ban('{"user":"me"}')
    world.broker.answer_all()
    world.publish("a")
    again.take()
    assert again.closed == (1000, "Closed remotely")
    assert [frame["type"] for frame in again.frames][-1] == "disconnect"
    again.cut()
    assert not is_restored(client.again(query="me"))
    assert not is_restored(world.connect(sid=again.session.sid, query="me"))


# -- presence


@pytest.mark.statement("CP-118", "CP-104")
def test_a_member_stays_when_the_welcome_was_lost():
    world = World()
    watcher = world.subscribed(A)
    client = world.subscribed(A)
    client.join(A, "7")
    watcher.heard()
    client.cut()
    lost = client.again()
    lost.cut()
    again = client.again()
    world.advance(40)
    assert members(world, "a") == [Member("7")]
    assert watcher.heard() == []
    again.cut()
    world.advance(18)
    assert watcher.take()[-1]["message"] == {"id": "7", "type": "leave"}


@pytest.mark.statement("CP-118")
def test_a_member_stays_when_the_heir_was_taken_over():
    world = World()
    client = world.subscribed(A)
    client.join(A, "7")
    client.again()
    again = client.again()
    world.advance(40)
    assert members(world, "a") == [Member("7")]
    again.cut()
    world.advance(18)
    assert members(world, "a") == []


@pytest.mark.statement("CP-112", "CP-118")
@pytest.mark.parametrize("method", ["claim_session", "move_presence", "tail", "save_session"])
@pytest.mark.parametrize("asking", [True, False], ids=["late questions", "late answers"])
def test_a_member_whose_client_did_not_wait_leaves_in_time(method, asking):
    world = World()
    client = world.subscribed(A)
    client.join(A, "7")
    world.broker.asking = asking
    world.broker.slow = {method}
    broken = client.again()
    broken.cut()
    client.cut()
    world.broker.answer_all()
    assert members(world, "a") == [Member("7")]
    world.advance(18)
    assert members(world, "a") == []


# -- a broker that fails


@pytest.mark.statement("CP-93")
def test_without_the_store_the_client_is_authenticated():
    world = World()
    client = left(world, "a")
    world.broker.failing = {"claim_session": DOWN, "save_session": DOWN}
    again = client.again()
    again.subscribe(A, history={"streams": again.positions})
    world.advance(3)
    assert again.heard() == []
    world.advance(1)
    assert again.heard() == ["welcome", "confirm_subscription", 2, "confirm_history"]
    assert "restored" not in again.frames[0]
    assert world.metrics.value("sessions_refused_total", "unavailable") == 1


@pytest.mark.parametrize("method", ["move_presence", "tail"])
def test_a_resume_that_fails_half_way_can_be_tried_again(method):
    """The close has no disconnect frame, so the client keeps its session and comes back."""
    world = World()
    client = left(world, "a")
    world.advance(6)
    world.broker.failing = {method: DOWN}
    broken = client.again()
    broken.take()
    assert broken.closed is not None
    assert broken.closed[0] == 1011
    assert not [frame for frame in broken.frames if frame["type"] == "disconnect"]
    broken.cut()
    world.broker.failing.clear()
    known = broken if broken.sid else client
    again = known.again()
    again.positions = client.positions
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]


def test_an_earlier_heir_that_cannot_be_forgotten_holds_nothing_up():
    world = World()
    client = left(world, "a")
    client.again().cut()  # its welcome was lost
    world.broker.failing = {"forget_session": DOWN}
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]
    assert world.metrics.value("broker_errors_total") > 0


def test_a_record_that_cannot_be_saved_holds_nothing_up():
    world = World()
    client = left(world, "a")
    world.broker.failing = {"save_session": DOWN}
    again = client.again()
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", 2, "confirm_history", 3]
    assert world.metrics.value("broker_errors_total") > 0


def test_a_short_absence_of_the_store_costs_neither_session_nor_history():
    world = World()
    client = left(world, "a")
    world.broker.failing = {"claim_session": DOWN}
    again = client.again()
    world.advance(1)
    world.broker.failing = {"history": DOWN}
    world.advance(1)
    again.catch_up(A)
    world.publish("a")
    world.advance(1)
    world.broker.failing = {}
    world.advance(1)
    assert again.heard() == ["welcome", 2, 3, "confirm_history"]
    assert is_restored(again)


def test_history_that_cannot_be_read_is_refused_and_live_goes_on():
    world = World()
    client = left(world, "a")
    again = client.again()
    world.broker.failing = {"history": DOWN}
    again.catch_up(A)
    world.publish("a")
    world.advance(3)
    assert again.heard() == ["welcome"]
    world.advance(1)
    assert again.heard() == ["reject_history"]
    world.publish("a")
    assert again.heard() == [4]
    assert world.metrics.value("history_rejects_total", "unavailable") == 1
