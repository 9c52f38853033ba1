"""Every form of an address, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.redis.address import Address, Host, Login, parse

pytestmark = pytest.mark.statement("BR-75")


def address(url: str, *sentinels: str) -> Address:
    return parse({"redis_url": url, "redis_sentinels": sentinels})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", {"hosts": (Host("localhost", 6379),)}),
        ("redis.test", {"hosts": (Host("redis.test", 6379),)}),
        ("redis.test:7000", {"hosts": (Host("redis.test", 7000),)}),
        ("redis.test:7000/", {"hosts": (Host("redis.test", 7000),)}),
        ("redis://redis.test", {"hosts": (Host("redis.test", 6379),)}),
        ("redis://redis.test/", {"hosts": (Host("redis.test", 6379),)}),
        ("redis://redis.test:7000/5", {"hosts": (Host("redis.test", 7000),), "login": Login(db=5)}),
        ("redis://redis.test:7000/5/", {"login": Login(db=5)}),
        ("redis://redis.test?db=6", {"login": Login(db=6)}),
        ("redis://:secret@redis.test", {"login": Login("", "secret")}),
        ("redis://jo:s%40cret@redis.test:7000/2", {"login": Login("jo", "s@cret", 2)}),
        ("redis://[::1]:7000", {"hosts": (Host("::1", 7000),)}),
        ("rediss://redis.test", {"tls": True}),
        ("valkey://redis.test", {"tls": False}),
        ("valkeys://redis.test", {"tls": True}),
        ("unix:///run/redis.sock", {"hosts": (Host("/run/redis.sock", 0),)}),
        ("unix://jo:secret@/run/redis.sock?db=3", {"login": Login("jo", "secret", 3)}),
        ("redis://h?dial_timeout=1m30s", {"dial_timeout": 90.0}),
        ("redis://h?dial_timeout=500ms", {"dial_timeout": 0.5}),
        ("redis://h", {"dial_timeout": 5.0}),
        ("redis://h?client_name=me", {"login": Login(client_name="me")}),
        ("redis://h?addr=i:1&addr=j:2", {"hosts": (Host("h", 6379), Host("i", 1), Host("j", 2))}),
        ("redis://h:1,redis://i:2,j:3", {"hosts": (Host("h", 1), Host("i", 2), Host("j", 3))}),
        ("rediss://jo:pw@h:1,i:2", {"tls": True, "login": Login("jo", "pw"), "hosts": (Host("h", 1), Host("i", 2))}),
        ("rediss://h?skip_verify", {"skip_verify": True}),
        ("rediss://h?skip_verify=true", {"skip_verify": True}),
        ("rediss://h?skip_verify=false", {"skip_verify": False}),
        ("redis://h?client_cache=0&max_retries=0&protocol=2", {"ignored": ()}),
        ("redis://h?ssl_cert_reqs=none", {"ignored": ("ssl_cert_reqs",)}),
        ("redis://:pw@s:1?master_set=main", {
            "master": "main", "sentinels": (Host("s", 1),),
            "sentinel_login": Login("", "pw"), "login": Login("", "pw"),
        }),
    ],
)  # fmt: skip
def test_forms_of_the_url(url: str, expected: dict[str, Any]) -> None:
    found = address(url)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://:sesame@redis.test", "the scheme 'http' is not known"),
        ("redis://:sesame@redis.test/five", "the database 'five' is not a number"),
        ("redis://:sesame@redis.test?db=five", "the database 'five' is not a number"),
        ("redis://:sesame@redis.test/1/2", "more than the number of a database"),
        ("redis://:sesame@redis.test:port", "no URL with a host and a port"),
        ("redis://:sesame@redis.test:99999", "no URL with a host and a port"),
        ("redis://:sesame@[::1", "no URL with a host and a port"),
        ("redis://:sesame@redis.test:0", "the port is 0"),
        ("unix://:sesame@", "the path of the socket is missing"),
        ("redis://:sesame@h?dial_timeout=soon", "'soon' is not a duration"),
        ("redis://:sesame@h?dial_timeout=30", "'30' is not a duration"),
        ("redis://a,http://:sesame@b", "the scheme 'http' is not known"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis_url: ") as e:
        address(url)
    assert wrong in str(e.value)
    assert "accepted: " in str(e.value)
    assert "sesame" not in str(e.value)


@pytest.mark.statement("BR-77")
def test_with_sentinels_the_host_is_the_name_of_the_master() -> None:
    found = address("redis://jo:data@mymaster/5", "ann:watch@a:1", ":other@b")
    assert found.master == "mymaster"
    assert found.sentinels == (Host("a", 1), Host("b", 26379))
    assert found.login == Login("jo", "data", 5)
    assert found.sentinel_login == Login("ann", "watch")


@pytest.mark.statement("BR-76")
def test_tls_is_for_the_master_and_for_the_sentinels_that_ask_for_it() -> None:
    found = address("rediss://mymaster", "a", "b")
    assert (found.tls, found.sentinel_tls) == (True, False)
    found = address("redis://mymaster", "rediss://a", "b")
    assert (found.tls, found.sentinel_tls) == (True, True)
    found = address("redis://mymaster", "a", "b")
    assert (found.tls, found.sentinel_tls) == (False, False)


def test_a_wrong_sentinel_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^redis_sentinels: .*; accepted: \[\[user\]:password@\]host"):
        address("redis://mymaster", "http://a")


def test_names_for_people_have_no_secrets() -> None:
    assert address("redis://jo:pw@h:1/2").log_name == "h:1"
    assert address("redis://jo:pw@h:1,i:2").log_name == "[h:1 i:2]"
    assert address("redis://jo:pw@main", ":pw@a:1", "b").log_name == "[a:1 b:26379]"
    assert address("unix://:pw@/run/r.sock").log_name == "/run/r.sock"
    assert address("redis://[::1]:5").log_name == "[::1]:5"
    assert "pw" not in repr(address("redis://jo:pw@main", ":pw@a:1"))
