"""The opening of connections: paths, versions, origins, what controllers are shown, and the hand-over to HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import jwt
import pytest
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource

from anycable_tx import __version__
from anycable_tx.cable.replies import ConnectReply, RequestEnv, Status
from tests.transports.support import (
    BASE,
    EXTENDED,
    Cable,
    Client,
    command,
    identifier,
    masked,
    upgrade_headers,
    upgrade_request,
)


class Large(Resource):
    """Answers with a megabyte."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return bytes(range(256)) * 4000


class Gate:
    """A controller chain that remembers the requests it was shown, and lets everybody in."""

    def __init__(self, controllers: Any) -> None:
        self._controllers = controllers
        self.seen: list[RequestEnv] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controllers, name)

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply:
        self.seen.append(env)
        return ConnectReply(Status.SUCCESS, identifiers=f'{{"sid":"{sid}"}}', transmissions=[b'{"type":"welcome"}'])


def seen_by_controllers(made: Cable, client: Client | None = None, **request: str) -> RequestEnv:
    """What controllers are shown of an upgrade request."""
    made.node.controllers = gate = Gate(made.node.controllers)  # type: ignore[assignment]
    client = client or made.connect()
    assert client.upgrade(**request).status == 101
    return gate.seen[0]


# -- paths, versions, origins


@pytest.mark.statement("CP-1", "CO-28")
def test_every_configured_path_is_served_and_no_other(cable):
    made = cable(path=("/cable", "/sockets/{tenant}/ws", "chat"))
    for path in ("/cable", "/cable?x=1", "/sockets/7/ws", "/chat"):
        assert made.connect().upgrade(path).status == 101
    for path in ("/cable/", "/Cable", "/sockets/7/ws/", "/sockets/7/8/ws", "/", "/x"):
        answer = made.connect().upgrade(path)
        assert (answer.status, answer.body) == (404, b"404 page not found\n")


@pytest.mark.statement("CP-2")
def test_a_plain_request_on_a_websocket_path_is_refused_with_the_version(cable):
    made = cable()
    answer = made.connect().get("/cable")
    assert (answer.status, answer.body) == (400, b"Bad Request\n")
    assert answer.headers["sec-websocket-version"] == "13"
    answer = made.connect().get("/cable", "POST", **upgrade_headers())
    assert (answer.status, answer.headers["sec-websocket-version"]) == (405, "13")
    assert made.metrics.value("refused_connections_total") == 2


def test_a_refused_client_is_disconnected_and_what_it_says_then_is_not_kept(cable):
    made = cable()
    client = made.connect()
    client.send(b"GET /cable HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 50_000)
    assert client.head().status == 400
    assert client.ended
    assert client.connection.data == b""


@pytest.mark.statement("CP-9", "CP-6", "CP-14")
def test_a_client_without_a_protocol_is_welcomed(cable):
    made = cable()
    client = made.client("")
    assert "sec-websocket-protocol" not in client.answer.headers
    assert client.answer.headers["x-anycable-version"] == __version__
    assert client.welcome.keys() == {"type", "sid"}
    assert re.fullmatch(r"[A-Za-z0-9_-]{21}", client.sid)
    client.subscribe(identifier())
    made.publish("chat", 1)
    assert client.payloads() == [1]


@pytest.mark.statement("CP-14")
def test_session_ids_differ(cable):
    made = cable()
    assert len({made.client().sid for _ in range(20)}) == 20


@pytest.mark.statement("CP-3", "CP-4", "CP-5", "CP-6")
@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        (f"{BASE}, actioncable-unsupported", BASE),
        (EXTENDED, EXTENDED),
        (f"{EXTENDED}, {BASE}", BASE),
        (f"{BASE}, {EXTENDED}", BASE),
        ("actioncable-unsupported", None),
        ("", None),
    ],
)
def test_the_chosen_protocol_is_on_the_wire_and_in_the_session(cable, offer, chosen):
    client = cable().client(offer)
    assert client.answer.headers.get("sec-websocket-protocol") == chosen
    assert client.connection.session.extended is (chosen == EXTENDED)


@pytest.mark.statement("CP-10", "HE-5")
def test_the_origin_is_checked(cable):
    made = cable(allowed_origins="*.example.com,foo.com:8080")
    for origin in ("http://a.example.com", "http://FOO.com:8080"):
        assert made.connect().upgrade(Origin=origin).status == 101
    for origin in ("http://example.com", "http://foo.com", ""):
        answer = made.connect().upgrade(Origin=origin)
        assert (answer.status, answer.body) == (403, b"Forbidden\n")
    assert made.metrics.value("refused_connections_total", "origin not allowed") == 3


# -- what controllers are shown


@pytest.mark.statement("CP-18")
def test_controllers_see_the_whole_url_and_only_the_configured_headers(cable):
    made = cable(headers=("cookie", "x-custom"))
    env = seen_by_controllers(
        made, path="/cable?a=1&jid=t&pi=0&a=2", Cookie="x=1", X_CUSTOM="one", Authorization="no"
    )
    assert env.url == "http://cable.example/cable?a=1&jid=t&pi=0&a=2"
    assert env.headers["cookie"] == "x=1"
    assert env.headers["x-custom"] == "one"
    assert env.headers["REMOTE_ADDR"] == "192.0.2.7"
    assert "authorization" not in env.headers


