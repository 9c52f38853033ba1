"""The official clients are installed once, from the lock file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import ProxyProcess, Publisher, Server, server
from tests.e2e.node import Node, install

#: More history than any test publishes, so that a refusal is never right.
RESUMABLE = ("--presets=broker", "--public", "--history_limit=5000", "--broker_snapshot=snapshot")


@pytest.fixture(scope="session")
def official_clients() -> None:
    """@anycable/core, @anycable/web and @rails/actioncable are there."""
    install()


@pytest.fixture
def log() -> EventLog:
    """What publishers and clients saw, for the checker."""
    return EventLog()


@pytest.fixture
def node(official_clients: None, log: EventLog) -> Iterator[Node]:
    """A Node process for official clients."""
    with Node(log) as process:
        yield process


@pytest.fixture
def cable() -> Iterator[Server]:
    """A server with history and resumable sessions, open to everybody."""
    with server(*RESUMABLE) as running:
        yield running


@pytest.fixture
def proxy(cable: Server) -> Iterator[ProxyProcess]:
    """A proxy in front of the server, to cut connections."""
    with ProxyProcess(cable.port) as process:
        yield process


@pytest.fixture
def publisher(cable: Server, log: EventLog) -> Iterator[Publisher]:
    """Publishes to the server."""
    with cable.publisher(log=log) as connection:
        yield connection
