"""Every form of an address, what is wrong with others, and the order in which servers are tried."""

from __future__ import annotations

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.nats.address import Server, named_by, parse
from anycable_tx.nats.pool import Pool


def servers(*entries: str) -> tuple[Server, ...]:
    return parse({"nats_servers": entries})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nats.test", Server("nats.test", 4222)),
        ("nats.test:7000", Server("nats.test", 7000)),
        ("nats://nats.test", Server("nats.test", 4222)),
        ("nats://nats.test:7000/", Server("nats.test", 7000)),
        ("tls://nats.test:7000", Server("nats.test", 7000, tls=True)),
        ("nats://[::1]:7000", Server("::1", 7000)),
        ("nats://token@nats.test", Server("nats.test", 4222, token="token")),
        ("nats://to%40ken@nats.test", Server("nats.test", 4222, token="to@ken")),
        ("nats://jo:s%40cret@nats.test", Server("nats.test", 4222, user="jo", password="s@cret")),
        ("jo:secret@nats.test:1", Server("nats.test", 1, user="jo", password="secret")),
        ("nats://jo:@nats.test", Server("nats.test", 4222, user="jo", password="")),
    ],
)
def test_forms_of_an_address(text: str, expected: Server) -> None:
    assert servers(text) == (expected,)


def test_a_list_has_each_server_once() -> None:
    found = servers("a, nats://b:1", " tls://u:p@c ,a:4222")
    assert [str(each) for each in found] == ["a:4222", "b:1", "c:4222"]
    assert str(Server("::1", 7)) == "[::1]:7"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no server"),
        (" , ", "no server"),
        ("http://h", "the scheme 'http' is not known"),
        ("ws://h", "the scheme 'ws' is not known"),
        ("nats://:4222", "the host is missing"),
        ("nats://h:port", "no URL"),
        ("nats://h:70000", "no URL"),
        ("nats://h:0", "the port is 0"),
        ("nats://[::1", "no URL"),
        ("nats://h/x", "more after the host"),
        ("nats://h?x=1", "more after the host"),
    ],
)
def test_what_is_no_address_stops_the_start(text: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=f"nats_servers: .*{wrong}.*accepted: .*tls://"):
        servers(text)


@pytest.mark.parametrize("text", ["nats://jo:s3cret@h:port", "http://s3cret@h", "nats://jo:s3cret@h/x"])
def test_what_is_said_about_an_address_has_no_secrets(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        servers(text)
    assert "s3cret" not in str(caught.value)
    (server,) = servers("nats://jo:s3cret@h:1")
    assert f"{server} {server!r}" == "h:1 <h:1>"


def test_another_server_of_the_cluster_is_logged_into_in_the_same_way() -> None:
    (one,) = servers("tls://jo:secret@nats.test:4222")
    assert named_by(one, "b.test:1") == Server("b.test", 1, tls=True, user="jo", password="secret")
    number = named_by(one, "10.0.0.2:2")
    assert number == Server("10.0.0.2", 2, tls=True, user="jo", password="secret", tls_name="nats.test")
    assert number is not None
    assert named_by(number, "10.0.0.3:2") == Server("10.0.0.3", 2, True, "jo", "secret", "", "nats.test")
    assert named_by(one, "b.test:x") is None


class TestPool:
    def test_servers_may_be_tried_in_the_order_given(self) -> None:
        pool = Pool(servers("a", "b", "c"), in_order=True)
        a, b, c = pool.order()
        assert [str(each) for each in (a, b, c)] == ["a:4222", "b:4222", "c:4222"]
        assert pool.order(last=a) == [b, c, a]

    def test_they_are_tried_in_any_order(self) -> None:
        pool = Pool(servers(*map(str, range(1, 9))), in_order=False)
        orders = {tuple(map(str, pool.order())) for _ in range(20)}
        assert len(orders) > 1
        assert len({frozenset(each) for each in orders}) == 1

    def test_servers_that_others_know_come_after_those_we_know(self) -> None:
        pool = Pool(servers("a"), in_order=False)
        (a,) = pool.order()
        assert not pool.has_other(a)
        pool.learn(a, ["b:1", "a:4222", "nonsense:x", "b:1"])
        assert [str(each) for each in pool.order()] == ["a:4222", "b:1"]
        assert pool.has_other(a)
        assert [str(each) for each in pool.order(last=a)] == ["b:1", "a:4222"]

    def test_what_they_do_not_know_any_more_is_forgotten(self) -> None:
        pool = Pool(servers("a"), in_order=True)
        (a,) = pool.order()
        pool.learn(a, [f"n{n}:1" for n in range(1000)])
        assert len(pool.order()) == 65
        pool.learn(a, ["b:1"])
        assert [str(each) for each in pool.order()] == ["a:4222", "b:1"]
