"""What controllers are shown of a request: headers, cookies, and what trusted proxies tell."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.cable.replies import RequestEnv
from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.transports.handshake import Head, parse_head
from anycable_tx.transports.request_env import RequestEnvs
from tests.transports.support import Cable

PEER = "192.0.2.7"


def head(*lines: str, target: str = "/cable") -> Head:
    return parse_head("\r\n".join([f"GET {target} HTTP/1.1", "Host: cable.example", *lines]).encode("latin-1"))


def shown(
    *lines: str, target: str = "/cable", token: str = "", peer: str = PEER, scheme: str = "http", **settings: Any
) -> RequestEnv:
    return RequestEnvs(defaults(**settings), scheme).read(head(*lines, target=target), token, peer)


def cookies(header: str, *names: str) -> str | None:
    """What the backend gets of a Cookie header when only *names* are wanted."""
    return shown(f"Cookie: {header}", proxy_cookies=names).headers.get("cookie")


# -- headers


@pytest.mark.statement("CP-18")
def test_without_settings_the_cookie_and_the_address_are_shown():
    env = shown("Cookie: a=1; b=x==", "Origin: http://a.example", target="/cable?x=%20&y")
    assert env == RequestEnv("http://cable.example/cable?x=%20&y", {"cookie": "a=1; b=x==", "REMOTE_ADDR": PEER})
    assert shown(scheme="https").url == "https://cable.example/cable"


@pytest.mark.statement("CP-18", "RA-33")
def test_names_of_headers_are_trimmed_and_case_does_not_matter():
    settings = {"jwt_param": "jid", "headers": (" Cookie", "X-Custom ", "", "x-custom")}
    env = RequestEnvs(settings, "http").read(head("COOKIE: a=1", "X-CUSTOM: one"), "", PEER)
    assert env.headers == {"cookie": "a=1", "x-custom": "one", "REMOTE_ADDR": PEER}


@pytest.mark.statement("CP-18")
def test_the_first_value_counts_and_empty_headers_are_left_out():
    env = shown("X-A: one", "x-a: two", "X-Empty:", headers=("x-a", "x-empty", "x-absent"))
    assert env.headers == {"x-a": "one", "REMOTE_ADDR": PEER}


@pytest.mark.statement("CP-18")
def test_neither_the_host_nor_an_address_is_taken_from_a_header():
    env = shown("REMOTE_ADDR: 6.6.6.6", headers=("host", "Host", "REMOTE_ADDR"))
    assert env.headers == {"REMOTE_ADDR": PEER}


@pytest.mark.statement("CP-24")
def test_a_token_is_shown_under_its_header_and_the_header_wins():
    assert shown(token="p").headers == {"x-jid": "p", "REMOTE_ADDR": PEER}
    assert shown("X-JID: h", token="p").headers["x-jid"] == "h"
    assert shown("X-Key: h", jwt_param="Key").headers["x-key"] == "h"


# -- cookies


@pytest.mark.statement("RA-33", "CP-19")
@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("a=1; b=x==", "b=x==;"),
        ("b=x==; a=1", "b=x==;"),
        ("a=1;b=2;c=3", "b=2;c=3;"),
        ("c=3; a=1; b=2; c=4", "c=3;b=2;c=4;"),
        (" b=2 ;; ", "b=2;"),
        ("b=", "b=;"),
        ('b="x y"', 'b="x y";'),
        ("B=1; bb=2; b; a=b=3", None),
        ("=b", None),
    ],
)
def test_listed_cookies_are_kept_wherever_they_stand_and_whatever_they_hold(header, kept):
    assert cookies(header, "b", "c") == kept


@pytest.mark.statement("RA-33", "CP-19")
def test_without_a_list_cookies_are_not_touched():
    assert cookies("a=1; junk;b=x==") == "a=1; junk;b=x=="


@pytest.mark.statement("RA-33")
def test_names_of_cookies_are_trimmed():
    settings = {"jwt_param": "jid", "proxy_cookies": (" b ", "")}
    env = RequestEnvs(settings, "http").read(head("Cookie: a=1; b=2; =3"), "", PEER)
    assert env.headers["cookie"] == "b=2;"


@pytest.mark.statement("CP-18")
def test_listing_cookies_does_not_show_a_header_that_is_not_wanted():
    assert shown("Cookie: b=1", headers=("origin",), proxy_cookies=("b",)).headers == {"REMOTE_ADDR": PEER}


# -- trusted proxies


def behind_proxy(*lines: str, **more: Any) -> tuple[str, str]:
    """The address and the URL that are shown when the peer is a trusted proxy."""
    env = shown(*lines, **{"peer": "10.0.0.9", "trusted_proxies": ("10.0.0.0/8",), **more})
    return env.headers["REMOTE_ADDR"], env.url


@pytest.mark.statement("RA-35")
def test_a_trusted_proxy_tells_the_address_and_the_scheme():
    lines = "X-Forwarded-For: 6.6.6.6, 203.0.113.5, 10.0.0.1", "X-Forwarded-Proto: https"
    assert behind_proxy(*lines) == ("203.0.113.5", "https://cable.example/cable")
    assert behind_proxy(*lines, peer="::ffff:10.0.0.9") == ("203.0.113.5", "https://cable.example/cable")


@pytest.mark.statement("RA-35")
@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)])
def test_nobody_else_is_believed(trusted):
    env = shown("X-Forwarded-For: 203.0.113.5", "X-Forwarded-Proto: https", trusted_proxies=trusted)
    assert env == RequestEnv("http://cable.example/cable", {"REMOTE_ADDR": PEER})


@pytest.mark.statement("RA-35")
def test_a_line_the_proxy_adds_counts_and_not_the_one_the_client_sent():
    lines = "X-Forwarded-For: 6.6.6.6", "Cookie: a=1", "X-Forwarded-For: 203.0.113.5"
    assert behind_proxy(*lines)[0] == "203.0.113.5"


@pytest.mark.statement("RA-35")
@pytest.mark.parametrize("line", ["X-Other: 1", "X-Forwarded-For:", "X-Forwarded-For: 203.0.113.5, unknown"])
def test_without_an_address_that_can_be_believed_the_peers_stays(line):
    assert behind_proxy(line)[0] == "10.0.0.9"


@pytest.mark.statement("RA-35")
@pytest.mark.parametrize(
    ("told", "scheme"),
    [
        ("https", "https"),
        ("HTTPS", "https"),
        ("wss", "https"),
        ("https, http", "https"),
        ("http", "http"),
        ("ws", "http"),
        ("", None),
        ("ftp", None),
        ("https://evil.example/?", None),
    ],
)
@pytest.mark.parametrize("own", ["http", "https"])
def test_the_scheme_is_a_known_one_or_the_listeners(told, scheme, own):
    _, url = behind_proxy(f"X-Forwarded-Proto: {told}", scheme=own)
    assert url == f"{scheme or own}://cable.example/cable"


@pytest.mark.statement("RA-35")
def test_the_absolute_form_of_a_target_is_shown_as_it_is():
    _, url = behind_proxy("X-Forwarded-Proto: https", target="http://proxied.example/cable")
    assert url == "http://proxied.example/cable"


@pytest.mark.statement("RA-35")
def test_a_server_whose_list_of_proxies_is_wrong_does_not_start():
    with pytest.raises(
        ConfigurationError, match=r"trusted_proxies: '10\.0\.0\.0/x' is not accepted; expected an addr"
    ):
        Cable("direct", trusted_proxies=("10.0.0.0/x",))


def test_an_ipv4_client_of_a_socket_for_both_has_an_ipv4_address():
    assert shown(peer="::ffff:203.0.113.5").headers == {"REMOTE_ADDR": "203.0.113.5"}
    assert shown(peer="2001:db8::7").headers == {"REMOTE_ADDR": "2001:db8::7"}
