"""What the backend has to say about a session that comes back: before the welcome, or after it."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.cable.codec import with_sid
from anycable_tx.cable.replies import ConnectReply, RestoreReply, Status, StreamsChange
from anycable_tx.errors import ControllerError
from tests.cable.support import Client, World, confirmed, room

TTL = 30
CHAT, NEWS = room("chat"), room("news")
MODES = pytest.mark.parametrize("verifies", [True, False], ids=["verify", "notify"])


def world_that(verifies: bool, **settings: Any) -> World:
    """A world whose backend is asked before (or after) the welcome."""
    world = World("backend", broker="memory", sessions_ttl=TTL, **settings)
    world.controllers.verifies_restores = verifies
    return world


def cut(world: World) -> Client:
    """A client with two subscriptions that lost its connection."""
    world.backend.will("subscribe", confirmed(CHAT, istate={"room": "7", "old": "x"}, cstate={"a": "1"}))
    client = world.subscribed(CHAT, NEWS)
    client.cut()
    return client


def ok(**changes: Any) -> RestoreReply:
    return RestoreReply(Status.SUCCESS, **changes)


@MODES
def test_the_backend_is_asked_about_what_comes_back(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    heir = client.again(query="again")
    assert heir.heard() == ["welcome"]
    [(restored,)] = world.backend.called("restore")
    assert (restored.previous, restored.session.sid) == (client.sid, heir.sid)
    assert restored.session.identifiers == '{"user":""}'
    assert restored.session.env.url == "http://localhost/cable?again"
    assert restored.session.cstate == {"a": "1"}
    assert restored.subscriptions == {CHAT: {"room": "7", "old": "x"}, NEWS: {}}
    assert restored.notified is False


@MODES
def test_it_hears_whether_the_end_was_reported(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    world.backend.will("withdraw", True)
    client.again()
    [(restored,)] = world.backend.called("restore")
    assert restored.notified is True


@MODES
def test_a_session_the_backend_never_heard_of_comes_back_without_it(verifies: bool) -> None:
    world = world_that(verifies)
    reply = ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome"}'], disconnect_interest=-1)
    world.backend.will("authenticate", reply)
    client = world.connect()
    client.cut()
    assert client.again().take()[0]["restored"] is True
    assert world.backend.called("restore") == []


@MODES
def test_it_may_change_the_state(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    world.backend.will(
        "restore", ok(cstate={"a": "", "b": "2"}, istate={CHAT: {"room": "8", "old": ""}, "unknown": {"x": "y"}})
    )
    heir = client.again()
    heir.perform(CHAT, "x")
    [(view, _, _)] = world.backend.called("perform")
    assert (view.cstate, view.istate) == ({"b": "2"}, {"room": "8"})


@MODES
def test_it_may_send_something_after_the_welcome(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    world.backend.will("restore", ok(transmissions=[b'{"type":"x"}', b'{"type":"y"}']))
    assert client.again().heard() == ["welcome", "x", "y"]


@MODES
def test_it_may_change_the_streams(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    world.backend.will(
        "restore",
        ok(streams={CHAT: StreamsChange(stopped_streams=["chat"], streams=["other"]), NEWS: StreamsChange(True)}),
    )
    heir = client.again()
    heir.take()
    heir.catch_up(CHAT, NEWS)
    heir.take()
    for stream in ("chat", "other", "news"):
        world.publish(stream)
    assert [(frame["identifier"], frame["stream_id"]) for frame in heir.take()] == [(CHAT, "other")]


@MODES
def test_it_may_drop_a_subscription(verifies: bool) -> None:
    world = world_that(verifies)
    client = cut(world)
    world.backend.will("restore", ok(rejected=[NEWS, "unknown"]))
    heir = client.again()
    welcome, rejection = heir.take()
    assert welcome["restored_ids"] == ([CHAT] if verifies else [CHAT, NEWS])
    assert rejection == {"type": "reject_subscription", "identifier": NEWS}
    world.publish("news")
    heir.catch_up(CHAT)
    assert heir.heard() == ["confirm_history"]
    heir.subscribe(NEWS)
    assert heir.heard() == ["confirm_subscription"]


def test_it_may_change_the_identifiers_before_the_welcome() -> None:
    world = world_that(True)
    client = cut(world)
    world.backend.will("restore", ok(identifiers="other"))
    heir = client.again()
    assert heir.session.identifiers == "other"
    assert world.node.sessions.of("other") == [heir.session]


def test_it_may_change_the_identifiers_after_the_welcome() -> None:
    world = world_that(False)
    client = cut(world)
    world.backend.will("restore", ok(identifiers="other"))
    heir = client.again()
    assert world.node.sessions.of("other") == [heir.session]
    assert world.node.sessions.of('{"user":""}') == []


@pytest.mark.parametrize("reply", [RestoreReply(Status.FAILURE), RestoreReply(Status.ERROR), ControllerError("down")])
def test_who_is_refused_before_the_welcome_authenticates_anew(reply: Any) -> None:
    world = world_that(True, disconnect_mode="deferred")
    world.trouble = False
    client = cut(world)
    world.backend.will("restore", reply)
    heir = client.again()
    assert "restored" not in heir.take()[0]
    assert len(world.backend.called("authenticate")) == 2
    assert [view.sid for view, _ in world.backend.called("disconnect")] == [client.sid]
    assert "restored" not in client.again().take()[0]  # what was cached is gone
    world.advance(3 * TTL)
    assert [view.sid for view, _ in world.backend.called("disconnect")] == [client.sid]


def test_who_is_refused_after_the_welcome_is_closed_and_cannot_come_back() -> None:
    world = world_that(False, disconnect_mode="deferred")
    client = cut(world)
    world.backend.will("restore", RestoreReply(Status.FAILURE, transmissions=[b'{"type":"x"}']))
    heir = client.again()
    assert (heir.heard(), heir.closed) == (["welcome", "x"], (1000, "Auth Failed"))
    heir.cut()
    assert [view.sid for view, _ in world.backend.called("disconnect")] == [heir.sid]
    assert "restored" not in heir.again().take()[0]
    assert "restored" not in client.again().take()[0]
    world.advance(3 * TTL)
    assert [view.sid for view, _ in world.backend.called("disconnect")] == [heir.sid]


@pytest.mark.parametrize("reply", [RestoreReply(Status.ERROR), ControllerError("down")])
def test_after_the_welcome_a_failed_call_changes_nothing(reply: Any) -> None:
    world = world_that(False)
    client = cut(world)
    world.backend.will("restore", reply)
    heir = client.again()
    heir.catch_up(CHAT)
    assert heir.heard() == ["welcome", "confirm_history"]


def test_a_client_that_leaves_while_the_backend_is_asked_may_come_back() -> None:
    world = world_that(True, disconnect_mode="deferred")
    client = cut(world)
    verdict = world.backend.slowly("restore")
    heir = client.again()
    heir.cut()
    verdict.callback(ok())
    assert client.again().take()[0]["restored"] is True
    assert world.backend.called("disconnect") == []


def test_commands_wait_for_the_answer() -> None:
    world = world_that(False)
    client = cut(world)
    verdict = world.backend.slowly("restore")
    heir = client.again()
    heir.perform(CHAT, "x")
    heir.catch_up(CHAT)
    assert heir.heard() == ["welcome"]
    assert world.backend.called("perform") == []
    verdict.callback(ok(rejected=[CHAT]))
    assert heir.heard() == ["reject_subscription"]
    assert world.backend.called("perform") == []


@pytest.mark.statement("RA-43")
@pytest.mark.parametrize(
    ("frame", "sent"),
    [
        (b'{"type": "welcome"}', b'{"type":"welcome","sid":"S"}'),
        (b'{"type":"welcome","x":[1]}', b'{"type":"welcome","x":[1],"sid":"S"}'),
        (b'{"type": "welcome", "sid":"own"}', b'{"type": "welcome", "sid":"own"}'),
        (b'{"type": "greeting",  "text":"welcome"}', b'{"type": "greeting",  "text":"welcome"}'),
        (b'["welcome"]', b'["welcome"]'),
        (b'welcome {"', b'welcome {"'),
    ],
)
def test_a_welcome_without_the_sid_gets_it(frame: bytes, sent: bytes) -> None:
    assert with_sid(frame, "S") == sent


@pytest.mark.statement("RA-43")
def test_only_clients_of_the_extended_protocol_get_the_sid() -> None:
    world = World("backend")
    for extended in (True, False):
        world.backend.will("authenticate", ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome"}']))
        client = world.connect(extended=extended)
        assert ("sid" in client.take()[0]) is extended
