"""Where the API is, who is let in, and which methods there are."""

from __future__ import annotations

import hmac

import pytest

from anycable_tx.api.rest import has_api
from anycable_tx.config.load import defaults
from tests.api.support import content

PUBLISH = "/api/publish"
USERS = "/api/presence/chat/users"
HISTORY = "/api/streams/chat/history"
KEY = "bdd0244b3664404d03b7d0c2f1b946dc4fc6c13fdcbfa2be62a4a28deb04d096"
BODY = b'{"stream":"chat","data":"x"}'


@pytest.mark.statement("HE-36", "CO-14")
@pytest.mark.parametrize(
    ("path", "counter"), [(PUBLISH, "rejected_publications_total"), (USERS, "rejected_reads_total")]
)
def test_the_key_derives_from_the_secret_and_no_other_is_accepted(world, path, counter):
    it = world(secret="qwerty")
    method, body = ("POST", BODY) if path == PUBLISH else ("GET", b"")
    assert it.ask(method, path, body, Authorization=f"Bearer {KEY}").status in (200, 201)
    refused = [
        it.ask(method, path, body, **headers)
        for headers in (
            {},
            {"Authorization": "Bearer qwerty"},
            {"Authorization": f"bearer {KEY}"},
            {"Authorization": f"Bearer  {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": "Bearer \xff"},
        )
    ]
    assert {answer.status for answer in refused} == {401}
    assert {answer.headers["www-authenticate"] for answer in refused} == {"Bearer"}
    assert content(refused[0]) == {
        "title": "Unauthorized",
        "status": 401,
        "code": "unauthorized",
        "detail": "the header Authorization: Bearer <key> is required",
    }
    assert it.metrics.value(counter, "unauthorized") == 6


def test_a_key_is_compared_in_constant_time(world, monkeypatch):
    it, compared = world(api_secret="k"), []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    it.ask("GET", USERS, Authorization="Bearer x")
    assert compared == [(b"Bearer x", b"Bearer k")]


def test_its_own_secret_wins_over_the_derived_one(world):
    it = world(secret="qwerty", api_secret="own")
    assert it.ask("GET", USERS, Authorization="Bearer own").status == 200
    assert it.ask("GET", USERS, Authorization=f"Bearer {KEY}").status == 401


@pytest.mark.statement("HE-37", "CO-15", "CO-16")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"secret": "none"}, False),
        ({"noauth": True}, False),
        ({"secret": "s"}, True),
        ({"secret": "s", "broadcast_key": "none"}, True),
        ({"secret": "s", "api_secret": "none"}, False),
        ({"secret": "s", "api_path": ""}, False),
        ({"api_secret": "k"}, True),
        ({"api_port": 9000}, True),
        ({"public": True}, True),
    ],
)
def test_there_is_an_api_with_a_key_a_port_of_its_own_or_in_public_mode(settings, expected):
    assert has_api(defaults(**settings)) is expected


@pytest.mark.statement("HE-37")
def test_without_an_api_its_paths_are_not_found(world):
    it = world(api_port=0, noauth=True)
    assert it.peer(port=8080).ask("POST", PUBLISH, BODY).status == 404


@pytest.mark.statement("CO-16")
def test_a_broadcast_key_of_none_does_not_open_the_api(world):
    it = world(secret="qwerty", broadcast_key="none", http_broadcast_port=8090)
    assert it.ask("POST", PUBLISH, BODY).status == 401
    assert it.peer(port=8090).ask("POST", "/_broadcast", BODY).status == 201


def test_public_mode_opens_the_api_unless_there_is_a_key(world):
    assert world(public=True).ask("GET", USERS).status == 200
    assert world(public=True, secret="qwerty").ask("GET", USERS).status == 401


