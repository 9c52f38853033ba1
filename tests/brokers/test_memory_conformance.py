"""The memory broker keeps every guarantee a broker makes."""

from typing import Any

from twisted.internet.task import Clock

from anycable_tx.testing.broker_conformance import Bench, BrokerConformance
from tests.brokers.support import WALL, make_broker


class TestMemoryBroker(BrokerConformance):
    def make(self, **settings: Any) -> Bench:
        self.clock = Clock()
        made = make_broker(self.clock, **settings)
        return Bench(made.broker, made.node, made.bus.messages)

    def advance(self, seconds: float) -> None:
        self.clock.pump([1.0] * int(seconds))

    def wall(self) -> float:
        return WALL + self.clock.seconds()
