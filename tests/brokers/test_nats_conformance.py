"""The NATS broker keeps every guarantee a broker makes, on the newest server and on the oldest that is supported."""

from __future__ import annotations

from collections.abc import Iterator
from time import sleep
from typing import Any

import pytest

from anycable_tx.testing.broker_conformance import Bench, BrokerConformance
from anycable_tx.testing.nats_servers import KINDS, NatsServer
from tests.brokers.nats_support import Brokers, brokers

#: Every stream the suite publishes to.
STREAMS = ("chat", "one", "two", "typing:1", "room/1", "room/1/2")
#: Servers remember the ids of publications by their own time, which cannot be skipped: so much of it passes instead.
SCALE = 0.1


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    with NatsServer(kind=request.param) as running:
        yield running


@pytest.mark.statement("BR-68")
class TestNatsBroker(BrokerConformance):
    brokers: Brokers
    waits: bool

    @pytest.fixture(autouse=True)
    def _brokers(self, server: NatsServer, request: pytest.FixtureRequest) -> Iterator[None]:
        self.waits = "id_is_remembered" in request.node.name
        with brokers(server.url) as self.brokers:
            yield

    def make(self, **settings: Any) -> Bench:
        made = self.brokers.make(**{"idempotency_ttl": 20.0 * SCALE, **settings})
        self.brokers.listen(made, *STREAMS)
        return made.bench

    def publish(self, bench: Bench, stream: str = "chat", text: str = "{}", **fields: Any) -> Any:
        count = len(bench.messages)
        receipt = super().publish(bench, stream, text, **fields)
        if not receipt.duplicate:  # the bus is not the answer
            self.brokers.settle(self.brokers.made[0], count + 1)
        return receipt

    def advance(self, seconds: float) -> None:
        if self.waits:
            sleep(seconds * SCALE)
        self.brokers.skip(seconds)

    def run(self, awaitable: Any) -> Any:
        return self.brokers.run(awaitable)

    def wall(self) -> float:
        return self.brokers.skips.now()
