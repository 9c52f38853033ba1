"""A NATS server for the tests of what brokers keep in it. Tests of other stores have servers of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anycable_tx.testing.nats_servers import KINDS, NatsServer
from tests.brokers.nats_support import Brokers, Made, brokers


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    with NatsServer(kind=getattr(request, "param", KINDS[0])) as running:
        yield running


@pytest.fixture
def bench(server: NatsServer) -> Iterator[Brokers]:
    with brokers(server.url) as made:
        yield made


@pytest.fixture
def pair(bench: Brokers) -> tuple[Made, Made]:
    """Two nodes that have known each other for a while."""
    pair = bench.make(), bench.make()
    bench.advance(4)
    return pair
