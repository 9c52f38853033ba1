"""A bus between nodes that loses, repeats, reorders and delays, and a broker whose answers may take a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import implementer

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.cable.messages import (
    Claim,
    History,
    HistoryRequest,
    Position,
    Publication,
    Receipt,
    RemoteCommand,
    StreamMessage,
)
from anycable_tx.interfaces import IPubSub

if TYPE_CHECKING:
    from anycable_tx.node import Node

__all__ = ["Bus", "Gate", "LateBroker", "Port"]

T = TypeVar("T")


class Gate:
    """While it is shut answers wait here; each is let through by itself, in any order."""

    def __init__(self) -> None:
        self.shut = False
        #: A read that waits is made when it is let through, instead of before it waits.
        self.reads_late = False
        self.waiting: list[Deferred[None]] = []

    async def passed(self) -> None:
        """Done when the one who waits is let through."""
        if self.shut:
            deferred: Deferred[None] = Deferred()
            self.waiting.append(deferred)
            await deferred

    def let(self, which: int) -> None:
        """Let one of those who wait through."""
        if self.waiting:
            self.waiting.pop(which % len(self.waiting)).callback(None)

    def open(self) -> bool:
        """Let everybody through; was anybody waiting?"""
        self.shut, found = False, bool(self.waiting)
        while self.waiting:
            self.let(0)
        return found

    async def late(self, result: Awaitable[T]) -> T:
        """What was done at once is known later."""
        try:
            return await result
        finally:
            await self.passed()


class LateBroker:
    """A broker behind a network: what it is asked to do is done at once, its answer comes when the gate lets it."""

    stores = True

    def __init__(self, broker: MemoryBroker, gate: Gate) -> None:
        self._broker = broker
        self._gate = gate

    async def publish(self, publication: Publication) -> Receipt:
        """Publishers are not what is tested here."""
        return await self._broker.publish(publication)

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        if self._gate.reads_late:
            await self._gate.passed()
            return await read()
        return await self._gate.late(read())

    async def tail(self, stream: str) -> Position | None:
        """May be old news when it arrives."""
        return await self._read(lambda: self._broker.tail(stream))

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """May be old news when it arrives."""
        return await self._read(lambda: self._broker.history(stream, request))

    async def claim_session(self, sid: str, heir: str) -> Claim | None:
        """Claimed at once."""
        return await self._gate.late(self._broker.claim_session(sid, heir))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._broker, name)

        async def call(*args: Any) -> Any:
            return await self._gate.late(method(*args))

        return call


@implementer(IPubSub)
class Port:
    """One node's connection to the bus."""

    announcement = ""
    distributed = True

    def __init__(self, bus: Bus, node: Node, gate: Gate) -> None:
        self.node = node
        self.up = True
        self.inbox: list[StreamMessage | RemoteCommand] = []
        self.streams: set[str] = set()
        self._bus = bus
        self._gate = gate

    async def start(self) -> None:
        """Connected from the beginning."""

    async def stop(self) -> None:
        """Never stopped."""

    async def subscribe(self, stream: str) -> None:
        """In force when it is done, and no earlier."""
        await self._gate.passed()
        self.streams.add(stream)

    async def unsubscribe(self, stream: str) -> None:
        """At once."""
        self.streams.discard(stream)

    async def publish(self, message: StreamMessage) -> None:
        """The broker publishes for everybody."""
        self._bus.send(message)

    async def publish_command(self, command: RemoteCommand) -> None:
        """To every node."""
        self._bus.send(command)

    def take(self, which: int) -> None:
        """Something in the inbox arrives, not necessarily what was sent first."""
        if self.inbox:
            item = self.inbox.pop(which % len(self.inbox))
            if isinstance(item, StreamMessage):
                self.node.deliver(item)
            else:
                self.node.execute(item)

    def take_all(self) -> bool:
        """Everything arrives in order; was there anything?"""
        found = bool(self.inbox)
        while self.inbox:
            self.take(0)
        return found

    def drop(self, which: int) -> None:
        """A message is lost."""
        if self.inbox:
            del self.inbox[which % len(self.inbox)]

    def repeat(self, which: int) -> None:
        """A stored message will arrive twice; nobody could tell the second copy of a transient one."""
        if self.inbox:
            item = self.inbox[which % len(self.inbox)]
            if isinstance(item, StreamMessage) and item.offset:
                self.inbox.append(item)

    def lose(self) -> None:
        """Nothing arrives any more, not even what was under way."""
        self.up = False
        self.inbox.clear()
        self.node.bus_lost()

    def restore(self) -> None:
        """It is back."""
        self.up = True
        self.node.bus_restored()


class Bus:
    """Hands to every port what it subscribed to: at once, or when the port takes it while the bus lags."""

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self.lagging = False

    def send(self, item: StreamMessage | RemoteCommand) -> None:
        """To every port that is up."""
        for port in self.ports:
            if port.up and (isinstance(item, RemoteCommand) or item.stream in port.streams):
                port.inbox.append(item)
        if not self.lagging:
            self.flush()

    @property
    def busy(self) -> bool:
        """Is anything under way?"""
        return any(port.inbox for port in self.ports)

    def flush(self) -> bool:
        """Everything under way arrives; was there anything?"""
        return sum(port.take_all() for port in self.ports) > 0  # each of them, not only up to the first

    async def publish(self, message: StreamMessage) -> None:
        """What brokers call."""
        self.send(message)
