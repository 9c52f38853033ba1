"""What is counted about connections: what goes over them, and how each of them ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from anycable_tx.cable.messages import RemoteCommand
from tests.transports.event_reader import Reader
from tests.transports.support import CLOSE, EXTENDED, Cable, Client, command, identifier, masked


def ends(cable: Cable) -> dict[str, int]:
    """How connections ended, by reason."""
    return cable.metrics.counters()["closed_connections_total"]


@pytest.mark.statement("HE-11")
def test_pings_are_bytes_and_no_messages(cable):
    made = cable(ping_interval=1)
    client = made.client()
    before = made.metrics.value("server_msg_total"), made.metrics.value("data_sent_total")
    made.wait(5)
    pings = [frame.payload for frame in client.frames()]
    assert len(pings) >= 4
    assert made.metrics.value("server_msg_total") == before[0]
    assert made.metrics.value("data_sent_total") == before[1] + sum(map(len, pings))


@pytest.mark.parametrize("native", [False, True])
def test_what_clients_receive_is_what_was_counted(cable, native):
    made = cable(ping_interval=1, enable_native_pings=native)
    clients = [made.connect() for _ in range(3)]
    for client in clients:
        client.upgrade("/cable", EXTENDED)
        client.send(command("subscribe", identifier=identifier()))
    for n in range(10):
        made.publish("chat", "x" * n * 100)
        made.wait(0.3)
    clients[0].send(command("ping"))
    payloads = [f.payload for client in clients for f in client.frames() if f.opcode == 1]
    pings = [p for p in payloads if json.loads(p).get("type") == "ping"]
    assert pings
    assert made.metrics.value("server_msg_total") == len(payloads) - len(pings)
    assert made.metrics.value("data_sent_total") == sum(map(len, payloads))


def test_the_bytes_of_clients_are_counted(cable):
    made = cable()
    client = made.client()
    said = [command("ping"), masked("nonsense"), command("subscribe", identifier="?")]
    for frame in said:
        client.send(frame)
    client.messages()
    sizes = [len(frame) - 6 for frame in said]  # a header of two bytes, a mask of four
    assert made.metrics.value("data_rcvd_total") == sum(sizes)
    assert made.metrics.value("client_msg_total") == 2
    assert made.metrics.value("failed_client_msg_total", "malformed") == 1


def says_goodbye(client: Client) -> None:
    client.send(masked(b"\x03\xe8", opcode=CLOSE))


def hangs_up(client: Client) -> None:
    client.sock.close()


def breaks_the_protocol(client: Client) -> None:
    client.send(masked("x", rsv=2))


def says_too_much(client: Client) -> None:
    client.send(masked("x" * 70_000))


def is_silent(client: Client) -> None:
    client.cable.wait(10)


def is_sent_away(client: Client) -> None:
    client.cable.node.execute(
        RemoteCommand("disconnect", {"identifier": client.connection.session.identifiers, "reconnect": False})
    )


def is_let_go(client: Client) -> None:
    client.connection.session.disconnect(1001, "Server restart")


@pytest.mark.statement("P9")
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (says_goodbye, "client"),
        (hangs_up, "lost"),
        (breaks_the_protocol, "1002"),
        (says_too_much, "1009"),
        (is_silent, "no_pong"),
        (is_sent_away, "closed_remotely"),
        (is_let_go, "server_restart"),
    ],
)
def test_each_end_is_counted_once_with_its_reason(cable, end: Callable[[Client], Any], reason: str):
    made = cable(ping_interval=1, pong_timeout=2)
    client = made.client(EXTENDED)
    end(client)
    client.sock.close()
    made.until(lambda: made.reactor.turn() or not made.factory.connections)
    assert ends(made) == {reason: 1}


@pytest.mark.statement("P9")
def test_who_is_not_let_in_is_an_end_too(cable):
    made = cable(noauth=False, jwt_secret="s", enforce_jwt=True)
    client = made.connect()
    client.upgrade()
    assert client.farewell()[1] == 1000
    client.sock.close()
    made.run()
    assert ends(made) == {"auth_failed": 1}
    assert made.metrics.value("failed_auths_total") == 1


def test_a_request_that_is_no_client_is_no_end(cable):
    made = cable()
    assert made.connect().get("/health").status == 200
    assert made.connect().upgrade("/nowhere").status == 404
    for client in made.clients:
        client.sock.close()
    made.run()
    assert ends(made) == {}


def stalled(made: Cable) -> Client:
    """A client that reads nothing, for whom frames wait."""
    client = made.subscriber(buffer=1)
    while not client.connection.transport.backlog:
        made.publish("chat", "x" * 10_000)
        made.run()
    return client


@pytest.mark.statement("P9")
def test_frames_that_wait_for_a_lost_connection_are_a_failed_write(cable):
    made = cable(ws_max_pending_size=0, ping_interval=100)
    client, other = stalled(made), made.client()
    for each in (client, other):
        each.sock.close()
    made.until(lambda: made.reactor.turn() or not made.factory.connections)
    assert made.metrics.value("failed_server_msg_total") == 1
    assert made.metrics.value("timeout_server_msg_total") == 0
    assert ends(made) == {"lost": 2}


@pytest.mark.statement("P9")
def test_a_reader_that_is_dropped_for_taking_nothing_is_a_write_that_timed_out(cable):
    made = cable(ws_max_pending_size=0, ws_write_timeout=2, ping_interval=100)
    stalled(made)
    made.wait(4.1)
    assert made.metrics.value("failed_server_msg_total") == 1
    assert made.metrics.value("timeout_server_msg_total") == 1
    assert ends(made) == {"write_timeout": 1}


@pytest.mark.statement("P9")
def test_a_reader_that_is_too_slow_ends_for_that(cable):
    made = cable(ws_max_pending_size=20_000, ping_interval=100)
    client = stalled(made)
    while not made.metrics.value("disconnected_slow_clients_total"):
        made.publish("chat", "x" * 10_000)
        made.run()
    client.sock.close()
    made.until(lambda: made.reactor.turn() or not made.factory.connections)
    assert ends(made) == {"too_slow": 1}


def test_event_streams_are_counted_like_sockets(cable):
    made = cable(sse=True, ping_interval=1)
    reader, refused = Reader(made, stream="chat"), Reader(made, channel="Nope")
    assert (reader.status, refused.status) == (200, 400)
    made.publish("chat", "one")
    made.wait(3)
    events = reader.read()
    pings = [event for event in events if event.type == "ping"]
    assert pings
    sent = made.metrics.value("server_msg_total")
    assert sent >= len(events) - len(pings)
    made.wait(3)
    assert made.metrics.value("server_msg_total") == sent
    reader.client.sock.close()
    made.run()
    assert ends(made) == {"refused": 1, "lost": 1}