@pytest.mark.statement("CP-18")
def test_the_first_value_of_a_repeated_header_is_shown(cable):
    made = cable(headers=("x-custom", "x-empty"))
    made.node.controllers = gate = Gate(made.node.controllers)
    made.connect().send(upgrade_request(X_CUSTOM="one\r\nx-custom: two", X_Forwarded_For="1.1.1.1\r\nX-Empty: "))
    assert gate.seen[0].headers == {"x-custom": "one", "REMOTE_ADDR": "192.0.2.7"}


@pytest.mark.statement("CP-18")
def test_the_absolute_form_of_a_target_is_shown_as_it_is(cable):
    env = seen_by_controllers(cable(), path="http://proxied.example/cable?x=1")
    assert env.url == "http://proxied.example/cable?x=1"


@pytest.mark.statement("CP-24")
@pytest.mark.parametrize(
    ("request_", "token"),
    [
        ({"X_JID": "h", "protocol": f"{BASE}, anycable-token.p"}, "h"),
        ({"protocol": "anycable-token.p"}, "p"),
        ({"path": "/cable?jid=q"}, None),
    ],
)
def test_a_token_is_shown_as_its_header(cable, request_, token):
    env = seen_by_controllers(cable(), **request_)
    assert env.headers.get("x-jid") == token


@pytest.mark.statement("CP-7", "CP-8")
@pytest.mark.parametrize(("offer", "chosen"), [(f"{EXTENDED}, ", EXTENDED), ("", None)])
def test_a_token_among_the_protocols_authenticates(cable, offer, chosen):
    token = jwt.encode({"ext": '{"user":7}'}, "s" * 32, algorithm="HS256")
    made = cable(jwt_secret="s" * 32, enforce_jwt=True, noauth=False)
    client = made.client(f"{offer}anycable-token.{token}")
    assert client.answer.headers.get("sec-websocket-protocol") == chosen
    assert client.connection.session.identifiers == '{"user":7}'


@pytest.mark.statement("CP-27", "CP-21")
def test_a_client_that_is_refused_as_a_user_has_been_upgraded_before(cable):
    made = cable(jwt_secret="s" * 32, enforce_jwt=True, noauth=False)
    client = made.connect()
    assert client.upgrade().status == 101
    frame = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
    assert client.farewell() == ([frame], 1000, "Auth Failed", False)


@pytest.mark.statement("CP-15")
def test_a_request_id_names_the_session_only_where_that_is_wanted_and_safe(cable):
    made = cable(request_id_sid=True)
    first = made.client(X_Request_ID="trace-1")
    assert first.sid == "trace-1"
    second = made.client(X_Request_ID="trace-1")
    assert second.sid != "trace-1"
    assert made.node.sessions.get("trace-1") is first.connection.session
    assert len(made.client(X_Request_ID='a","reconnect":"b').sid) == 21
    assert len(cable().client(X_Request_ID="trace-1").sid) == 21


def test_an_ipv6_peer_is_shown_by_its_address(cable):
    made = cable()
    client = made.connect(peer=("2001:db8::7", 40000, 0, 0))
    assert seen_by_controllers(made, client).headers["REMOTE_ADDR"] == "2001:db8::7"


@pytest.mark.statement("RA-35")
def test_a_client_behind_a_trusted_proxy_is_shown_by_its_own_address(cable):
    made = cable(trusted_proxies=("192.0.2.0/24",))
    env = seen_by_controllers(made, X_Forwarded_For="203.0.113.5", X_Forwarded_Proto="wss")
    assert (env.url, env.headers["REMOTE_ADDR"]) == ("https://cable.example/cable", "203.0.113.5")


@pytest.mark.statement("RA-33", "CP-19")
def test_only_the_cookies_that_are_listed_are_shown(cable):
    env = seen_by_controllers(cable(proxy_cookies=("b",)), Cookie="a=1; b=x==")
    assert env.headers["cookie"] == "b=x==;"


# -- plain HTTP on the same port


def test_another_path_is_served_by_the_site_and_kept_alive(cable):
    client = cable().connect()
    for _ in range(3):
        answer = client.get("/health")
        assert (answer.status, answer.body) == (200, b"healthy\n")
    assert client.get("/nowhere").status == 404
    assert not client.ended


def test_pipelined_requests_are_answered_in_order(cable):
    client = cable().connect()
    request = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"
    client.dribble(request % b"/health" + request % b"/nowhere" + request % b"/health")
    client.send(request % b"/nowhere" + request % b"/health")
    assert [client.head().status for _ in range(5)] == [200, 404, 200, 404, 200]


def test_publications_are_taken_on_the_same_port(cable):
    made = cable()
    client, subscriber = made.connect(), made.subscriber()
    body = json.dumps({"stream": "chat", "data": json.dumps({"x": "y" * 100_000})})
    client.send(
        b"POST /_broadcast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body.encode())
    )
    assert client.head().status == 201
    assert subscriber.payloads() == [{"x": "y" * 100_000}]


