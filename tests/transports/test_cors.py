"""Origins: who may connect, and what browsers are told."""

from __future__ import annotations

import pytest

from anycable_tx.transports.cors import Origins


@pytest.mark.parametrize("origin", ["https://evil.com", "null", None, ""])
@pytest.mark.parametrize("entries", [[], ["*"], ["", " "], ["foo.com", "*"]])
def test_without_a_list_or_with_a_star_everybody_may_connect(entries, origin):
    assert Origins(entries).allows(origin)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://foo.com", True),
        ("HTTPS://FOO.com", True),
        ("https://foo.com:8080", False),
        ("https://bar.com:8080", True),
        ("https://bar.com", False),
        ("https://a.example.com", True),
        ("https://example.com", False),
        ("https://example.io", True),
        ("https://my-example.io", True),
        ("https://example.io.evil.com", False),
        ("https://evil.com", False),
        ("foo.com", False),
        ("null", False),
        ("", False),
        ("http://[::1", False),
        (None, False),
    ],
)
def test_a_list_names_hosts_with_their_port_and_suffixes(origin, allowed):
    origins = Origins([" Foo.com", "bar.com:8080 ", "", "*.example.com", "*example.io"])
    assert origins.allows(origin) is allowed


def test_an_allowed_origin_is_echoed_with_credentials():
    headers = Origins(["*.ok.com"]).cors_headers("https://X.ok.com")
    assert headers["Access-Control-Allow-Origin"] == "https://x.ok.com"
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert headers["Vary"] == "Origin"
    assert headers["Access-Control-Allow-Headers"].startswith(
        "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization"
    )


def test_another_origin_is_not_named():
    for origin in ("https://evil.com", None):
        headers = Origins(["*.ok.com"]).cors_headers(origin)
        assert "Access-Control-Allow-Origin" not in headers
        assert "Access-Control-Allow-Credentials" not in headers
        assert headers["Vary"] == "Origin"


def test_credentials_never_come_with_a_star():
    assert Origins([]).cors_headers("https://a.com")["Access-Control-Allow-Origin"] == "https://a.com"
    headers = Origins([]).cors_headers(None)
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in headers


def test_the_methods_are_the_endpoints_own():
    assert Origins([]).cors_headers(None, "GET, HEAD")["Access-Control-Allow-Methods"] == "GET, HEAD"
