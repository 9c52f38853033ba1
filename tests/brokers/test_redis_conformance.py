"""The Redis broker keeps every guarantee a broker makes, on the oldest Redis, on a new Valkey and in a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from anycable_tx.testing.broker_conformance import Bench, BrokerConformance
from tests.brokers.redis_support import Brokers, Place, brokers, place

#: Every stream the suite publishes to.
STREAMS = ("chat", "one", "two", "typing:1", "room/1", "room/1/2")


@pytest.fixture(scope="module", params=["redis", "valkey", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as running:
        yield running


class TestRedisBroker(BrokerConformance):
    brokers: Brokers

    @pytest.fixture(autouse=True)
    def _brokers(self, server: Place) -> Iterator[None]:
        with brokers(server) as self.brokers:
            yield

    def make(self, **settings: Any) -> Bench:
        made = self.brokers.make(**settings)
        self.brokers.listen(made, *(f"ac:st:{name}" for name in STREAMS))
        return made.bench

    def publish(self, bench: Bench, stream: str = "chat", text: str = "{}", **fields: Any) -> Any:
        count = len(bench.messages)
        receipt = super().publish(bench, stream, text, **fields)
        if not receipt.duplicate:  # the bus is another connection
            self.brokers.settle(self.brokers.made[0], count + 1)
        return receipt

    def advance(self, seconds: float) -> None:
        self.brokers.skip(seconds)

    def run(self, awaitable: Any) -> Any:
        return self.brokers.run(awaitable)

    def wall(self) -> float:
        now: float = self.brokers.made[0].redis.now()
        return now
