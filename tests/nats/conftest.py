"""A reactor, real servers, and clients of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from anycable_tx.metrics import Metrics
from anycable_tx.nats.client import Client
from anycable_tx.testing.nats_servers import KINDS, NatsServer
from tests.nats.support import SETTINGS, Kept
from tests.rpc.http_support import RealReactor

Make = Callable[..., Kept]


@pytest.fixture
def reactor() -> Iterator[RealReactor]:
    reactor = RealReactor()
    yield reactor
    reactor.close()


@pytest.fixture
def make(reactor: RealReactor) -> Iterator[Make]:
    """Makes started clients; at the end they are stopped, and nothing may be left of them."""
    made: list[Kept] = []

    def make(*servers: str, started: bool = True, **settings: Any) -> Kept:
        metrics = Metrics()
        client = Client({**SETTINGS, "nats_servers": servers, **settings}, reactor, metrics)
        made.append(Kept(client, reactor, metrics))
        if started:
            made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()
    reactor.until(reactor.at_rest)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    """A server that every test of a module may use, and none may break."""
    with NatsServer(kind=request.param) as server:
        yield server


@pytest.fixture
def own() -> Iterator[NatsServer]:
    """A server of one test."""
    with NatsServer(jetstream=False) as server:
        yield server
