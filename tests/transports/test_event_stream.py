"""Server-sent events over both ways to write: what a client reads, and how its response begins and ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from twisted.internet.defer import Deferred

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.cable.replies import ConnectReply, PresenceChange, Status
from anycable_tx.controllers.chain import Chain
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from tests.cable.support import Backend, confirmed, rejected, room
from tests.transports.event_reader import Reader
from tests.transports.support import EXTENDED, Cable, identifier

PUBSUB = '{"channel":"$pubsub","stream_name":"chat"}'
SECRET = "s" * 32


@pytest.fixture
def events(cable: Callable[..., Cable]) -> Cable:
    """A server of events, with a memory broker and public streams."""
    return cable(sse=True)


@pytest.fixture
def backend(events: Cable) -> Backend:
    """A backend in the place of the server's controllers; it lets everybody in to every ``Room``."""
    scripted = Backend()
    events.node.controllers = Chain([scripted], events.metrics)
    return scripted


def epoch_of(made: Cable, stream: str = "chat") -> str:
    """The epoch of a stream that has a subscriber."""
    return made.node.hub.streams[stream].position.epoch


def subscribed(made: Cable, **parameters: Any) -> Reader:
    """A reader of the stream ``chat`` that has read its confirmation."""
    reader = Reader(made, **({"stream": "chat"} | parameters))
    assert reader.types() == ([] if parameters.get("raw") else ["welcome", "confirm_subscription"])
    return reader


def resumed(made: Cable, id: str, **parameters: Any) -> Reader:
    """A reader that comes back with the last *id* it read."""
    return Reader(made, headers={"Last-Event-ID": id}, **({"stream": "chat"} | parameters))


def lines(*commands: dict[str, Any]) -> str:
    """The body of a POST."""
    return "".join(json.dumps({"command": "subscribe", **command}) + "\n" for command in commands)


# -- the beginning


@pytest.mark.statement("HE-19", "HE-24")
def test_a_client_is_welcomed_confirmed_and_gets_what_is_published(events):
    reader = Reader(events, stream="chat")
    welcome, confirmation = reader.events()
    assert (reader.status, welcome.type, confirmation.type) == (200, "welcome", "confirm_subscription")
    assert welcome.json == {"type": "welcome", "sid": welcome.json["sid"]}
    assert confirmation.json == {"type": "confirm_subscription", "identifier": PUBSUB}
    for text in ("one", {"two": 2}, [3], None):
        events.publish("chat", text)
    epoch = epoch_of(events)
    assert [(e.type, e.data, e.id) for e in reader.events()] == [
        ("message", "one", f"1/{epoch}/chat"),
        ("message", '{"two": 2}', f"2/{epoch}/chat"),
        ("message", "[3]", f"3/{epoch}/chat"),
        ("message", "null", f"4/{epoch}/chat"),
    ]


def test_the_answer_has_the_headers_that_keep_it_flowing(events):
    headers = Reader(events, stream="chat").head().headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "private, no-cache, no-store, must-revalidate, max-age=0"
    assert (headers["pragma"], headers["expires"]) == ("no-cache", "0")
    assert (headers["x-content-type-options"], headers["x-accel-buffering"]) == ("nosniff", "no")
    assert (headers["connection"], headers["transfer-encoding"]) == ("keep-alive", "chunked")
    assert headers["x-anycable-version"]
    assert headers["access-control-allow-origin"] == "*"


@pytest.mark.statement("HE-18")
@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE"])
def test_other_methods_are_not_allowed(events, method):
    answer = events.connect().get("/events?stream=chat", method)
    assert (answer.status, answer.body) == (405, b"")
    assert events.metrics.value("sse_refusals_total", "method") == 1


@pytest.mark.statement("HE-18")
def test_a_preflight_is_answered(events):
    answer = events.connect().get("/events", "OPTIONS", Origin="https://App.example")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
    assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]


def test_another_origin_gets_no_permission_to_read(cable):
    made = cable(sse=True, allowed_origins=("ok.example",))
    allowed = {"Origin": "https://ok.example"}
    assert Reader(made, stream="a", headers=allowed).head().headers["access-control-allow-credentials"] == "true"
    for headers in ({"Origin": "https://evil.example"}, {}):
        assert "access-control-allow-origin" not in Reader(made, stream="a", headers=headers).head().headers


