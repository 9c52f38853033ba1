"""Trusted proxies: who is one, and which address they vouch for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.errors import ConfigurationError
from anycable_tx.transports.proxies import TrustedProxies

pytestmark = pytest.mark.statement("RA-35")

PROXIES = TrustedProxies([" 10.0.0.0/8", "192.0.2.1 ", "", "2001:db8:1::/48", "::1"])


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("2001:db8:1::5", True),
        ("2001:db8:2::5", False),
        ("::1", True),
        ("", False),
        ("/run/socket", False),
    ],
)
def test_addresses_and_networks_are_trusted(peer, trusted):
    assert PROXIES.trusts(peer) is trusted
    assert PROXIES.trusts(peer) is trusted  # now from memory


def test_without_entries_nobody_is_trusted():
    assert not TrustedProxies(["", " "])
    assert not TrustedProxies([]).trusts("10.0.0.1")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("6.6.6.6, 203.0.113.5", "203.0.113.5"),
        ("6.6.6.6, 203.0.113.5, 10.0.0.2,192.0.2.1", "203.0.113.5"),
        ("203.0.113.5:1234", "203.0.113.5"),
        ("203.0.113.5, 10.0.0.2:80", "203.0.113.5"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443, ::1", "2001:db8::7"),
        ("<script>, 203.0.113.5", "203.0.113.5"),
    ],
)
def test_the_client_is_the_right_most_address_that_is_not_trusted(forwarded, client):
    assert PROXIES.client(forwarded) == client


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        ",",
        "10.0.0.2",
        "10.0.0.3, 10.0.0.2",
        "unknown",
        "203.0.113.5, unknown",
        "203.0.113.5, unknown, 10.0.0.2",
        "203.0.113.5,",
        "203.0.113.5 10.0.0.2",
        "203.0.113.5:x",
        "203.0.113.5:",
        "203.0.113.5:²",
        "203.0.113",
        "3405803781",
        "203.0.113.05",
        "203.0.113.0/24",
        "[2001:db8::7",
        "[2001:db8::7]x",
        "fe80::1%<script>",
        "\xff",
    ],
)
def test_what_stands_before_something_that_is_no_address_is_not_believed(forwarded):
    assert PROXIES.client(forwarded) == ""


@given(st.text(alphabet="0123456789abf.:,[]% \xff", max_size=60), st.text(max_size=60))
def test_nothing_a_client_writes_changes_what_a_proxy_appended(text, other):
    for written in (text, other):
        assert PROXIES.client(written + ", 203.0.113.5") == "203.0.113.5"
        assert PROXIES.client(written + ", 203.0.113.5, 10.0.0.2") == "203.0.113.5"
        PROXIES.trusts(written)


@pytest.mark.parametrize("entry", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "*", "10", "::/129"])
def test_an_entry_that_is_neither_is_named_with_what_is_accepted(entry):
    with pytest.raises(ConfigurationError) as e:
        TrustedProxies(["10.0.0.1", entry])
    assert str(e.value).startswith(f"trusted_proxies: {entry!r} is not accepted")
    assert "10.0.0.0/8" in str(e.value)
