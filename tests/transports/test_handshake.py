"""The opening handshake without a connection: what is an upgrade, what is refused, what is negotiated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx import __version__
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.handshake import Head, Refusal, Upgrade, negotiate, parse_head, refusal_response

BASE, EXTENDED = "actioncable-v1-json", "actioncable-v1-ext-json"
GOOD = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def head(method: str = "GET", **changes: str | None) -> Head:
    headers = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    return Head(method, "/cable", "/cable", "", {k: v for k, v in headers.items() if v is not None})


def upgrade(origins: tuple[str, ...] = (), compression: bool = False, **changes: str | None) -> Upgrade:
    return negotiate(head(**changes), Origins(origins), compression=compression)


def lines(answer: Upgrade) -> list[str]:
    text = answer.response.decode()
    assert text.endswith("\r\n\r\n")
    return text[:-4].split("\r\n")


def refused(**changes: Any) -> tuple[int, str]:
    with pytest.raises(Refusal) as e:
        upgrade(**changes)
    return e.value.status, e.value.reason


# -- the request head


def test_a_head_is_split_into_its_parts():
    found = parse_head(
        b"GET /cable?pi=1&pi=2&x=%C3%A9&y HTTP/1.1\r\nHost: a\r\nCookie: b; c\r\ncookie: d\r\nX-E:\tf \r\ng:"
    )
    assert (found.method, found.target, found.path) == ("GET", "/cable?pi=1&pi=2&x=%C3%A9&y", "/cable")
    assert found.query == "pi=1&pi=2&x=%C3%A9&y"
    assert found.headers == {"host": "a", "cookie": "b; c", "x-e": "f", "g": ""}
    assert found.parameters() == {"pi": "2", "x": "é", "y": ""}


@pytest.mark.statement("RA-35")
def test_all_lines_of_forwarded_addresses_count():
    found = parse_head(b"GET /cable HTTP/1.1\r\nX-Forwarded-For: a\r\nHost: a\r\nx-forwarded-for: b, c")
    assert found.headers["x-forwarded-for"] == "a,b, c"


def test_a_head_without_a_query_has_no_parameters():
    assert parse_head(b"GET /cable HTTP/1.1").parameters() == {}


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://h:1/cable?x=1", "/cable"), (b"ws://h", "/"), (b"/a?u=http://b/c", "/a")]
)
def test_the_absolute_form_names_a_path_too(target, path):
    assert parse_head(b"GET %b HTTP/1.1" % target).path == path


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET /cable",
        b"GET /cable HTTP/2",
        b"GET  /cable HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost",
        b"GET / HTTP/1.1\r\n: x",
        b"GET / HTTP/1.1\r\nHost : x",
        b"GET / HTTP/1.1\r\nA: b\r\n folded: c",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_is_no_http_request_is_refused(text):
    with pytest.raises(Refusal) as e:
        parse_head(text)
    assert e.value.status == 400


@given(st.binary(max_size=200))
def test_bytes_at_random_are_refused(data):
    with pytest.raises(Refusal) as e:
        negotiate(parse_head(data), Origins(()), compression=True)
    assert refusal_response(e.value).startswith(b"HTTP/1.1 4")


# -- the checks of the upgrade, in their order


@pytest.mark.statement("CP-2")
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"connection": None}, 400),
        ({"connection": "keep-alive"}, 400),
        ({"upgrade": None}, 400),
        ({"upgrade": "h2c"}, 400),
        ({"method": "POST"}, 405),
        ({"method": "POST", "connection": "close"}, 400),
        ({"method": "POST", "sec_websocket_version": "8"}, 405),
        ({"sec_websocket_version": None}, 400),
        ({"sec_websocket_version": "8"}, 400),
        ({"sec_websocket_version": "8", "origins": ("a.example",)}, 400),
        ({"origins": ("a.example",)}, 403),
        ({"origins": ("a.example",), "sec_websocket_key": None}, 403),
        ({"sec_websocket_key": None}, 400),
        ({"sec_websocket_key": GOOD["sec-websocket-key"] * 2}, 400),
        ({"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ="}, 400),
        ({"sec_websocket_key": "dGhlIHNhbXBsZSBub25j"}, 400),
        ({"sec_websocket_key": "not base64 é"}, 400),
    ],
)
def test_the_first_check_that_fails_decides_the_status(changes, status):
    assert refused(**changes)[0] == status


@pytest.mark.parametrize(
    "changes",
    [
        {"connection": "keep-alive, Upgrade"},
        {"connection": "UPGRADE"},
        {"upgrade": "WebSocket"},
        {"upgrade": "h2c, websocket"},
    ],
)
def test_tokens_are_found_in_lists_without_regard_to_case(changes):
    assert upgrade(**changes).response.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("name", ["Connection", "Upgrade", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"])
def test_a_list_may_be_spread_over_several_headers(name):
    text = "GET /cable HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in GOOD.items() if n != name.lower())
    text += "".join(
        f"{name}: {part}\r\n" for part in ("x", GOOD.get(name.lower(), BASE + ", permessage-deflate"), "y")
    )
    found = negotiate(parse_head(text[:-2].encode()), Origins(()), compression=True)
    if name == "Sec-WebSocket-Protocol":
        assert f"{name}: {BASE}" in lines(found)
    if name == "Sec-WebSocket-Extensions":
        assert found.deflate


def test_the_answer_to_a_refusal_is_plain_text_and_names_the_version():
    assert refusal_response(Refusal(403, "origin not allowed")).decode().split("\r\n") == [
        "HTTP/1.1 403 Forbidden",
        "Content-Type: text/plain; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        "Sec-Websocket-Version: 13",
        "Content-Length: 10",
        "Connection: close",
        "",
        "Forbidden\n",
    ]


# -- what is negotiated


def test_the_answer_accepts_the_key_of_the_standards_example():
    assert lines(upgrade())[:3] == [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
    ]
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines(upgrade())


@pytest.mark.statement("CP-9")
def test_the_answer_names_the_version_of_the_server():
    assert f"X-AnyCable-Version: {__version__}" in lines(upgrade())


@pytest.mark.parametrize(
    ("offer", "chosen", "token"),
    [
        pytest.param(f"{BASE}, actioncable-unsupported", BASE, "", marks=pytest.mark.statement("CP-3")),
        pytest.param(EXTENDED, EXTENDED, "", marks=pytest.mark.statement("CP-4")),
        pytest.param(f"{EXTENDED},{BASE}", BASE, "", marks=pytest.mark.statement("CP-5")),
        pytest.param(f"{BASE}, {EXTENDED}", BASE, "", marks=pytest.mark.statement("CP-5")),
        pytest.param(None, "", "", marks=pytest.mark.statement("CP-6")),
        pytest.param("actioncable-unsupported, graphql-ws", "", "", marks=pytest.mark.statement("CP-6")),
        pytest.param(BASE.upper(), "", "", marks=pytest.mark.statement("CP-6")),
        pytest.param(f"{EXTENDED}, anycable-token.a.b-c", EXTENDED, "a.b-c", marks=pytest.mark.statement("CP-7")),
        pytest.param("anycable-token.a.b", "", "a.b", marks=pytest.mark.statement("CP-8")),
        ("anycable-token.a, anycable-token.b", "", "a"),
        (f"{BASE}, {BASE},, {BASE}", BASE, ""),
    ],
)
def test_the_protocol_and_the_token_are_picked_from_the_offers(offer, chosen, token):
    found = upgrade(sec_websocket_protocol=offer)
    assert [line for line in lines(found) if line.startswith("Sec-WebSocket-Protocol")] == (
        [f"Sec-WebSocket-Protocol: {chosen}"] if chosen else []
    )
    assert (found.extended, found.token) == (chosen == EXTENDED, token)


@pytest.mark.statement("CP-10")
@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("http://a.example.com", True),
        ("http://FOO.com:8080", True),
        ("http://example.com", False),
        ("http://foo.com", False),
        (None, False),
    ],
)
def test_the_origin_must_be_allowed(origin, passes):
    changes = {"origins": ("*.example.com", "foo.com:8080"), "origin": origin}
    if passes:
        upgrade(**changes)
    else:
        assert refused(**changes) == (403, "origin not allowed")


DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.statement("CP-11")
@pytest.mark.parametrize(
    ("offer", "accepted"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),
        ("permessage-deflate; client_max_window_bits=9; client_no_context_takeover", True),
        ("permessage-deflate; server_max_window_bits=15", True),
        ('permessage-deflate; server_max_window_bits="15"', True),
        ("x-webkit-deflate-frame, permessage-deflate", True),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", True),
        ("permessage-deflate; server_max_window_bits=10", False),
        ("permessage-deflated", False),
        (None, False),
    ],
)
def test_compression_keeps_no_context_and_is_used_where_it_fits_everybody(offer, accepted):
    found = upgrade(compression=True, sec_websocket_extensions=offer)
    assert found.deflate is accepted
    assert (f"Sec-WebSocket-Extensions: {DEFLATE}" in lines(found)) is accepted


@pytest.mark.statement("CP-11")
def test_without_the_option_no_extension_is_accepted():
    found = upgrade(compression=False, sec_websocket_extensions="permessage-deflate")
    assert not found.deflate
    assert b"Extensions" not in found.response
