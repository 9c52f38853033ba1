"""NATS brokers on real servers, with a reactor whose time is skipped, and words to talk to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from time import time
from typing import Any, NamedTuple

import pytest

from anycable_tx.brokers.nats import NatsBroker
from anycable_tx.cable.messages import StreamMessage
from anycable_tx.cable.rules import Rules
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.nats import wire
from anycable_tx.nats.api import Message, Nats
from anycable_tx.nats.client import shared
from anycable_tx.nats.jetstream import JetStream, Stored
from anycable_tx.nats.names import Names
from anycable_tx.testing.broker_conformance import SETTINGS, Bench
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.nats_servers import KINDS
from tests.nats.support import SETTINGS as NATS
from tests.rpc.http_support import RealReactor

#: For the tests of what all servers have to have in common; the rest is what the broker makes of it.
on_all_servers = pytest.mark.parametrize("server", KINDS, indirect=True)


class Skips:
    """The time at servers whose own cannot be skipped: what they say is put right by what was skipped up to then."""

    def __init__(self) -> None:
        self._skips: list[tuple[float, float]] = []
        self.total = 0.0

    def skip(self, seconds: float) -> None:
        self.total += seconds
        self._skips.append((time(), self.total))

    def now(self) -> float:
        return time() + self.total

    def shifted(self, moment: float) -> float:
        return moment + max((total for when, total in self._skips if when <= moment), default=0.0)


class SkippingJetStream(JetStream):
    """Tells the times of messages as if time that was skipped had passed at the servers too."""

    def __init__(self, nats: Nats, skips: Skips) -> None:
        super().__init__(nats)
        self._skips = skips

    async def last(self, *args: Any, **options: Any) -> Stored | None:
        return self._shifted(await super().last(*args, **options))

    async def next(self, *args: Any, **options: Any) -> Stored | None:
        return self._shifted(await super().next(*args, **options))

    async def read(self, *args: Any, **options: Any) -> list[Stored]:
        return [each._replace(time=self._skips.shifted(each.time)) for each in await super().read(*args, **options)]

    def _shifted(self, stored: Stored | None) -> Stored | None:
        return stored and stored._replace(time=self._skips.shifted(stored.time))


class Made(NamedTuple):
    """A started broker, its node, what it hands to the bus, its client and its metrics."""

    broker: NatsBroker
    node: RecordingNode
    messages: list[StreamMessage]
    nats: Nats
    metrics: Metrics
    settings: dict[str, Any]

    @property
    def bench(self) -> Bench:
        return Bench(self.broker, self.node, self.messages)


class Brokers:
    """Makes brokers on the servers at *urls*, one node each, and turns the *reactor* for them.

    They have a prefix of their own, so that they find nothing there.
    """

    def __init__(self, urls: tuple[str, ...], reactor: RealReactor) -> None:
        self.urls = urls
        self.reactor = reactor
        self.prefix = f"t{token_hex(4)}"
        self.names = Names(self.prefix)
        self.skips = Skips()
        self.made: list[Made] = []

    def make(self, *, start: bool = True, sweeps: bool = False, **settings: Any) -> Made:
        """A broker of another node. Unless it *sweeps* by itself it does so in ``advance`` and ``skip`` only."""
        node, metrics = RecordingNode(), Metrics()
        own = {"nats_servers": self.urls, "nats_prefix": self.prefix}
        context = ProviderContext({**SETTINGS, **NATS, **own, **settings}, self.reactor, node, metrics)
        broker = NatsBroker(context, self.skips.now, lambda nats: SkippingJetStream(nats, self.skips))
        made = Made(broker, node, [], shared(context), metrics, dict(context.settings))
        self.made.append(made)
        if start:
            self.run(broker.start())
            if not sweeps:  # a request that is under way when time is skipped would be given up
                for loop in broker._loops:
                    loop.stop()
        return made

    def listen(self, made: Made, *streams: str) -> None:
        """Let *made* hear what the bus brings of *streams*."""
        settings = made.settings
        rules = Rules(settings["broker_rules"], settings["history_limit"], settings["history_ttl"])
        for stream in streams:
            kind = rules.rule_for(stream).name

            def receive(message: Message, stream: str = stream, kind: str = kind) -> None:
                made.messages.append(wire.live_message(self.names, kind, stream, message, self.skips.now()))

            self.run(made.nats.subscribe(self.names.live(kind, stream), receive))

    def run(self, awaitable: Any, patience: float = 20.0) -> Any:
        """The result of *awaitable*."""

        async def work() -> Any:
            return await awaitable

        return self.reactor.result(work(), patience)

    def settle(self, made: Made, count: int) -> None:
        """Until so many messages came from the bus."""
        self.reactor.until(lambda: len(made.messages) >= count)

    def skip(self, seconds: float) -> None:
        """Let time pass at once, and every broker do what it does meanwhile."""
        self.skips.skip(seconds)
        self.reactor.pass_time(seconds)
        self.sweep()

    def advance(self, seconds: float, *, without: Made | None = None) -> None:
        """Let time pass in steps of a second, and every broker but *without* do what it does meanwhile."""
        while seconds > 0:
            step = min(seconds, 1.0)
            self.skips.skip(step)
            self.reactor.pass_time(step)
            seconds -= step
            self.sweep(without)

    def sweep(self, without: Made | None = None) -> None:
        for made in self.made:
            if made is not without:
                self.run(made.broker.sweep())

    def kill(self, made: Made) -> None:
        """Its process is gone: it says and does nothing any more."""
        self.made.remove(made)
        for loop in made.broker._loops:
            if loop.running:
                loop.stop()
        self.run(made.nats.stop())

    def close(self) -> None:
        for made in self.made:
            with suppress(BrokerUnavailable):
                self.run(made.broker.stop())


@contextmanager
def brokers(*urls: str) -> Iterator[Brokers]:
    """Brokers on the servers at *urls*."""
    reactor = RealReactor()
    made = Brokers(urls, reactor)
    try:
        yield made
    finally:
        made.close()
        reactor.close()
