"""When the backend hears of a session's end, and what it is told: once for a session, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.cable.replies import ConnectReply, Reply, Status
from anycable_tx.errors import BrokerUnavailable
from tests.cable.support import Client, World, confirmed, rejected, room

TTL = 30
KEPT: dict[str, Any] = {"broker": "memory", "sessions_ttl": TTL}
CHAT = room("chat")


def told(world: World) -> list[tuple[str, list[str]]]:
    """Whose end the backend heard of, and the subscriptions it had."""
    return [(view.sid, sorted(subscriptions)) for view, subscriptions in world.backend.called("disconnect")]


def ends(world: World) -> bool:
    """Has everything been seen to that a stop waits for?"""
    return Deferred.fromCoroutine(world.node.released()).called


def joined(world: World, **how: Any) -> Client:
    """A client of the extended protocol that is subscribed."""
    client = world.connect(**how)
    client.subscribe(CHAT)
    world.turn()
    return client


# -- when the connection ends


@pytest.mark.parametrize(
    ("mode", "interest", "heard"),
    [
        ("auto", 0, True),
        ("auto", -1, False),
        ("always", -1, True),
        ("always", 0, True),
        ("never", 0, False),
    ],
)
def test_the_mode_says_who_hears_of_it(mode: str, interest: int, heard: bool) -> None:
    world = World("backend", disconnect_mode=mode)
    reply = ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome","sid":"s"}'], disconnect_interest=interest)
    world.backend.will("authenticate", reply)
    client = world.connect()
    client.cut()
    world.turn()
    assert told(world) == ([(client.session.sid, [])] if heard else [])


@pytest.mark.statement("RA-16")
def test_a_client_that_leaves_while_it_is_let_in_is_reported_if_the_backend_let_it_in() -> None:
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    client.cut()
    world.turn()
    assert told(world) == []
    verdict.callback(ConnectReply(Status.SUCCESS, "u", cstate={"k": "v"}))
    [(view, subscriptions)] = world.backend.called("disconnect")
    assert (view.sid, view.identifiers, view.cstate, subscriptions) == (client.session.sid, "u", {"k": "v"}, {})


@pytest.mark.statement("RA-16")
@pytest.mark.parametrize("reply", [Reply(Status.ERROR), ConnectReply(Status.FAILURE)])
def test_a_client_that_leaves_while_it_is_refused_is_not_reported(reply: Any) -> None:
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    world.connect().cut()
    verdict.callback(reply if isinstance(reply, ConnectReply) else ConnectReply(Status.ERROR))
    assert told(world) == []


@pytest.mark.statement("RA-16")
@pytest.mark.parametrize(
    ("reply", "known"),
    [
        (confirmed(CHAT, istate={"room": "7"}), {CHAT: {"room": "7"}}),
        (Reply(Status.ERROR), {CHAT: {}}),
        (Reply(Status.ERROR, reached=False), {}),
        (rejected(CHAT), {}),
    ],
    ids=["confirmed", "failed on the way back", "failed on the way there", "refused"],
)
def test_a_client_that_leaves_while_it_subscribes_is_reported_with_what_the_backend_may_have_done(
    reply: Reply, known: dict[str, Any]
) -> None:
    world = World("backend")
    verdict = world.backend.slowly("subscribe")
    client = world.connect()
    client.subscribe(CHAT)
    client.cut()
    world.turn()
    assert told(world) == []
    verdict.callback(reply)
    world.turn()
    [(view, subscriptions)] = world.backend.called("disconnect")
    assert (view.sid, subscriptions) == (client.session.sid, known)


def test_an_unsubscription_that_failed_is_made_good_at_the_end() -> None:
    world = World("backend")
    client = joined(world)
    world.backend.will("unsubscribe", Reply(Status.ERROR))
    client.unsubscribe(CHAT)
    client.cut()
    world.turn()
    assert told(world) == [(client.sid, [CHAT])]
    assert world.metrics.value("failed_client_msg_total") == 1


def test_who_subscribes_again_after_a_failed_unsubscription_is_reported_with_it_once() -> None:
    world = World("backend")
    client = joined(world)
    world.backend.will("unsubscribe", Reply(Status.ERROR))
    client.unsubscribe(CHAT)
    client.subscribe(CHAT)
    client.unsubscribe(CHAT)
    client.cut()
    world.turn()
    assert told(world) == [(client.sid, [])]


def test_controllers_hear_that_a_connection_ended() -> None:
    world = World("backend")
    client = world.connect()
    client.cut()
    world.backend.slowly("authenticate")
    arriving = world.connect()
    arriving.cut()
    assert world.backend.called("gone") == [(client.sid,), (arriving.session.sid,)]


# -- deferred


def test_a_deferred_report_is_made_once_the_session_cannot_come_back() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    world.controllers.keeps_env = True
    world.backend.will("authenticate", ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome"}'], {"k": "v"}))
    client = world.connect()
    client.subscribe(CHAT)
    client.cut()
    world.advance(TTL - 1)
    assert told(world) == []
    world.advance(3)
    [(view, subscriptions)] = world.backend.called("disconnect")
    assert (view.sid, view.identifiers, view.cstate, subscriptions) == (client.sid, "u", {"k": "v"}, {CHAT: {}})
    assert view.env == client.session.env
    assert view.env is not None
    world.advance(TTL)
    assert len(told(world)) == 1


def test_a_session_that_comes_back_is_one_session_to_the_backend() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    client = joined(world)
    for _ in range(3):
        client.cut()
        world.advance(TTL - 5)
        client = client.again()
        assert client.take()[0]["restored"] is True
        client.catch_up(CHAT)
        world.advance(TTL + 5)
    assert told(world) == []
    client.cut()
    world.advance(TTL + 2)
    assert told(world) == [(client.sid, [CHAT])]


def test_the_heir_that_never_acts_is_the_one_that_ends() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    client = joined(world)
    client.cut()
    heir = client.again()
    world.advance(TTL / 2)
    heir.cut()
    world.advance(TTL / 2 + 2)
    assert told(world) == []  # the first could have been resumed until now, and goes on in the second
    world.advance(TTL)
    assert told(world) == [(heir.sid, [CHAT])]


def test_a_session_that_was_resumed_twice_ends_once() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    client = joined(world)
    client.cut()
    first = client.again()
    second = client.again()
    assert first.closed is not None
    second.cut()
    world.advance(3 * TTL)
    assert told(world) == [(second.sid, [CHAT])]


def test_an_heir_that_left_before_it_was_let_in_leaves_the_session_as_it_was() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    client = joined(world)
    client.cut()
    verdict = world.backend.slowly("check_restore")
    heir = client.again()
    heir.cut()
    verdict.callback(None)
    world.advance(TTL + 2)
    assert told(world) == [(client.sid, [CHAT])]


@pytest.mark.statement("CP-102")
def test_a_remote_disconnect_ends_sessions_that_could_have_come_back() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    away, here = joined(world), joined(world)
    away.cut()
    world.node.execute(RemoteCommand("disconnect", {"identifier": here.session.identifiers}))
    assert told(world) == [(away.sid, [CHAT])]
    here.cut()
    world.advance(3 * TTL)
    assert sorted(told(world)) == sorted([(away.sid, [CHAT]), (here.sid, [CHAT])])


def test_a_session_that_nobody_keeps_is_reported_at_once() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    base = world.connect(extended=False)
    base.cut()
    assert told(world) == [(base.session.sid, [])]
    client = joined(world)
    world.broker.failing["release_session"] = BrokerUnavailable("down")
    client.cut()
    assert told(world)[1:] == [(client.sid, [CHAT])]


def test_what_was_under_way_at_the_end_is_in_the_deferred_report() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    client = world.connect()
    verdict = world.backend.slowly("subscribe")
    client.subscribe(CHAT)
    client.cut()
    verdict.callback(confirmed(CHAT))
    world.advance(TTL + 2)
    assert told(world) == [(client.sid, [CHAT])]


def test_a_stop_reports_sessions_that_end_with_the_server() -> None:
    world = World("backend", disconnect_mode="deferred", **KEPT)
    away, here = joined(world), joined(world)
    away.cut()
    here.cut()
    assert ends(world)
    assert sorted(told(world)) == sorted([(away.sid, [CHAT]), (here.sid, [CHAT])])


@pytest.mark.statement("RA-27")
def test_a_stop_waits_for_the_command_under_way() -> None:
    world = World("backend")
    verdict = world.backend.slowly("subscribe")
    client = world.connect()
    client.subscribe(CHAT)
    client.cut()
    ended = Deferred.fromCoroutine(world.node.released())
    assert not ended.called
    verdict.callback(confirmed(CHAT))
    world.advance(0.1)
    assert ended.called
    assert told(world) == [(client.sid, [CHAT])]


@pytest.mark.statement("RA-27", "RA-16")
def test_a_stop_waits_for_the_answer_about_who_is_being_let_in() -> None:
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    client.cut()
    ended = Deferred.fromCoroutine(world.node.released())
    assert not ended.called
    verdict.callback(ConnectReply(Status.SUCCESS, "u"))
    world.advance(0.1)
    assert ended.called
    assert told(world) == [(client.session.sid, [])]


def test_a_stop_does_not_wait_for_ever_for_who_was_superseded_while_it_was_let_in() -> None:
    """The node ends such a session, and then its transport says that the connection is gone."""
    world = World("backend", **KEPT)
    client = joined(world)
    client.cut()
    verdict = world.backend.slowly("check_restore")
    first = client.again()
    client.again()
    assert first.closed == (1000, "Session resumed elsewhere")
    first.cut()
    verdict.callback(None)
    world.advance(0.1)
    assert ends(world)


# -- reports that are taken back


@pytest.mark.statement("CP-105")
def test_the_report_of_a_session_that_comes_back_is_withdrawn() -> None:
    world = World("backend", **KEPT)
    client = joined(world)
    client.cut()
    heir = client.again()
    assert world.backend.called("withdraw") == [(client.sid,)]
    [(view, _)] = world.backend.called("disconnect")
    assert view.resumable
    heir.cut()
    assert told(world) == [(client.sid, [CHAT]), (heir.sid, [CHAT])]


def test_a_withdrawn_report_is_made_again_when_the_heir_leaves_before_it_was_let_in() -> None:
    world = World("backend", **KEPT)
    client = joined(world)
    client.cut()
    verdict = world.backend.slowly("withdraw")
    client.again().cut()
    verdict.callback(False)
    assert told(world) == [(client.sid, [CHAT]), (client.sid, [CHAT])]


def test_a_report_that_was_made_is_not_made_again() -> None:
    world = World("backend", **KEPT)
    client = joined(world)
    client.cut()
    verdict = world.backend.slowly("withdraw")
    client.again().cut()
    verdict.callback(True)
    assert told(world) == [(client.sid, [CHAT])]


def test_a_session_taken_over_from_another_node_has_its_report_withdrawn_there() -> None:
    world = World("backend", nodes=2, **KEPT)
    client = joined(world)
    client.cut()
    client.again(node=1)
    assert world.backend.called("withdraw").count((client.sid,)) >= 2