@pytest.mark.statement("HE-18")
def test_a_get_without_parameters_is_told_what_there_is(events):
    reader = Reader(events)
    assert reader.status == 400
    assert b"one of the parameters identifier, channel, stream, signed_stream" in reader.head().body
    assert events.metrics.value("sse_refusals_total", "bad request") == 1


def test_the_endpoint_is_where_it_was_put_and_nowhere_unless_switched_on(cable):
    assert Reader(cable(), stream="chat").status == 404
    made = cable(sse=True, sse_path="/sse/{tenant}")
    assert subscribed(made, path="/sse/one")
    assert Reader(made, stream="chat").status == 404


def test_an_old_client_gets_the_events_until_its_connection_ends(events):
    reader = subscribed(events, version="1.0")
    assert "transfer-encoding" not in reader.head().headers
    assert reader.head().headers["connection"] == "close"
    events.publish("chat", "text")
    assert reader.messages() == ["text"]
    [session] = events.node.sessions
    session.disconnect(1000, "enough")
    reader.read()
    assert reader.client.ended


def test_a_kept_alive_connection_may_become_a_stream_and_is_one_to_its_end(events):
    client = events.connect()
    assert client.get("/health").status == 200
    reader = subscribed(events, client=client)
    client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100_000)
    events.publish("chat", "text")
    assert reader.messages() == ["text"]


