"""How many connections one address may have."""

from __future__ import annotations

import pytest

from anycable_tx.transports.addresses import Addresses
from tests.transports.event_reader import Reader
from tests.transports.support import Cable


def upgrade(made: Cable, address: str, **headers: str):
    client = made.connect(peer=(address, 40000))
    return client, client.upgrade(**headers).status


def test_beyond_the_limit_an_upgrade_is_answered_429_until_one_of_them_ends(cable):
    made = cable(max_conn_per_address=2)
    first, _ = upgrade(made, "192.0.2.7")
    assert upgrade(made, "192.0.2.7")[1] == 101
    refused = made.connect(peer=("192.0.2.7", 40000))
    answer = refused.upgrade()
    assert (answer.status, answer.body) == (429, b"Too Many Requests\n")
    assert refused.ended
    assert made.metrics.value("refused_connections_total", "too many connections of one address") == 1
    assert upgrade(made, "192.0.2.8")[1] == 101
    first.sock.close()
    made.run()
    assert upgrade(made, "192.0.2.7")[1] == 101
    assert upgrade(made, "192.0.2.7")[1] == 429


def test_health_answers_an_address_with_too_many_connections(cable):
    made = cable(max_conn_per_address=1)
    upgrade(made, "192.0.2.7")
    assert made.connect(peer=("192.0.2.7", 40000)).get("/health").status == 200


def test_behind_a_trusted_proxy_the_clients_are_told_apart(cable):
    made = cable(max_conn_per_address=1, trusted_proxies=("192.0.2.0/24",))
    clients = [("203.0.113.5", 101), ("203.0.113.6", 101), ("203.0.113.5", 429)]
    for client, status in clients:
        assert upgrade(made, "192.0.2.7", X_Forwarded_For=client)[1] == status


def test_nobody_else_can_choose_the_address_that_counts(cable):
    made = cable(max_conn_per_address=1)
    assert upgrade(made, "192.0.2.7", X_Forwarded_For="203.0.113.5")[1] == 101
    assert upgrade(made, "192.0.2.7", X_Forwarded_For="203.0.113.6")[1] == 429


def test_nothing_is_kept_of_addresses_without_connections(cable):
    made = cable(max_conn_per_address=1)
    client, _ = upgrade(made, "192.0.2.7")
    assert upgrade(made, "192.0.2.7")[1] == 429
    assert len(made.factory.addresses) == 1
    client.sock.close()
    made.run()
    assert len(made.factory.addresses) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
    ],
)
def test_an_ipv6_network_is_one_address(one, other, same):
    addresses = Addresses(1)
    assert addresses.take(one) is not None
    assert (addresses.take(other) is None) is same


def test_what_is_no_address_is_not_limited():
    addresses = Addresses(1)
    names = [addresses.take("") for _ in range(3)]
    assert None not in names
    for name in names:
        addresses.release(name)
    assert len(addresses) == 0


def test_event_streams_and_websockets_count_together(cable):
    made = cable(max_conn_per_address=2, sse=True)
    first = Reader(made, stream="chat", client=made.connect(peer=("192.0.2.7", 40000)))
    assert first.status == 200
    assert upgrade(made, "192.0.2.7")[1] == 101
    assert upgrade(made, "192.0.2.7")[1] == 429
    refused = Reader(made, stream="chat", client=made.connect(peer=("192.0.2.7", 40000)))
    [event] = refused.events()
    assert event.json == {"type": "disconnect", "reason": "too_many_connections_of_one_address", "reconnect": True}
    assert made.metrics.value("sse_refusals_total", "too many connections of one address") == 1
    first.client.sock.close()
    made.run()
    assert upgrade(made, "192.0.2.7")[1] == 101
