"""Who is let in, what a refused client is told, and that commands wait for the answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from anycable_tx.cable.replies import ConnectReply, Status
from anycable_tx.errors import ControllerError
from tests.cable.support import Client, World, room
from tests.controllers.vectors import EXPIRED, SECRET, USER, VALID, WITHOUT_EXT, token

AUTH_FAILED = (1000, "Auth Failed")


def refusal(reason: str) -> dict[str, Any]:
    return {"type": "disconnect", "reason": reason, "reconnect": False}


def guarded(**settings: Any) -> World:
    """A world that asks for tokens."""
    return World("settings", jwt_secret=SECRET, broker="memory", **settings)


@pytest.mark.statement("CP-20")
def test_a_valid_token_is_welcomed():
    client = guarded().connect(query=f"jid={VALID}")
    [welcome] = client.take()
    assert welcome == {"type": "welcome", "sid": client.session.sid}
    assert client.session.identifiers == USER


@pytest.mark.statement("CP-21", "RA-14")
def test_an_expired_token_is_told_so():
    client = guarded().connect(query=f"jid={EXPIRED}")
    assert client.take() == [refusal("token_expired")]
    assert client.closed == AUTH_FAILED


@pytest.mark.statement("CP-22", "RA-14")
@pytest.mark.parametrize(
    "bad", ["garbage", "a.b.c", token({"ext": "u"}, "another secret, long enough for libraries")]
)
def test_a_bad_token_is_unauthorized(bad):
    client = guarded().connect(query=f"jid={bad}")
    assert client.take() == [refusal("unauthorized")]
    assert client.closed == AUTH_FAILED


@pytest.mark.statement("CP-25", "RA-12")
def test_a_token_without_identifiers_is_unauthorized():
    world = guarded()
    client = world.connect(query=f"jid={WITHOUT_EXT}")
    assert client.take() == [refusal("unauthorized")]
    assert client.closed == AUTH_FAILED
    assert world.metrics.value("failed_auths_total") == 1


@pytest.mark.statement("CP-23")
def test_a_missing_token_is_refused_where_tokens_are_enforced():
    client = guarded(enforce_jwt=True, noauth=True).connect()
    assert client.take() == [refusal("unauthorized")]
    assert client.closed == AUTH_FAILED


@pytest.mark.statement("CP-23")
def test_a_missing_token_elsewhere_leaves_it_to_the_next():
    client = guarded(noauth=True).connect()
    assert client.heard() == ["welcome"]
    assert orjson.loads(client.session.identifiers) == {"sid": client.sid}


@pytest.mark.statement("CP-23")
def test_nobody_is_let_in_whom_nobody_knows():
    client = guarded().connect()
    assert client.take() == [refusal("unauthorized")]


@pytest.mark.statement("CP-24")
def test_a_token_in_the_header_wins_over_the_query():
    client = guarded().connect(query=f"jid={EXPIRED}", x_jid=VALID)
    assert client.heard() == ["welcome"]


@pytest.mark.statement("CP-26", "RA-14")
def test_a_backend_that_fails_closes_without_a_frame():
    world = World("backend")
    world.backend.will("authenticate", ControllerError("down"))
    client = world.connect()
    assert client.take() == []
    assert client.closed == (1011, "Auth Error")
    assert world.metrics.value("failed_auths_total", "error") == 1


@pytest.mark.statement("CP-26")
def test_a_backend_that_refuses_has_its_frames_sent_first():
    world = World("backend")
    world.backend.will("authenticate", ConnectReply(Status.FAILURE, transmissions=[b'{"type":"x"}', b'{"type":"y"}']))
    client = world.connect()
    assert client.heard() == ["x", "y"]
    assert client.closed == AUTH_FAILED


def test_nobody_who_decides_is_an_error():
    world = World("settings", norpc=True)
    world.node.controllers.controllers = ()
    client = world.connect()
    assert (client.take(), client.closed) == ([], (1011, "Auth Error"))


@pytest.mark.statement("CP-20")
def test_the_welcome_of_a_backend_is_sent_as_it_is():
    world = World("backend")
    world.backend.will("authenticate", ConnectReply(Status.SUCCESS, "u", [b'{"type": "welcome",  "sid":"S"}']))
    client = world.connect()
    assert client.sent == [b'{"type": "welcome",  "sid":"S"}']


@pytest.mark.statement("CP-28")
def test_commands_wait_for_the_welcome_and_keep_their_order():
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    for stream in "abc":
        client.subscribe(room(stream))
    client.perform(room("b"), "x")
    assert client.take() == []
    assert [call[0] for call in world.backend.calls] == ["authenticate"]
    verdict.callback(ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome","sid":"S"}']))
    assert client.heard() == ["welcome"] + ["confirm_subscription"] * 3
    assert [call[0] for call in world.backend.calls] == ["authenticate"] + ["subscribe"] * 3 + ["perform"]


@pytest.mark.statement("CP-28")
def test_a_great_many_commands_may_wait():
    world = World("backend", max_commands_pending=5000)
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    client.subscribe(room())
    for n in range(3000):
        client.perform(room(), str(n))
    verdict.callback(ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome","sid":"S"}']))
    assert client.heard() == ["welcome", "confirm_subscription"]
    assert [data for *_, data in world.backend.called("perform")] == [str(n) for n in range(3000)]


@pytest.mark.statement("CP-28", "CP-29")
def test_commands_of_a_refused_client_are_never_executed():
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    client.subscribe(room("a"))
    verdict.callback(ConnectReply(Status.FAILURE))
    assert client.take() == []
    assert world.backend.called("subscribe") == []


@pytest.mark.statement("CP-43")
def test_a_ping_during_authentication_is_answered():
    world = World("backend")
    world.backend.slowly("authenticate")
    client = world.connect()
    client.say(command="ping")
    assert client.heard() == ["pong"]


@pytest.mark.statement("CP-29", "RA-2")
@pytest.mark.parametrize("answer", [ConnectReply(Status.FAILURE, "u"), ControllerError("down")])
def test_a_failed_authentication_leaves_nothing_to_resume(answer):
    world = World("backend", request_id_sid=True)
    world.backend.will("authenticate", answer)
    client = world.connect(request_id="chosen")
    client.cut()
    again = world.connect(sid="chosen")
    [welcome] = again.take()
    assert "restored" not in welcome
    assert len(world.backend.called("authenticate")) == 2


def test_an_answer_for_a_client_that_left_is_dropped():
    world = World("backend")
    verdict = world.backend.slowly("authenticate")
    client = world.connect()
    client.cut()
    verdict.callback(ConnectReply(Status.SUCCESS, "u", [b'{"type":"welcome","sid":"S"}']))
    assert client.take() == []
    assert world.metrics.value("clients_num") == 0


@pytest.mark.statement("CP-14")
def test_generated_session_ids_are_unique():
    world = World()
    sids = {world.connect().sid for _ in range(50)}
    assert len(sids) == 50
    assert {len(sid) for sid in sids} == {21}


@pytest.mark.statement("CP-15", "RA-6")
def test_a_request_id_becomes_the_session_id_when_it_is_free():
    assert World().connect(request_id="mine").sid == "mine"


@pytest.mark.statement("CP-15", "RA-6")
def test_a_request_id_in_use_replaces_nobody():
    world = World()
    first = world.connect(request_id="mine")
    second = world.connect(request_id="mine")
    assert first.sid == "mine" != second.sid
    world.ban(first.session.identifiers)
    assert first.closed is not None
    assert second.closed is None


@pytest.mark.statement("CP-15", "RA-6")
def test_two_clients_that_are_being_let_in_cannot_share_an_id():
    world = World("backend")
    verdicts = [world.backend.slowly("authenticate") for _ in range(2)]
    clients = [world.connect(request_id="mine") for _ in range(2)]
    for verdict in verdicts:
        verdict.callback(ConnectReply(Status.SUCCESS, "u"))
    assert len({client.session.sid for client in clients}) == 2


@pytest.mark.statement("CP-15", "RA-5", "RA-6")
def test_an_ill_formed_request_id_is_not_used():
    [welcome] = World().connect(request_id='","admin":"1').take()
    assert set(welcome) == {"type", "sid"}
    assert len(welcome["sid"]) == 21


@pytest.mark.statement("CP-142")
def test_signed_streams_are_refused_without_a_secret():
    world = World("settings", noauth=True)
    client = world.connect()
    client.subscribe('{"channel":"$pubsub","signed_stream_name":"ImEi--abc"}')
    assert client.heard() == ["welcome", "reject_subscription"]
    assert world.metrics.value("subscription_rejects_total", "no_streams_secret") == 1


def end_of(world: World, client: Client) -> list[Any]:
    client.cut()
    world.turn()
    return world.backend.called("disconnect")


@pytest.mark.statement("RA-19")
def test_a_refused_stream_does_not_make_the_backend_interested():
    world = World("settings", jwt_secret=SECRET, streams_secret="s")
    world.node.controllers.controllers += (world.backend,)
    client = world.connect(query=f"jid={VALID}")
    client.subscribe('{"channel":"$pubsub","signed_stream_name":"ImEi--abc"}')
    assert client.heard() == ["welcome", "reject_subscription"]
    assert end_of(world, client) == []


@pytest.mark.statement("RA-19")
def test_a_subscription_the_backend_decided_makes_it_interested():
    world = World("settings", jwt_secret=SECRET, streams_secret="s")
    chain = world.node.controllers.controllers
    world.node.controllers.controllers = (*chain[:-1], world.backend, chain[-1])
    client = world.connect(query=f"jid={VALID}")
    client.subscribe(room("a"))
    [(view, subscriptions)] = end_of(world, client)
    assert (view.identifiers, list(subscriptions)) == (USER, [room("a")])