def test_a_large_answer_reaches_a_slow_http_client_whole(cable):
    made = cable()
    made.server.sites.add_route(0, "/large", Large())
    client = made.connect(buffer=1)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    while len(client.received) < 1_024_000:
        client.read(100_000)
        made.wait(0.5, 0.5)
    answer = client.head()
    assert (answer.status, answer.body) == (200, bytes(range(256)) * 4000)


def test_an_http_client_that_leaves_is_forgotten(cable):
    made = cable()
    client = made.connect()
    client.get("/health")
    client.sock.close()
    made.run()
    assert made.reactor.getReaders() == []
    assert not made.server.sites._channels


def test_an_upgrade_on_an_http_connection_is_not_possible_any_more(cable):
    client = cable().connect()
    client.get("/health")
    assert client.upgrade("/cable").status == 404


def test_http_connections_do_not_hold_up_a_shutdown(cable):
    made = cable()
    client = made.connect()
    client.get("/health")
    assert made.factory.connections == 0


# -- limits of the opening


@pytest.mark.parametrize("sent", [b"", b"GET /cable HT", upgrade_request()[:-2]])
def test_a_request_head_must_arrive_in_time(cable, sent):
    made = cable(handshake_timeout=5)
    client = made.connect()
    client.send(sent)
    made.wait(4.9)
    client.read()
    assert not client.ended
    made.wait(0.2)
    client.read()
    assert (client.ended, client.received) == (True, b"")
    assert made.metrics.value("refused_connections_total", "handshake timeout") == 1


def test_those_who_made_it_in_time_stay(cable):
    made = cable(handshake_timeout=5)
    client, http = made.client(), made.connect()
    http.get("/health")
    made.wait(10)
    assert client.is_served()
    assert http.get("/health").status == 200


@pytest.mark.parametrize("dribbled", [True, False])
def test_a_request_head_has_a_largest_size(cable, dribbled):
    made = cable()
    client = made.connect()
    head = b"GET /cable HTTP/1.1\r\n" + b"X: y\r\n" * 4000
    for start in range(0, 17_000 if dribbled else 1, 1000):
        client.sock.send(head[start : start + (1000 if dribbled else len(head))])
        made.run()
    assert client.head().status == 431
    assert client.ended
    assert made.metrics.value("refused_connections_total", "request head too large") == 1


def test_a_large_request_head_is_accepted(cable):
    client = cable().connect()
    assert client.upgrade(Cookie="x" * 15_000).status == 101


def test_what_is_not_http_is_refused(cable):
    client = cable().connect()
    client.send(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert client.head().status == 400
    assert client.ended


@pytest.mark.statement("CO-29")
def test_beyond_max_conn_an_upgrade_is_refused_while_health_answers(cable):
    made = cable(max_conn=2)
    first, _ = made.client(), made.client()
    answer = made.connect().upgrade()
    assert (answer.status, answer.body) == (503, b"Service Unavailable\n")
    assert made.connect().get("/health").status == 200
    assert made.metrics.value("refused_connections_total", "too many connections") == 1
    first.sock.close()
    made.run()
    made.client()
    assert made.connect().upgrade().status == 503


@pytest.mark.statement("CO-29")
def test_clients_under_authentication_count_for_max_conn(cable):
    class Thinking(Gate):
        async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply:
            await done
            return await super().authenticate(sid, env)

    done: Deferred[None] = Deferred()
    made = cable(max_conn=2)
    made.node.controllers = Thinking(made.node.controllers)
    clients = [made.connect() for _ in range(4)]
    assert [client.upgrade().status for client in clients] == [101, 101, 503, 503]
    clients[0].sock.close()
    made.run()
    assert made.connect().upgrade().status == 101
    done.callback(None)
    assert [m["type"] for m in clients[1].messages()] == ["welcome"]


def test_no_upgrade_is_accepted_once_the_ports_are_closed(cable):
    made = cable()
    early, late = made.connect(), made.connect()
    early.send(upgrade_request()[:30])
    made.close_ports()
    early.send(upgrade_request()[30:])
    assert early.head().status == 503
    assert late.upgrade().status == 503
    assert late.ended


# -- the session and its connection


def test_a_session_sees_the_client_of_its_own_connection_only(cable):
    made = cable()
    clients = [made.client() for _ in range(3)]
    clients[1].send(command("subscribe", identifier=identifier()))
    made.publish("chat", 1)
    assert [len(client.messages()) for client in clients] == [0, 2, 0]


def test_connections_share_what_they_do_not_own(cable):
    client = cable().subscriber()
    own = set(getattr(client.connection, "__dict__", ()))
    assert own == set()
    client.send(masked("{", fin=False))
    assert client.connection.__dict__


def test_an_idle_connection_keeps_its_own_precision_only_if_it_chose_one(cable):
    made = cable()
    assert "precision" in made.client(path="/cable?ptp=ms").connection.__dict__
    assert "precision" not in made.client().connection.__dict__