def test_what_comes_with_the_request_is_nobodys_business(events):
    client = events.connect()
    client.send(b"GET /events?stream=chat HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /health HTTP/1.1\r\n" + b"x" * 50_000)
    assert client.head().status == 200
    client.sock.close()
    events.until(lambda: events.factory.connections == 0)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_request_that_comes_in_pieces_is_the_same(events, version):
    client = events.connect()
    client.dribble(f"GET /events?stream=chat HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    assert client.head().status == 200


@pytest.mark.statement("HE-34")
def test_the_gauge_follows_the_streams(events):
    readers = [subscribed(events) for _ in range(3)]
    assert Reader(events).status == 400
    assert (events.metrics.value("sse_clients_num"), events.metrics.value("clients_num")) == (3, 3)
    readers[0].client.sock.close()
    events.until(lambda: events.metrics.value("sse_clients_num") == 2)
    assert events.metrics.value("clients_num") == 2


def test_a_client_that_leaves_before_the_answer_leaves_nothing(events, backend):
    answer = backend.slowly("subscribe")
    reader = Reader(events, identifier=room("a"))
    reader.client.sock.close()
    events.until(lambda: events.factory.connections == 0)
    answer.callback(confirmed(room("a")))
    events.run()
    assert len(events.node.sessions) == 0
    assert [call[1] for call in backend.called("disconnect")] == [{room("a"): {}}]


def test_the_application_hears_of_the_end(events, backend):
    reader = Reader(events, identifier=room("a"))
    assert reader.status == 200
    [(sid, env)] = backend.called("authenticate")
    assert env.url.startswith("http://cable.example/events?identifier=")
    assert env.headers["REMOTE_ADDR"] in ("192.0.2.7", "")
    reader.client.sock.close()
    events.until(lambda: backend.called("disconnect"))
    [(view, subscriptions)] = backend.called("disconnect")
    assert (view.sid, view.resumable, subscriptions) == (sid, False, {room("a"): {}})


# -- who is let in


@pytest.mark.statement("HE-21")
def test_a_token_is_taken_from_the_parameter_or_the_header(cable):
    made = cable(sse=True, jwt_secret=SECRET, enforce_jwt=True, noauth=False)
    token = jwt.encode({"ext": '{"user":7}'}, SECRET, algorithm="HS256")
    for reader in (Reader(made, stream="a", jid=token), Reader(made, stream="a", headers={"X-JID": token})):
        assert reader.types() == ["welcome", "confirm_subscription"]
    assert len(made.node.sessions.of('{"user":7}')) == 2


@pytest.mark.statement("HE-21")
@pytest.mark.parametrize("claims", [None, {"ext": "{}", "exp": 1}], ids=["no token", "an expired one"])
def test_without_a_good_token_the_answer_is_401_without_a_body(cable, claims):
    made = cable(sse=True, jwt_secret=SECRET, enforce_jwt=True, noauth=False)
    parameters = {"jid": jwt.encode(claims, SECRET, algorithm="HS256")} if claims else {}
    reader = Reader(made, stream="a", **parameters)
    assert (reader.status, reader.head().body) == (401, b"")
    assert reader.head().headers["content-type"] == "text/event-stream; charset=utf-8"
    assert made.metrics.value("sse_refusals_total", "unauthorized") == 1
    assert made.metrics.value("sse_clients_num") == 0
    made.until(lambda: reader.client.read() or reader.client.ended)


@pytest.mark.statement("HE-21")
def test_a_rejected_subscription_is_400_and_leaves_no_session(events, backend):
    backend.will("subscribe", rejected(room("a")))
    reader = Reader(events, identifier=room("a"))
    assert (reader.status, reader.head().body) == (400, b'{"error":"the subscription was rejected"}')
    events.until(lambda: len(events.node.sessions) == 0)
    assert events.metrics.value("sse_refusals_total", "rejected") == 1


def test_a_rejection_that_disconnects_is_one_too(events, backend):
    backend.will("subscribe", rejected(room("a"), disconnect=True))
    assert Reader(events, identifier=room("a")).status == 400


@pytest.mark.parametrize("method", ["authenticate", "subscribe"])
def test_who_cannot_be_decided_about_is_told_to_come_back(events, backend, method):
    backend.will(method, RuntimeError("down"))
    reader = Reader(events, identifier=room("a"))
    [goodbye] = reader.events()
    assert (reader.status, goodbye.type, reader.retry, reader.complete) == (200, "disconnect", 0, True)
    assert goodbye.json == {"type": "disconnect", "reason": "unavailable", "reconnect": True}
    assert events.metrics.value("sse_refusals_total", "unavailable") == 1
    events.until(lambda: events.factory.connections == 0)
    assert Reader(events, identifier=room("a")).types() == ["welcome", "confirm_subscription"]


def test_a_broker_that_is_away_is_a_reason_to_come_back(events, monkeypatch):
    async def away(stream: str) -> None:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(events.node.broker, "tail", away)
    assert [e.json["reason"] for e in Reader(events, stream="chat").events()] == ["unavailable"]
    assert events.metrics.value("broker_errors_total") == 1


def test_a_session_that_is_ended_while_it_subscribes_is_told_why(events, backend):
    backend.slowly("subscribe")
    reader = Reader(events, path="/events?u", method="POST", body=lines({"identifier": room("a")}))
    events.run()
    events.node.execute(RemoteCommand("disconnect", {"identifier": '{"user":"u"}', "reconnect": False}))
    assert reader.types() == ["welcome", "disconnect"]
    assert reader.complete


@pytest.mark.statement("CO-29")
def test_a_full_server_turns_clients_away_for_now(cable):
    made = cable(sse=True, max_conn=2)
    socket, reader = made.subscriber("chat"), subscribed(made)
    late = Reader(made, stream="chat")
    assert [e.json["reason"] for e in late.events()] == ["too_many_connections"]
    assert Reader(made, stream="chat", raw="1").read() == []
    assert made.connect().upgrade().status == 503
    assert made.metrics.value("sse_refusals_total", "too many connections") == 2
    reader.client.sock.close()
    made.until(lambda: made.factory.upgraded == 1)
    assert subscribed(made)
    assert socket.is_served()


def test_a_server_that_has_closed_its_ports_turns_clients_away(events):
    client = events.connect()
    assert client.get("/health").status == 200
    events.factory.accepting = False
    assert [e.json["reason"] for e in Reader(events, stream="chat", client=client).events()] == [
        "starting_or_shutting_down"
    ]


# -- POST


@pytest.mark.statement("HE-33", "HE-22")
def test_a_post_subscribes_to_every_line_and_gets_whole_objects(events):
    body = lines({"identifier": identifier("a")}, {"identifier": identifier("b")}, {"identifier": identifier("a")})
    reader = Reader(events, method="POST", body=body)
    found = reader.events()
    assert [e.type for e in found] == ["welcome", "confirm_subscription", "confirm_subscription"]
    assert [e.json["identifier"] for e in found[1:]] == [identifier("a"), identifier("b")]
    events.publish("b", {"n": 1})
    [event] = reader.events()
    epoch = epoch_of(events, "b")
    assert event.json == {
        "identifier": identifier("b"), "message": {"n": 1}, "stream_id": "b", "epoch": epoch, "offset": 1
    }  # fmt: skip
    assert (event.type, event.id) == ("message", f"1/{epoch}/b")


@pytest.mark.statement("HE-33")
def test_an_empty_post_opens_a_stream_without_subscriptions(events):
    reader = Reader(events, method="POST", body="")
    assert (reader.types(), reader.status) == (["welcome"], 200)


@pytest.mark.statement("HE-33")
def test_a_post_is_refused_when_it_is_too_large_or_cannot_be_read(events):
    line = lines({"identifier": identifier("a")})
    assert Reader(events, method="POST", body=line + " " * (65_536 - len(line))).status == 200
    assert Reader(events, method="POST", body=line + " " * (65_537 - len(line))).status == 400
    broken = Reader(events, method="POST", body=line + "{")
    assert broken.status == 400
    assert broken.head().body.startswith(b"line 2: not JSON")


def test_one_rejection_of_several_is_the_answer_and_nothing_was_sent_before(events, backend):
    backend.will("subscribe", confirmed(room("a")), rejected(room("b")))
    reader = Reader(events, method="POST", body=lines({"identifier": room("a")}, {"identifier": room("b")}))
    assert reader.status == 400
    events.until(lambda: not events.node.hub.streams["a"].held)


def test_a_post_names_its_positions_itself(events):
    first = subscribed(events)
    for n in range(3):
        events.publish("chat", n)
    position = {"offset": 1, "epoch": epoch_of(events)}
    assert first.messages() == ["0", "1", "2"]
    body = lines({"identifier": PUBSUB, "history": {"streams": {"chat": position}}})
    reader = Reader(events, method="POST", body=body, headers={"Last-Event-ID": "0/x/chat"})
    found = reader.events()
    assert [e.type for e in found] == ["welcome", "confirm_subscription", "message", "message", "confirm_history"]
    assert [e.json["message"] for e in found[2:4]] == [1, 2]


@pytest.mark.statement("HE-35")
def test_a_member_is_present_as_long_as_it_is_connected_and_leaves_a_while_after(cable):
    made = cable(sse=True, presence_ttl=5)
    watcher = made.client(EXTENDED)
    watcher.subscribe(PUBSUB)
    reader = Reader(
        made, method="POST", body=lines({"identifier": PUBSUB, "presence": {"id": "me", "info": {"n": 1}}})
    )
    assert reader.types() == ["welcome", "confirm_subscription", "presence"]
    [joined] = watcher.messages()
    assert joined["message"] == {"id": "me", "info": {"n": 1}, "type": "join"}
    made.wait(20, 0.5)
    assert [m for m in watcher.messages() if m["type"] == "presence"] == []
    reader.client.sock.close()
    made.until(lambda: made.metrics.value("sse_clients_num") == 0)
    made.wait(4, 0.5)
    assert watcher.messages() == []
    made.wait(3, 0.5)
    assert [m["message"] for m in watcher.messages()] == [{"id": "me", "type": "leave"}]


# -- several kinds of clients


@pytest.mark.statement("HE-22", "HE-29")
def test_every_kind_of_client_of_an_identifier_gets_its_own_form(events):
    body = lines({"identifier": PUBSUB})
    raw, get = subscribed(events, raw="1"), subscribed(events)
    post, old = Reader(events, method="POST", body=body), subscribed(events, version="1.0")
    raw_post = Reader(events, method="POST", body=body, raw="1")
    for reader in (post, raw_post):
        reader.events()
    socket = events.client(EXTENDED)
    socket.subscribe(PUBSUB)
    for round_ in range(2):
        events.publish("chat", {"n": round_})
        events.publish("chat", "typed", broadcast_type="alert")
        for reader in (get, old):
            message, alert = reader.events()
            assert (message.type, message.json) == ("message", {"n": round_})
            assert (alert.type, alert.json["message"]) == ("alert", "typed")
        message, alert = post.events()
        assert (message.json["message"], alert.type) == ({"n": round_}, "alert")
        [message] = raw.events()
        assert message.json == {"n": round_}
        [message] = raw_post.events()
        assert message.json["message"] == {"n": round_}
        assert message.id == f"{2 * round_ + 1}/{epoch_of(events)}/chat"
        assert len(socket.messages()) == 2


@pytest.mark.statement("HE-29")
def test_a_raw_client_reads_nothing_but_messages_and_ids(events):
    reader = subscribed(events, raw="1")
    assert reader.id == f"0/{epoch_of(events)}/chat"
    events.publish("chat", "a")
    events.publish("chat", "b", broadcast_type="alert")
    events.publish("chat", "c", transient=True)
    events.wait(10, 0.5)
    assert reader.read() == [("message", "a", f"1/{epoch_of(events)}/chat"), ("message", "c", reader.id)]
    assert ":" in reader.blocks  # it is pinged by comments


def test_frames_of_one_kind_are_made_once_for_all(events, monkeypatch):
    readers = [subscribed(events) for _ in range(5)]
    wire = next(iter(events.node.hub.streams["chat"].groups))[1]
    made: list[bytes] = []
    broadcast = type(wire).broadcast
    monkeypatch.setattr(type(wire), "broadcast", lambda *args: made.append(broadcast(*args)) or made[-1])
    events.publish("chat", "text")
    assert [reader.messages() for reader in readers] == [["text"]] * 5
    assert len(made) == 1


@pytest.mark.statement("HE-24")
def test_without_a_broker_there_are_no_ids(cable):
    made = cable(sse=True, broker="none")
    reader = subscribed(made)
    made.publish("chat", "text")
    assert reader.events() == [("message", "text", "")]
    assert not any("id:" in block for block in reader.blocks)
    assert resumed(made, "1/e/chat").types() == ["welcome", "confirm_subscription", "reject_history"]


@pytest.mark.statement("HE-30")
def test_pings_come_at_their_interval_and_the_first_within_one_and_a_half(cable):
    made = cable(sse=True, ping_interval=2)
    reader = subscribed(made)
    made.wait(3.1)
    pings = [e for e in reader.events(pings=True) if e.type == "ping"]
    assert 1 <= len(pings) <= 2
    assert pings[0].json.keys() == {"type", "message"}
    made.wait(20)
    assert 9 <= len(reader.events(pings=True)) <= 11


@pytest.mark.parametrize("raw", ["", "1"])
def test_a_ping_comes_behind_what_was_published_before(events, raw):
    reader = subscribed(events, raw=raw)
    [session] = events.node.sessions
    events.publish("chat", "text")
    session.outlet.ping()
    reader.read()
    assert [block.partition("\n")[0] for block in reader.blocks[-2:]] == ["data: text", ":" if raw else "event: ping"]


def test_an_excluded_client_is_left_out(events):
    one, other = Reader(events, stream="chat"), subscribed(events)
    sid = one.events()[0].json["sid"]
    events.publish("chat", "not for one", exclude_socket=sid)
    events.publish("chat", "for all")
    assert (one.messages(), other.messages()) == (["for all"], ["not for one", "for all"])


# -- coming back


@pytest.mark.statement("HE-25", "HE-24")
def test_a_client_that_comes_back_gets_exactly_what_it_missed(events):
    reader = subscribed(events)
    for n in range(3):
        events.publish("chat", n)
    assert reader.messages() == ["0", "1", "2"]
    last = reader.id
    reader.client.sock.close()
    for n in range(3, 6):
        events.publish("chat", n)
    reader = resumed(events, last)
    found = reader.events()
    assert [e.type for e in found] == ["welcome", "confirm_subscription", *["message"] * 3, "confirm_history"]
    assert [e.data for e in found[2:5]] == ["3", "4", "5"]
    assert reader.id == f"6/{epoch_of(events)}/chat"
    events.publish("chat", 6)
    assert reader.messages() == ["6"]


@pytest.mark.statement("HE-25")
def test_a_client_that_missed_nothing_is_confirmed(events):
    reader = subscribed(events)
    events.publish("chat", 0)
    assert reader.messages() == ["0"]
    assert resumed(events, reader.id).types() == ["welcome", "confirm_subscription", "confirm_history"]


@pytest.mark.statement("HE-24")
@pytest.mark.parametrize("raw", ["", "1"])
def test_a_client_that_is_cut_before_its_first_message_misses_nothing(events, raw):
    before = subscribed(events, raw=raw)
    first = before.id
    assert first == f"0/{epoch_of(events)}/chat"
    before.client.sock.close()
    events.publish("chat", "missed")
    reader = resumed(events, first, raw=raw)
    assert [e.data for e in reader.events() if e.type == "message"] == ["missed"]


def test_the_confirmation_of_a_client_that_comes_back_does_not_move_its_place(events, monkeypatch):
    reader = subscribed(events)
    events.publish("chat", 0)
    events.publish("chat", 1)
    asked: Deferred[None] = Deferred()
    history = events.node.broker.history

    async def slow(*args: Any) -> Any:
        await asked
        return await history(*args)

    monkeypatch.setattr(events.node.broker, "history", slow)
    cut = resumed(events, f"0/{epoch_of(events)}/chat")
    assert cut.types() == ["welcome", "confirm_subscription"]
    assert cut.id == ""
    asked.callback(None)
    assert (cut.types(), cut.id) == (["message", "message", "confirm_history"], f"2/{epoch_of(events)}/chat")
    assert reader.messages() == ["0", "1"]


@pytest.mark.statement("HE-26")
@pytest.mark.parametrize(
    "id", ["1/other/chat", "99/{epoch}/chat", "1/{epoch}/another"], ids=["epoch", "beyond the tail", "other stream"]
)
def test_a_client_whose_place_cannot_be_proven_is_told_and_stays_live(events, id):
    other = subscribed(events)
    events.publish("chat", 0)
    reader = resumed(events, id.format(epoch=epoch_of(events)))
    assert reader.types() == ["welcome", "confirm_subscription", "reject_history"]
    assert reader.id == f"1/{epoch_of(events)}/chat"  # where it goes on
    events.publish("chat", 1)
    assert (reader.messages(), other.messages()) == (["1"], ["0", "1"])
    again = resumed(events, reader.id)
    assert again.types() == ["welcome", "confirm_subscription", "confirm_history"]


@pytest.mark.statement("HE-26")
def test_what_was_trimmed_is_refused_and_a_place_right_before_the_rest_is_not(cable):
    made = cable(sse=True, history_limit=3)
    subscribed(made)
    for n in range(6):
        made.publish("chat", n)
    assert resumed(made, f"2/{epoch_of(made)}/chat").types()[2:] == ["reject_history"]
    assert resumed(made, f"3/{epoch_of(made)}/chat").types()[2:] == ["message"] * 3 + ["confirm_history"]


@pytest.mark.statement("HE-27")
def test_a_stream_with_slashes_survives_the_round_trip(events):
    name = "a/ü/1/"
    reader = subscribed(events, stream=name)
    events.publish(name, 0)
    events.publish(name, 1)
    first, second = reader.events()
    assert first.id == f"1/{epoch_of(events, name)}/{name}"
    assert [e.data for e in resumed(events, first.id, stream=name).events()[2:]][:1] == [second.data]


@pytest.mark.statement("HE-28")
def test_history_since_brings_what_is_kept(events):
    for n in range(2):
        events.publish("chat", n)
    found = Reader(events, stream="chat", history_since="1").events()
    assert [e.data for e in found[2:4]] == ["0", "1"]
    assert found[4].type == "confirm_history"
    assert Reader(events, stream="new", history_since="1").types()[2:] == ["confirm_history"]
    assert Reader(events, stream="chat", history_since="soon").status == 400


def test_of_several_streams_the_place_in_one_does_not_prove_the_others(events, backend):
    both = room("a", "b")
    assert Reader(events, identifier=both).types() == ["welcome", "confirm_subscription"]
    id = f"0/{epoch_of(events, 'a')}/a"
    assert resumed(events, id, identifier=both).types()[2:] == ["confirm_history"]  # nothing was ever in the other
    events.publish("b", 1)
    assert resumed(events, id, identifier=both).types()[2:] == ["reject_history"]
    timed = resumed(events, id, identifier=both, history_since="1").events()
    assert [e.data for e in timed[2:]][:1] == ["1"]


@pytest.mark.statement("HE-26")
def test_a_raw_client_that_misses_something_gets_410(events):
    subscribed(events)
    reader = resumed(events, "5/other/chat", raw="1")
    assert (reader.status, json.loads(reader.head().body)) == (
        410,
        {"error": "what was missed cannot be had any more"},
    )
    assert events.metrics.value("sse_refusals_total", "history") == 1
    events.until(lambda: len(events.node.sessions) == 1)


def test_a_raw_client_that_comes_back_in_time_gets_what_it_missed(events):
    subscribed(events)
    for n in range(2):
        events.publish("chat", n)
    reader = resumed(events, f"1/{epoch_of(events)}/chat", raw="1")
    assert (reader.status, reader.messages()) == (200, ["1"])
    events.publish("chat", 2)
    assert reader.messages() == ["2"]
    caught_up = resumed(events, reader.id, raw="1")
    assert (caught_up.messages(), caught_up.status) == ([], 200)


@pytest.mark.statement("HE-29")
def test_a_raw_client_comes_back_over_messages_that_it_is_not_told(events):
    reader = subscribed(events, raw="1")
    for kind in ("", "alert", "alert", "", "alert"):
        events.publish("chat", kind or "text", broadcast_type=kind)
    back = resumed(events, reader.id, raw="1")
    assert (back.messages(), reader.messages()) == (["text"] * 2, ["text"] * 2)
    events.publish("chat", "live")
    assert (back.messages(), back.complete) == (["live"], False)


def test_nothing_is_written_before_the_head_while_another_history_is_awaited(events, monkeypatch):
    asked: Deferred[None] = Deferred()
    history = events.node.broker.history

    async def slow(stream: str, request: Any) -> Any:
        if stream == "b":
            await asked
        return await history(stream, request)

    monkeypatch.setattr(events.node.broker, "history", slow)
    asks = lines({"identifier": identifier("a")}, {"identifier": identifier("b"), "history": {"since": 1}})
    reader = Reader(events, method="POST", body=asks, raw="1")
    events.publish("a", "live")
    events.publish("b", "transient", transient=True)
    events.publish("b", "typed", transient=True, broadcast_type="alert")
    assert [e.json["message"] for e in reader.events()] == ["live"]
    asked.callback(None)
    assert [e.json["message"] for e in reader.events()] == ["transient"]
    assert not reader.complete


def test_who_is_connected_while_messages_are_lost_is_told(events):
    reader, raw = subscribed(events), subscribed(events, raw="1")
    before = reader.id
    events.node.deliver(StreamMessage("chat", b'"of another epoch"', offset=5, prev=4, epoch="other"))
    told, message = reader.events()
    assert (told.type, told.id) == ("reject_history", before)  # it has not got what follows yet
    assert (message.data, message.id) == ("of another epoch", "5/other/chat")
    assert raw.events() == []
    assert (raw.complete, reader.complete) == (True, False)


def test_a_long_history_waits_for_a_slow_reader(cable):
    made = cable(sse=True, history_limit=500, ws_max_pending_size=200_000)
    ids = subscribed(made)
    for n in range(300):
        made.publish("chat", str(n) + "x" * 4000)
        ids.read()
    reader = resumed(made, f"0/{epoch_of(made)}/chat", buffer=4096)
    [session] = [s for s in made.node.sessions if s.outlet.transport.backlog]
    assert session.outlet.transport.backlog < 200_000
    found = reader.events()
    assert [e.data.partition("x")[0] for e in found[2:-1]] == [str(n) for n in range(300)]
    assert found[-1].type == "confirm_history"


# -- the end


@pytest.mark.statement("HE-31")
@pytest.mark.parametrize("reconnect", [False, True])
def test_a_remote_disconnect_ends_the_response(events, reconnect):
    events.node.controllers = Chain([Backend()], events.metrics)
    reader = Reader(events, path="/events?u", method="POST", body="")
    raw = Reader(events, path="/events?raw=1", method="POST", body="")
    assert (reader.types(), raw.types()) == (["welcome"], [])
    for user in ("u", "raw=1"):
        payload = {"identifier": json.dumps({"user": user}, separators=(",", ":")), "reconnect": reconnect}
        events.node.execute(RemoteCommand("disconnect", payload))
    [goodbye] = reader.events()
    assert goodbye.type == "disconnect"
    assert goodbye.json == {"type": "disconnect", "reason": "remote", "reconnect": reconnect}
    assert raw.events() == []
    assert reader.retry == raw.retry == (0 if reconnect else 31_536_000_000)
    assert (reader.complete, raw.complete) == (True, True)
    events.until(lambda: events.factory.connections == 0)


@pytest.mark.statement("HE-32")
def test_a_stop_tells_everybody_to_come_back_after_what_was_under_way(cable):
    made = cable(whole=True, sse=True, http_broadcast_port=0)
    reader, raw = subscribed(made), subscribed(made, raw="1")
    made.publish("chat", "last")
    took = made.stop()
    last, goodbye = reader.events()
    assert (last.data, goodbye.type, reader.retry) == ("last", "disconnect", 0)
    assert goodbye.json == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
    assert (raw.messages(), reader.complete, raw.complete) == (["last"], True, True)
    assert took < 5


def test_what_was_published_before_the_end_comes_before_it(events):
    events.node.controllers = Chain([Backend()], events.metrics)
    reader = Reader(events, path="/events?u", method="POST", body=lines({"identifier": room("a")}))
    assert reader.types() == ["welcome", "confirm_subscription"]
    events.publish("a", 1)
    events.node.execute(RemoteCommand("disconnect", {"identifier": '{"user":"u"}', "reconnect": True}))
    events.publish("a", 2)
    assert [e.type for e in reader.events()] == ["message", "disconnect"]


@pytest.mark.statement("CO-31")
@pytest.mark.parametrize("raw", ["", "1"])
def test_a_reader_that_is_too_slow_is_let_go_and_comes_back_without_a_loss(cable, raw):
    made = cable(sse=True, ws_max_pending_size=50_000, history_limit=1000)
    slow, other = subscribed(made, raw=raw, buffer=1), subscribed(made)
    heard: list[str] = []
    sent = 0
    while not made.metrics.value("disconnected_slow_clients_total"):
        made.publish("chat", f"{sent} " + "x" * 1000)
        sent += 1
        heard += other.messages()
        assert sent < 5000
    found = slow.events()
    got = [e.data.partition(" ")[0] for e in found if e.type == "message"]
    assert got == [str(n) for n in range(len(got))]
    assert slow.complete
    if not raw:
        assert found[-1].json == {"type": "disconnect", "reason": "too_slow", "reconnect": True}
    assert len(got) < sent == len(heard)
    back = resumed(made, slow.id, raw=raw)
    rest = [e.data.partition(" ")[0] for e in back.events() if e.type == "message"]
    assert got + rest == [str(n) for n in range(sent)]


def test_a_reader_that_takes_nothing_any_more_is_dropped(cable):
    made = cable(sse=True, ws_write_timeout=2, ws_max_pending_size=0)
    subscribed(made, buffer=1)
    for _ in range(300):
        made.publish("chat", "x" * 4000)
        made.run()
    made.wait(5, 0.5)
    assert made.metrics.value("closed_connections_total", "write_timeout") == 1
    assert made.metrics.value("sse_clients_num") == 0


def test_a_response_that_ended_does_not_wait_for_ever_for_its_client(events):
    reader = subscribed(events, buffer=1)
    for _ in range(30):
        events.publish("chat", "x" * 30_000)
    events.run()
    [session] = events.node.sessions
    session.disconnect(1000, "enough", "enough")
    events.wait(13, 0.5)
    assert events.factory.connections == 0
    assert not reader.complete


def test_presence_that_a_backend_announces_is_an_event_of_its_own(events, backend):
    joined = confirmed(room("a"), istate={"$p": "a"}, presence=PresenceChange("join", "me", None))
    backend.will("subscribe", joined)
    reader = Reader(events, identifier=room("a"))
    welcome, _, join = reader.events()
    assert (join.type, join.json["message"]) == ("presence", {"id": "me", "type": "join"})
    assert welcome.type == "welcome"


def test_a_backend_may_let_nobody_in(events, backend):
    backend.will("authenticate", ConnectReply(Status.FAILURE, transmissions=[b'{"type":"disconnect"}']))
    reader = Reader(events, identifier=room("a"))
    assert (reader.status, reader.head().body) == (401, b"")


def test_a_history_that_is_refused_while_the_answer_is_under_way_ends_a_raw_response(events, backend, monkeypatch):
    history = events.node.broker.history
    refusing = iter([False, True])

    async def answer(stream: str, request: Any) -> Any:
        if next(refusing, False):
            raise HistoryRefused("expired")
        return await history(stream, request)

    for stream in ("a", "b"):
        events.publish(stream, stream)
    monkeypatch.setattr(events.node.broker, "history", answer)
    asks = [{"identifier": room(stream), "history": {"since": 1}} for stream in ("a", "b")]
    reader = Reader(events, method="POST", body=lines(*asks), raw="1")
    assert [e.json["message"] for e in reader.events()] == ["a"]
    assert reader.complete
