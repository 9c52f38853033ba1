"""What a broker under test is given and asked with: the base of the broker conformance suite."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import pytest

from anycable_tx.cable.messages import History, HistoryRequest, Position, Publication, Receipt, StreamMessage
from anycable_tx.errors import HistoryRefused
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.sync import result_of

__all__ = ["SETTINGS", "Bench", "BrokerTests"]

T = TypeVar("T")

#: What ``make`` is to configure, unless a test asks for something else. Times are in seconds.
SETTINGS: dict[str, Any] = {
    "history_limit": 5,
    "history_ttl": 60.0,
    "history_since_slack": 0.0,
    "sessions_ttl": 30.0,
    "presence_ttl": 10.0,
    "idempotency_ttl": 20.0,
    "broker_rules": (),
    "broker_snapshot": "",
}


class Bench(NamedTuple):
    """A started broker (IBroker), the node it was given, and the messages it handed to the bus so far."""

    broker: Any
    node: RecordingNode
    messages: list[StreamMessage]


class BrokerTests:
    """How to make the broker, run it and talk to it; ``make`` and ``advance`` are to be supplied."""

    def make(self, **settings: Any) -> Bench:
        """A new, empty, started broker with ``SETTINGS`` changed by *settings*."""
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        """Let time pass, and the broker do what it does meanwhile."""
        raise NotImplementedError

    def run(self, awaitable: Awaitable[T]) -> T:
        """The result of *awaitable*; override it for a broker that needs a reactor."""
        return result_of(awaitable)

    def wall(self) -> float:
        """The Unix time messages are stamped with."""
        return time.time()

    # -- words the tests are written in

    def publish(self, bench: Bench, stream: str = "chat", text: str = "{}", **fields: Any) -> Receipt:
        """Publish one message."""
        receipt: Receipt = self.run(bench.broker.publish(Publication(stream, text.encode(), **fields)))
        return receipt

    def fill(self, bench: Bench, count: int, stream: str = "chat") -> list[Position]:
        """Publish *count* messages 0, 1, ...; answers the position before the first and those of each."""
        positions = [self.tail(bench, stream)]
        for number in range(count):
            receipt = self.publish(bench, stream, str(number))
            positions.append(Position(receipt.epoch, receipt.offset))
        return positions

    def tail(self, bench: Bench, stream: str = "chat") -> Position:
        """The newest position of *stream*."""
        tail = self.run(bench.broker.tail(stream))
        assert isinstance(tail, Position)
        return tail

    def history(self, bench: Bench, position: Position | None, since: int = 0, stream: str = "chat") -> list[str]:
        """The texts a client with *position*, or with *since*, gets. Checks order and ``top`` by the way."""
        history: History = self.run(bench.broker.history(stream, HistoryRequest(position, since)))
        offsets = [message.offset for message in history.messages]
        assert offsets == sorted(set(offsets))
        assert history.top == self.tail(bench, stream)
        assert all(message.epoch == history.top.epoch for message in history.messages)
        return [message.payload.decode() for message in history.messages]

    def refusal(self, bench: Bench, position: Position | None, since: int = 0, stream: str = "chat") -> str:
        """Why the history is refused."""
        with pytest.raises(HistoryRefused) as refused:
            self.history(bench, position, since, stream)
        return refused.value.reason

    def join(self, bench: Bench, sid: str, id: str, info: Any = None, stream: str = "room") -> bool:
        """Join a presence stream."""
        changed: bool = self.run(bench.broker.join(stream, sid, id, info))
        return changed

    def ids(self, bench: Bench, stream: str = "room") -> list[str]:
        """The ids present on *stream*."""
        return sorted(member.id for member in self.run(bench.broker.members(stream)))