@pytest.mark.statement("HE-41", "CO-25")
def test_path_port_and_address_can_be_moved(world):
    it = world(api_path="/v1/api/", api_port=9001, api_host="127.0.0.2")
    assert ("127.0.0.2", 9001) in it.reactor.listening
    peer = it.peer(host="127.0.0.2")
    assert peer.ask("POST", "/v1/api/publish", BODY).status == 201
    assert peer.ask("GET", "/v1/api/presence/chat/users").status == 200
    assert peer.ask("POST", PUBLISH, BODY).status == 404
    assert it.peer(port=8080).ask("POST", "/v1/api/publish", BODY).status == 404


@pytest.mark.statement("CO-25")
def test_equal_ports_share_a_listener_unless_their_addresses_differ(world):
    shared = world(secret="s", api_port=0, http_broadcast_port=8080)
    assert shared.reactor.listening == [("127.0.0.1", 8080)]
    named = world(secret="s", api_port=8080, api_host="localhost", http_broadcast_port=8080)
    assert named.reactor.listening == [("127.0.0.1", 8080)]
    apart = world(secret="s", api_port=8080, api_host="127.0.0.2", http_broadcast_port=8080)
    assert sorted(apart.reactor.listening) == [("127.0.0.1", 8080), ("127.0.0.2", 8080)]


def test_the_root_can_be_its_path(world):
    assert world(api_path="/").ask("POST", "/publish", BODY).status == 201


@pytest.mark.statement("HE-38")
@pytest.mark.parametrize(
    ("path", "methods", "status", "allowed"),
    [
        (PUBLISH, ("GET", "HEAD", "PUT", "OPTIONS", "DELETE"), 422, "POST"),
        (USERS, ("POST", "PUT", "OPTIONS"), 422, "GET, HEAD"),
        (HISTORY, ("POST", "PUT", "OPTIONS"), 405, "GET, HEAD"),
    ],
)
def test_other_methods_are_refused_before_the_key_is_looked_at(world, path, methods, status, allowed):
    it = world(secret="qwerty")
    for method in methods:
        answer = it.ask(method, path)
        assert (answer.status, answer.headers["allow"]) == (status, allowed)
        if method != "HEAD":
            assert content(answer)["code"] == "method"


@pytest.mark.parametrize("path", [USERS, HISTORY])
def test_head_answers_like_get_without_a_body(world, path):
    it = world()
    got, head = it.ask("GET", path), it.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(got.body))
    assert head.headers["content-type"] == "application/json"


def test_no_cache_keeps_an_answer(world):
    it = world(secret="qwerty")
    for authorization in (f"Bearer {KEY}", "none"):
        assert it.ask("GET", USERS, Authorization=authorization).headers["cache-control"] == "no-store"


def test_a_path_of_another_shape_is_not_found(world):
    it = world()
    for path in ("/api", "/api/", "/api/publish/", "/api/presence/users", "/api/streams/a/b/history"):
        assert it.ask("GET", path).status == 404, path


@pytest.mark.parametrize("path", [PUBLISH, USERS, HISTORY])
def test_a_preflight_is_answered_where_cors_is_on(world, path):
    it = world(secret="qwerty", api_cors_headers=True, api_cors_hosts=["app.example", "*.ok.com"])
    answer = it.ask("OPTIONS", path, Origin="https://x.OK.com")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "https://x.ok.com"
    methods = "POST, OPTIONS" if path == PUBLISH else "GET, HEAD, OPTIONS"
    assert answer.headers["access-control-allow-methods"] == methods
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    refused = it.ask("OPTIONS", path, Origin="https://evil.example")
    assert refused.status == 200
    assert "access-control-allow-origin" not in refused.headers


def test_answers_and_refusals_have_cors_headers_too(world):
    it = world(secret="qwerty", api_cors_headers=True)
    for authorization, status in ((f"Bearer {KEY}", 200), ("x", 401)):
        answer = it.ask("GET", USERS, Origin="https://a.example", Authorization=authorization)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_without_cors_there_are_no_such_headers(world):
    answer = world().ask("GET", USERS, Origin="https://a.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]
