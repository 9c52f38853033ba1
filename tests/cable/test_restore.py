"""Sessions that come back: what they get back, who may not, and what becomes of the connection before."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.cable.replies import ConnectReply, Reply, Status
from tests.cable.support import A, B, Client, World, confirmed, pubsub, room
from tests.controllers.vectors import EXPIRED, SECRET, USER, VALID

#: Like VALID, for {"user_id":7}.
TOKEN_OF_7 = (
    "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6N30iLCJleHAiOjQxMDI0NDQ4MDB9"
    "._OP2VRiQkWIbB9H24-WHImChbKF5qjO9CW33oP1z6f4"
)


def welcome(client: Client) -> dict[str, Any]:
    """The first frame the client got."""
    client.take()
    return client.frames[0]


def is_restored(client: Client) -> bool:
    return welcome(client).get("restored", False) is True


@pytest.mark.statement("CP-90", "BR-51")
def test_a_session_comes_back_with_its_subscriptions():
    world = World()
    client = world.subscribed(A, B)
    client.cut()
    again = client.again()
    assert welcome(again) == {
        "type": "welcome",
        "sid": again.session.sid,
        "restored": True,
        "restored_ids": [A, B],
    }
    assert again.sid != client.sid


@pytest.mark.statement("CP-90")
def test_live_messages_flow_again_without_new_subscribes():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    again.catch_up(A)
    world.publish("a", count=2)
    assert again.heard() == ["welcome", "confirm_history", 1, 2]


@pytest.mark.statement("CP-90")
def test_the_backend_is_not_asked_again():
    world = World("backend")
    client = world.subscribed(room("a"))
    world.backend.calls.clear()
    client.cut()
    client.again()
    asked = {call[0] for call in world.backend.calls}
    assert asked & {"authenticate", "check_restore", "subscribe", "perform"} == {"check_restore"}


@pytest.mark.statement("CP-90", "CP-99")
def test_a_resumed_client_gets_what_it_missed_and_then_live():
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=2)
    assert client.heard() == [1, 2]
    client.cut()
    world.publish("a", count=3)
    again = client.again()
    world.publish("a")
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", 3, 4, 5, 6, "confirm_history", 7]


@pytest.mark.statement("CP-92")
def test_a_base_session_is_not_resumed():
    world = World()
    client = world.subscribed(A, extended=False)
    client.cut()
    assert welcome(client.again(extended=False)) == {"type": "welcome", "sid": world.clients[-1].sid}
    assert not is_restored(client.again())


@pytest.mark.statement("CP-92")
def test_a_base_connection_does_not_resume_an_extended_session():
    client = World().subscribed(A)
    client.cut()
    assert not is_restored(client.again(extended=False))


@pytest.mark.statement("CP-93")
@pytest.mark.parametrize("sid", ["", "unknown", "x" * 5000, "\x00", "é"])
def test_an_unknown_session_leads_to_authentication(sid):
    world = World("backend")
    client = world.connect(sid=sid)
    assert not is_restored(client)
    assert len(world.backend.called("authenticate")) == 1


@pytest.mark.statement("CP-93")
def test_a_damaged_record_leads_to_authentication():
    world = World()
    client = world.subscribed(A)
    world.broker.target._sessions.save(client.sid, "u", b"{")
    assert not is_restored(client.again())


@pytest.mark.statement("CP-93", "CP-95", "BR-51")
@pytest.mark.parametrize(("seconds", "restored"), [(9, True), (12, False)])
def test_a_session_can_come_back_for_its_time(seconds, restored):
    world = World(sessions_ttl=10)
    client = world.subscribed(A)
    client.cut()
    world.advance(seconds)
    assert is_restored(client.again()) is restored


@pytest.mark.statement("CP-93")
def test_a_client_that_comes_too_late_still_gets_its_history():
    world = World(sessions_ttl=10)
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    world.publish("a", count=2)
    world.advance(12)
    again = client.again()
    again.subscribe(A, history={"streams": again.positions})
    assert again.heard() == ["welcome", "confirm_subscription", 2, 3, "confirm_history"]


@pytest.mark.statement("CP-94")
def test_nothing_is_resumed_with_a_ttl_of_0():
    client = World(sessions_ttl=0).subscribed(A)
    client.cut()
    assert not is_restored(client.again())


@pytest.mark.statement("CP-94")
def test_nothing_is_resumed_without_a_store():
    client = World(store=False).subscribed(A)
    client.cut()
    assert not is_restored(client.again())


@pytest.mark.statement("CP-95")
def test_a_connected_session_stays_resumable():
    world = World(sessions_ttl=10)
    client = world.subscribed(A)
    world.advance(35)
    client.cut()
    world.advance(9)
    assert is_restored(client.again())


@pytest.mark.statement("CP-95")
def test_a_session_that_was_resumed_and_left_again_expires():
    world = World(sessions_ttl=10)
    client = world.subscribed(A)
    again = client.again()
    again.cut()
    world.advance(12)
    assert not is_restored(again.again())
    assert not is_restored(client.again()), "nor does the id it had before outlive it"


@pytest.mark.statement("CP-96")
def test_state_and_identifiers_survive():
    world = World("backend")
    mine = room("a")
    world.backend.will("authenticate", ConnectReply(Status.SUCCESS, "me", [], cstate={"c": "1"}))
    world.backend.will("subscribe", confirmed(mine, cstate={"d": "2"}, istate={"i": "3", "j": "4"}))
    client = world.subscribed(mine)
    client.sid = client.session.sid
    world.backend.will("perform", Reply(Status.SUCCESS, istate={"j": ""}, cstate={"c": "5"}))
    client.perform(mine, "x")
    client.cut()
    again = client.again()
    again.perform(mine, "y")
    view, identifier, data = world.backend.called("perform")[-1]
    assert (view.identifiers, view.cstate, view.istate) == ("me", {"c": "5", "d": "2"}, {"i": "3"})
    assert (view.sid, identifier, data) == (again.sid, mine, "y")


@pytest.mark.statement("CP-96", "CP-139")
def test_a_resumed_session_is_found_by_its_identifiers():
    world = World("backend")
    client = world.subscribed(room("a"), query="me")
    client.cut()
    again = client.again(query="me")
    world.ban('{"user":"me"}')
    assert again.closed == (1000, "Closed remotely")


@pytest.mark.statement("CP-97")
def test_an_unsubscribed_identifier_does_not_come_back():
    client = World().subscribed(A, B)
    client.unsubscribe(A)
    client.cut()
    assert welcome(client.again())["restored_ids"] == [B]


@pytest.mark.statement("CP-98")
def test_a_session_without_subscriptions_says_so():
    client = World().subscribed()
    client.cut()
    assert welcome(client.again())["restored_ids"] == []


@pytest.mark.statement("CP-99")
def test_the_welcome_comes_before_every_live_message():
    world = World()
    streams = [f"s{n}" for n in range(50)]
    client = world.subscribed(*map(pubsub, streams))
    client.cut()
    for stream in streams:
        world.publish(stream)
    again = client.again()
    for stream in streams:
        world.publish(stream)
    assert again.heard()[0] == "welcome"


@pytest.mark.statement("CP-101", "RA-4")
def test_an_expired_token_does_not_resume():
    world = World("settings", jwt_secret=SECRET, broker="memory")
    client = world.subscribed(query=f"jid={VALID}")
    again = client.again(query=f"jid={EXPIRED}")
    assert again.take() == [{"type": "disconnect", "reason": "token_expired", "reconnect": False}]
    assert again.closed == (1000, "Auth Failed")
    assert client.closed is None


@pytest.mark.statement("CP-101", "RA-4")
def test_an_expired_token_resumes_where_that_is_allowed():
    world = World("settings", jwt_secret=SECRET, broker="memory", resume_expired_tokens=True)
    client = world.subscribed(query=f"jid={VALID}")
    again = client.again(query=f"jid={EXPIRED}")
    assert is_restored(again)
    assert again.session.identifiers == USER


@pytest.mark.statement("CP-101", "RA-4")
def test_somebody_elses_token_gets_a_session_of_its_own():
    world = World("settings", jwt_secret=SECRET, streams_secret="s", public_streams=True, broker="memory")
    client = world.subscribed(A, query=f"jid={VALID}")
    thief = client.again(query=f"jid={TOKEN_OF_7}")
    assert not is_restored(thief)
    assert thief.session.identifiers != USER
    assert client.closed is None
    world.publish("a")
    assert client.heard() == [1]
    assert "restored" not in welcome(thief)


@pytest.mark.statement("CP-101", "RA-4")
def test_without_the_enforced_token_nothing_is_resumed():
    world = World("settings", jwt_secret=SECRET, enforce_jwt=True, broker="memory")
    client = world.subscribed(query=f"jid={VALID}")
    again = client.again()
    assert again.take() == [{"type": "disconnect", "reason": "unauthorized", "reconnect": False}]


@pytest.mark.statement("CP-102")
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "gone"])
def test_a_remote_disconnect_makes_the_session_worthless(connected):
    world = World("backend")
    client = world.subscribed(room("a"), query="me")
    if not connected:
        client.cut()
    world.ban('{"user":"me"}')
    if connected:
        client.cut()
    assert not is_restored(client.again(query="me"))


@pytest.mark.statement("CP-102")
def test_a_remote_disconnect_reaches_the_ids_a_session_had_before():
    world = World("backend")
    first = world.subscribed(room("a"), query="me")
    second = first.again(query="me")
    world.ban('{"user":"me"}')
    for client in (first, second):
        assert not is_restored(client.again(query="me"))


@pytest.mark.statement("CP-103")
def test_the_superseded_socket_is_closed_and_silent():
    world = World()
    client = world.subscribed(A)
    again = client.again()
    assert client.closed == (1000, "Session resumed elsewhere")
    assert client.take() == [], "no disconnect frame, which would make the client forget its session"
    world.publish("a")
    again.catch_up(A)
    assert client.take() == []
    assert again.heard() == ["welcome", 1, "confirm_history"]
    assert world.metrics.value("sessions_taken_over_total") == 1


@pytest.mark.statement("CP-103")
def test_what_was_on_its_way_to_the_superseded_socket_is_not_lost():
    world = World()
    client = world.subscribed(A)
    world.publish("a", count=3)
    again = client.again()
    again.positions = {}  # the old connection is dead: nothing of it arrives
    again.catch_up(A)
    assert client.heard() == [1, 2, 3]
    assert again.heard() == ["welcome", 1, 2, 3, "confirm_history"]


@pytest.mark.statement("CP-105")
def test_a_takeover_is_not_reported_to_the_backend():
    world = World("backend")
    client = world.subscribed(room("a"))
    again = client.again()
    client.cut()
    assert world.backend.called("disconnect") == []
    again.cut()
    [(view, _)] = world.backend.called("disconnect")
    assert view.sid == again.sid


@pytest.mark.statement("CP-104")
def test_a_session_comes_back_after_a_lost_welcome():
    world = World()
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    lost = client.again()
    lost.cut()
    world.publish("a")
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]
    assert is_restored(again)


@pytest.mark.statement("CP-104")
def test_a_lost_welcome_on_a_socket_that_seems_open_is_taken_over():
    world = World()
    client = world.subscribed(A)
    client.cut()
    lost = client.again()
    again = client.again()
    assert is_restored(again)
    assert lost.closed is not None
    world.publish("a")
    again.catch_up(A)
    assert lost.heard() == ["welcome"]
    assert again.heard()[-2:] == [1, "confirm_history"]


@pytest.mark.statement("CP-104")
def test_a_used_session_id_is_spent():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    again.catch_up(A)
    assert not is_restored(client.again())
    assert again.closed is None


@pytest.mark.statement("CP-106")
def test_a_chain_of_resumes():
    world = World()
    client = world.subscribed(A)
    for _ in range(12):
        client.cut()
        world.publish("a")
        client = client.again()
        client.catch_up(A)
    world.publish("a")
    assert client.heard() == ["welcome", 12, "confirm_history", 13]


@pytest.mark.statement("CP-106")
def test_a_chain_of_resumes_leaves_one_record():
    world = World()
    client = world.subscribed(A)
    for _ in range(5):
        client = client.again()
        client.catch_up(A)
    assert len(world.broker.target._sessions) == 1
    assert world.metrics.value("clients_num") == 1


# -- the barrier of a resumed subscription


@pytest.mark.statement("CP-99")
def test_live_messages_wait_for_the_history_request():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    world.publish("a", count=3)
    world.advance(1)
    assert again.heard() == ["welcome"]


def test_the_barrier_opens_by_itself_for_clients_that_never_ask():
    world = World(history_barrier=1)
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.heard()
    client.cut()
    world.publish("a", count=2)
    again = client.again()
    again.heard()
    world.publish("a")
    world.advance(1.2)
    assert again.heard() == [3, 4, 5]
    world.publish("a")
    assert again.heard() == [6]
    assert world.metrics.value("barriers_expired_total") == 1


@pytest.mark.statement("CP-60")
def test_a_late_question_is_answered_with_nothing_twice():
    world = World(history_barrier=1)
    client = world.subscribed(A)
    world.publish("a", count=2)
    client.heard()
    client.cut()
    world.publish("a")
    again = client.again()
    world.advance(1.2)
    world.publish("a")
    assert again.heard() == ["welcome", 3, 4]
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["confirm_history", 5]


def test_a_late_question_from_before_what_was_sent_is_refused():
    """Its answer could not keep the order of this connection."""
    world = World(history_barrier=1)
    client = world.subscribed(A)
    world.publish("a", count=3)
    client.heard()
    client.cut()
    again = client.again()
    world.publish("a")
    world.advance(1.2)
    again.ask(A, 1)
    world.publish("a")
    assert again.heard() == ["welcome", 4, "reject_history", 5]
    assert world.metrics.value("history_rejects_total", "behind") == 1


def test_each_subscription_waits_for_its_own_question():
    world = World()
    client = world.subscribed(A, B)
    client.cut()
    again = client.again()
    again.catch_up(A)
    world.publish("a")
    world.publish("b")
    assert again.heard() == ["welcome", "confirm_history", 1]
    again.catch_up(B)
    assert again.heard() == [1, "confirm_history"]


def test_transient_messages_wait_behind_the_barrier_too():
    world = World()
    client = world.subscribed(A)
    client.cut()
    world.publish("a", "one")
    again = client.again()
    world.publish("a", "now", transient=True)
    again.catch_up(A)
    assert again.heard() == ["welcome", 1, "confirm_history", "now"]


def test_only_the_newest_transient_messages_wait():
    world = World()
    client = world.subscribed(A)
    client.cut()
    again = client.again()
    world.publish("a", count=103, transient=True)
    again.catch_up(A)
    assert again.heard() == ["welcome", "confirm_history", *range(3, 103)]
    assert world.metrics.value("transient_dropped_total") == 3


# -- positions


@pytest.mark.statement("CP-60", "CP-90")
def test_a_client_without_a_position_gets_everything_since_it_subscribed():
    world = World()
    world.publish("a", count=2)
    client = world.subscribed(A)
    client.cut()
    world.publish("a", count=2)
    again = client.again()
    again.say(command="history", identifier=A, history={"since": world.now + 60, "streams": {}})
    assert again.heard() == ["welcome", 3, 4, "confirm_history"], "its clock does not matter"


@pytest.mark.statement("CP-90")
def test_a_position_the_server_never_sent_is_not_trusted_for_an_idle_stream():
    """The two identifiers share one position in the client; this one is behind it (D-15)."""
    world = World("backend")
    one, other = room("a"), room("a", n=2)
    client = world.subscribed(one, other)
    world.publish("a")
    client.cut()
    world.publish("a")
    middle = client.again()
    middle.positions = {"a": {"epoch": world.epoch, "offset": 1}}
    middle.catch_up(one)
    assert middle.heard(one) == [2, "confirm_history"]
    middle.cut()
    world.publish("a")
    again = middle.again()
    again.catch_up(one, other)
    assert again.heard() == ["welcome", 3, "confirm_history", 2, 3, "confirm_history"]


@pytest.mark.statement("CP-64")
def test_a_true_gap_is_refused_and_live_goes_on():
    world = World(history_limit=2)
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    world.publish("a", count=4)
    again = client.again()
    again.catch_up(A)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 6]


def test_a_true_gap_is_told_when_the_client_never_asks():
    world = World(history_limit=2)
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    world.publish("a", count=4)
    again = client.again()
    world.advance(2.2)
    world.publish("a")
    assert again.heard() == ["welcome", "reject_history", 6]


@pytest.mark.statement("CP-79", "CP-62")
def test_positions_of_another_epoch_are_refused():
    world = World()
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    again = client.again()
    again.positions["a"]["epoch"] = "other"
    again.catch_up(A)
    assert again.heard() == ["welcome", "reject_history"]


@pytest.mark.statement("CP-53", "BR-50")
def test_an_author_does_not_get_his_message_back_in_a_later_session():
    world = World()
    client = world.subscribed(A)
    client.cut()
    world.publish("a", "mine", exclude_socket=client.sid)
    world.publish("a", "theirs")
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]


@pytest.mark.statement("CP-53", "BR-50")
def test_an_author_under_an_earlier_id_is_excluded_live():
    world = World()
    client = world.subscribed(A)
    other = world.subscribed(A)
    again = client.again()
    again.catch_up(A)
    again.heard()
    world.publish("a", exclude_socket=client.sid)
    assert (again.heard(), other.heard()) == ([], [1])


# -- cut points (a resume that is broken at each frame)


@pytest.mark.statement("CP-100", "CP-104")
@pytest.mark.parametrize("read", range(6))
def test_a_client_cut_anywhere_in_its_replay_gets_the_rest_once(read):
    """Frames written but not read are lost with the connection; *read* of 5 were read."""
    world = World()
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    world.publish("a", count=5)
    broken = client.again()
    broken.catch_up(A)
    got = [frame for frame in broken.take() if "offset" in frame][:read]
    broken.positions = {"a": {"epoch": world.epoch, "offset": got[-1]["offset"] if got else 1}}
    broken.cut()
    world.publish("a")
    again = broken.again()
    again.catch_up(A)
    offsets = [frame["offset"] for frame in got] + [frame["offset"] for frame in again.take() if "offset" in frame]
    assert offsets == [2, 3, 4, 5, 6, 7]


@pytest.mark.statement("CP-104")
def test_a_client_cut_between_welcome_and_question_gets_everything():
    world = World()
    client = world.subscribed(A)
    world.publish("a")
    client.heard()
    client.cut()
    for _ in range(3):
        world.publish("a")
        client = client.again()
        client.heard()
        client.cut()
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, 3, 4, "confirm_history"]
