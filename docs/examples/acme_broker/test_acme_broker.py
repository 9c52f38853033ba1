"""The broker keeps what every broker promises. Run with pytest."""

from acme_broker import AcmeBroker
from twisted.internet.task import Clock

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.testing.broker_conformance import SETTINGS, Bench, BrokerConformance
from anycable_tx.testing.fakes import RecordingNode, RecordingPubSub
from anycable_tx.testing.sync import result_of


class TestAcmeBroker(BrokerConformance):
    def make(self, **settings) -> Bench:
        self.clock, node, bus = Clock(), RecordingNode(), RecordingPubSub()
        context = ProviderContext({**SETTINGS, **settings}, self.clock, node, Metrics(), pubsub=bus)
        broker = AcmeBroker(MemoryBroker(context, self.wall), "tested")
        result_of(broker.start())
        return Bench(broker, node, bus.messages)

    def advance(self, seconds: float) -> None:
        self.clock.pump([1.0] * int(seconds))

    def wall(self) -> float:
        return 1_700_000_000 + self.clock.seconds()


def test_the_label_is_announced() -> None:
    broker = TestAcmeBroker().make().broker
    assert broker.announcement.startswith("Using the Acme broker tested: Using in-memory broker")
