"""Sockets that are inherited from a supervisor, and what it is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.supervisor import Notifier, inherited_sockets

#: Where the tests put descriptors: no others are there.
FIRST = 200


@pytest.fixture
def passed_on() -> Iterator[ExitStack]:
    """Closes what a test passed on and nobody took."""
    with ExitStack() as stack:
        yield stack


def pass_on(stack: ExitStack, number: int, descriptor: int) -> None:
    os.dup2(descriptor, FIRST + number)

    def close() -> None:
        try:
            os.close(FIRST + number)
        except OSError:
            assert number >= 0  # it was taken and closed

    stack.callback(close)


def announced(count: int, pid: int | None = None) -> dict[str, str]:
    return {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "a:b", "OTHER": "x"}


def test_listening_sockets_are_taken_over_once_and_not_passed_on(passed_on: ExitStack) -> None:
    environ = announced(2)
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        pass_on(passed_on, 0, one.fileno())
        pass_on(passed_on, 1, two.fileno())
        ports = [one.getsockname()[1], two.getsockname()[1]]
    sockets = inherited_sockets(environ, FIRST)
    with sockets[0], sockets[1]:
        assert [sock.getsockname()[1] for sock in sockets] == ports
        assert not any(sock.get_inheritable() for sock in sockets)
    assert environ == {"OTHER": "x"}
    assert inherited_sockets(environ, FIRST) == []


@pytest.mark.parametrize(
    "environ", [{}, announced(1, pid=1), {"LISTEN_PID": str(os.getpid())}, announced(0) | {"LISTEN_FDS": "many"}]
)
def test_without_an_announcement_for_this_process_nothing_is_taken(environ: dict[str, str]) -> None:
    assert inherited_sockets(environ, FIRST) == []
    assert "LISTEN_FDS" not in environ


def test_a_descriptor_that_is_no_listening_tcp_socket_is_named(passed_on: ExitStack, tmp_path: Path) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as deaf, unix, open(os.devnull) as file:
        pass_on(passed_on, 0, good.fileno())
        for bad, reason in ((deaf, "is not accepted"), (unix, "is not accepted"), (file, "is no socket")):
            pass_on(passed_on, 1, bad.fileno())
            with pytest.raises(ConfigurationError, match=rf"LISTEN_FDS: descriptor {FIRST + 1} {reason}"):
                inherited_sockets(announced(2), FIRST)
            pass_on(passed_on, 0, good.fileno())  # the good one was closed with the refusal


@pytest.mark.parametrize("abstract", [False, True], ids=["in a directory", "abstract"])
def test_the_supervisor_is_told(abstract: bool, tmp_path: Path) -> None:
    name = f"anycable-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("\0" + name if abstract else name)
        Notifier({"NOTIFY_SOCKET": "@" + name if abstract else name})("READY=1")
        assert supervisor.recv(100) == b"READY=1"


def test_a_supervisor_that_does_not_listen_is_none(tmp_path: Path) -> None:
    Notifier({})("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})("READY=1")
