"""A memory broker with a clock that stands still, and words to talk to it."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.task import Clock

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.brokers.memory_streams import MAX_COUNTERS, MAX_IDS
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.testing.broker_conformance import SETTINGS
from anycable_tx.testing.fakes import RecordingNode, RecordingPubSub
from anycable_tx.testing.sync import result_of

#: The Unix time at the clock's second 0.
WALL = 1_700_000_000.0


class Made(NamedTuple):
    """A broker, what it was given, and the settings to make another like it."""

    broker: MemoryBroker
    node: RecordingNode
    bus: RecordingPubSub
    metrics: Metrics
    clock: Clock


def make_broker(
    clock: Clock,
    *,
    wall: float = WALL,
    start: bool = True,
    max_counters: int = MAX_COUNTERS,
    max_ids: int = MAX_IDS,
    bus: RecordingPubSub | None = None,
    **settings: Any,
) -> Made:
    """A started memory broker; *wall* is the Unix time at the clock's second 0."""
    node, bus, metrics = RecordingNode(), bus or RecordingPubSub(), Metrics()
    context = ProviderContext({**SETTINGS, **settings}, clock, node, metrics, pubsub=bus)
    broker = MemoryBroker(context, lambda: wall + clock.seconds(), max_counters, max_ids)
    if start:
        result_of(broker.start())
    return Made(broker, node, bus, metrics, clock)
