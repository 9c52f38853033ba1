"""The listening ports: which there are, what they inherit, and what stops a start."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.testing.processes import free_port
from anycable_tx.transports.listeners import direct_path_applies
from tests.transports.support import (
    BASE,
    CLOSE,
    EXTENDED,
    HandReactor,
    identifier,
    masked,
    upgrade_request,
)

RESTART = {"type": "disconnect", "reason": "server_restart", "reconnect": True}


def accepted(made: Any) -> socket.socket:
    """The server's socket of the only client."""
    [session] = made.node.sessions
    transport = session.outlet.transport
    return transport.socket if made.direct else transport.real.socket


@pytest.mark.statement("CO-25")
def test_equal_port_numbers_share_a_socket(cable):
    made = cable(port=free_port())
    assert made.listen() == [made.server.settings["port"]]
    subscriber, publisher = made.dial(made.server.settings["port"]), made.dial(made.server.settings["port"])
    subscriber.upgrade()
    assert subscriber.messages()
    subscriber.subscribe(identifier())
    publisher.send(
        b"POST /_broadcast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key\r\nContent-Length: 28\r\n\r\n"
        b'{"stream":"chat","data":"1"}'
    )
    assert publisher.head().status == 201
    subscriber.until(bool)
    assert subscriber.payloads() == [1]


@pytest.mark.statement("CO-25")
def test_another_port_number_has_a_socket_of_its_own(cable):
    main, other = free_port(), free_port()
    made = cable(port=main, http_broadcast_port=other)
    assert made.listen() == [main, other]
    request = {"method": "POST", "Content_Length": "0", "Authorization": "Bearer key"}
    assert made.dial(main).get("/_broadcast", **request).status == 404
    assert made.dial(other).get("/health").status == 404
    client = made.dial(other)
    assert client.upgrade().status == 404


def test_clients_over_tcp_are_served(cable):
    made = cable()
    [port] = made.listen()
    clients = [made.dial(port) for _ in range(5)]
    for client in clients:
        assert client.upgrade().status == 101
        client.messages()
        client.subscribe(identifier())
    for n in range(3):
        made.publish("chat", "x" * 100_000 * n)
    for client in clients:
        client.until(lambda received: len(received) > 300_000)
        assert [len(payload) for payload in client.payloads()] == [0, 100_000, 200_000]


def test_a_reset_by_a_client_is_the_end_of_its_session_only(cable):
    made = cable()
    [port] = made.listen()
    clients = [made.dial(port) for _ in range(4)]
    for client in clients:
        client.upgrade()
        client.messages()
        client.subscribe(identifier())
    for client in clients[::2]:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.sock.close()
    made.publish("chat", 1)
    made.until(lambda: len(made.node.sessions) == 2)
    for client in clients[1::2]:
        client.until(bool)
        assert client.payloads() == [1]


def test_small_frames_leave_at_once_and_dead_peers_are_noticed(cable):
    made = cable()
    [port] = made.listen()
    made.dial(port).upgrade()
    sock = accepted(made)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15


@pytest.mark.statement("CO-26")
def test_an_occupied_port_is_named(cable):
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        made = cable(host="localhost", port=port)
        with pytest.raises(ConfigurationError, match=rf"localhost:{port}.*in use"):
            made.listen()


@pytest.mark.statement("CO-26")
def test_an_address_that_is_not_ours_is_named(cable):
    made = cable(host="192.0.2.1", port=8080)
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:8080"):
        made.listen()


def test_closed_ports_accept_nobody_and_leave_clients_alone(cable):
    made = cable()
    [port] = made.listen()
    client = made.dial(port)
    client.upgrade()
    client.messages()
    made.close_ports()
    with pytest.raises(ConnectionRefusedError):
        made.dial(port)
    client.send(b"\x81\x92\0\0\0\0" + b'{"command":"ping"}')
    client.until(bool)
    assert client.messages() == [{"type": "pong"}]


@pytest.mark.statement("CP-137", "CP-138")
def test_at_a_stop_every_client_is_told_and_no_new_one_is_let_in(cable):
    made = cable(whole=True, shutdown_timeout=5)
    [port] = made.listen()
    base, extended = made.dial(port), made.dial(port)
    for client, protocol in ((base, BASE), (extended, EXTENDED)):
        assert client.upgrade(protocol=protocol).status == 101
        client.messages()
        client.subscribe(identifier())
    early = made.dial(port)
    early.send(b"GET ")
    made.publish("chat", 1)
    stopped = Deferred.fromCoroutine(made.server.stop())
    made.wait(0.2)
    for client, last in ((base, [RESTART]), (extended, [])):
        messages, code, text, _ = client.farewell()
        assert messages.pop(0)["message"] == 1
        assert (messages, code, text) == (last, 1001, "Server restart")
    with pytest.raises(ConnectionRefusedError):
        made.dial(port)
    early.send(upgrade_request()[4:])
    assert early.head().status == 503
    assert not stopped.called
    for client in (base, extended):
        client.send(masked(b"\x03\xe9", opcode=CLOSE))
        client.until(lambda received: False)
    made.wait(0.2)
    assert stopped.called


@pytest.mark.statement("CP-137")
def test_a_client_that_does_not_answer_does_not_hold_up_the_stop(cable):
    made = cable(whole=True, shutdown_timeout=10)
    [port] = made.listen()
    client = made.dial(port)
    client.upgrade()
    assert made.stop() < 3
    assert client.farewell()[1] == 1001


@pytest.mark.parametrize(
    ("reactor", "settings", "applies"),
    [
        (HandReactor(), {}, True),
        (HandReactor(), {"fast_path": False}, False),
        (HandReactor(), {"ssl_cert": "c.pem", "ssl_key": "k.pem"}, False),
        (Clock(), {}, False),
    ],
)
def test_the_direct_path_is_used_where_it_applies(reactor, settings, applies, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    found = {**defaults(), **settings}
    assert direct_path_applies(found, reactor) is applies
    monkeypatch.setattr("sys.platform", "darwin")
    assert not direct_path_applies(found, reactor)


# -- inherited sockets


def test_sockets_that_listen_already_take_the_place_of_a_port(cable):
    one = socket.create_server(("127.0.0.1", 0))
    port = one.getsockname()[1]
    two = socket.create_server(("::1", port), family=socket.AF_INET6)
    made = cable(port=port, sockets=[one, two])
    assert made.listen() == [port, port]
    for host in ("127.0.0.1", "::1"):
        client = made.dial(port, host)
        assert client.upgrade().status == 101
        assert client.messages()
    assert (one.fileno(), two.fileno()) == (-1, -1)
    sock = made.server.listeners._ports[0].socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_without_an_inherited_socket_is_opened(cable):
    other = free_port()
    inherited = socket.create_server(("127.0.0.1", 0))
    port = inherited.getsockname()[1]
    made = cable(port=port, http_broadcast_port=other, sockets=[inherited])
    assert made.listen() == [port, other]
    assert made.dial(other).get("/health").status == 404


def test_an_inherited_socket_that_nobody_would_accept_from_is_named(cable):
    stray, port = socket.create_server(("127.0.0.1", 0)), free_port()
    address = f"127.0.0.1:{stray.getsockname()[1]}"
    made = cable(port=port, sockets=[stray])
    with pytest.raises(ConfigurationError, match=f"port of the inherited socket {address}; the ports are {port}$"):
        made.listen()
    made.close_ports()
    assert stray.fileno() == -1
