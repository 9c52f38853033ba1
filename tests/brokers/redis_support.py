"""Redis brokers on real servers, with a reactor whose time is skipped, and words to talk to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from anycable_tx.brokers.redis import RedisBroker
from anycable_tx.cable.messages import StreamMessage
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.redis import wire
from anycable_tx.redis.client import shared
from anycable_tx.testing.broker_conformance import SETTINGS, Bench
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.redis_servers import Cluster, RedisServer, redis_server
from tests.rpc.http_support import RealReactor

REDIS: dict[str, Any] = {
    "redis_sentinels": (),
    "redis_sentinel_discovery_interval": 30.0,
    "redis_keepalive_interval": 1e9,  # the server's time, which is not skipped, is not looked at again
    "redis_tls_verify": False,
    "redis_tls_ca_cert_path": "",
    "redis_tls_client_cert_path": "",
    "redis_tls_client_key_path": "",
    "redis_disable_cache": False,
    "redis_min_replicas": 0,
    "redis_verbatim_channels": False,
}


class Made(NamedTuple):
    """A started broker, its node, what it hands to the bus, its client and its metrics."""

    broker: RedisBroker
    node: RecordingNode
    messages: list[StreamMessage]
    redis: Any
    metrics: Metrics

    @property
    def bench(self) -> Bench:
        return Bench(self.broker, self.node, self.messages)


class Place(Protocol):
    """Where brokers keep their data."""

    @property
    def url(self) -> str: ...

    def ask(self, *args: Any) -> Any: ...


class ClusterPlace:
    """A cluster: what is asked is asked of every master."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = ",".join(each.url for each in cluster.masters)

    def ask(self, *args: Any) -> list[Any]:
        return [each.ask(*args) for each in self.cluster.masters]


@contextmanager
def place(kind: str) -> Iterator[RedisServer | ClusterPlace]:
    """A running ``redis``, ``valkey`` or ``cluster``."""
    if kind == "cluster":
        with Cluster() as cluster:
            yield ClusterPlace(cluster)
    else:
        with redis_server(kind=kind) as server:
            yield server


class Brokers:
    """Makes brokers on *server*, one node each, and turns the *reactor* for them."""

    def __init__(self, server: Place, reactor: RealReactor) -> None:
        self.server = server
        self.reactor = reactor
        self.made: list[Made] = []

    def make(self, *, sweeps: bool = False, **settings: Any) -> Made:
        """A broker of another node. Unless it *sweeps* by itself it does so in ``advance`` and ``skip`` only.

        Its clock follows the reactor's, but begins with the server's, of which no time was skipped.
        """
        node, metrics = RecordingNode(), Metrics()
        context = ProviderContext(
            {**SETTINGS, **REDIS, "redis_url": self.server.url, **settings}, self.reactor, node, metrics
        )
        messages: list[StreamMessage] = []
        made = Made(RedisBroker(context), node, messages, shared(context), metrics)
        self.made.append(made)
        self.run(made.broker.start())
        if not sweeps:  # a command that is under way when time is skipped would be given up
            made.broker._loops[0].stop()
        return made

    def listen(self, made: Made, *channels: str) -> None:
        """Let *made* hear what is published to *channels*."""

        def receive(channel: bytes, payload: bytes) -> None:
            message = wire.decode(channel, payload)
            assert isinstance(message, StreamMessage)
            made.messages.append(message)

        subscriber = made.redis.subscriber(receive, up=lambda: None, down=lambda: None)
        self.run(subscriber.subscribe(channels))

    def run(self, awaitable: Any) -> Any:
        """The result of *awaitable*."""

        async def work() -> Any:
            return await awaitable

        return self.reactor.result(work())

    def settle(self, made: Made, count: int) -> None:
        """Until so many messages came from the bus."""
        self.reactor.until(lambda: len(made.messages) >= count)

    def advance(self, seconds: float, *, without: Made | None = None) -> None:
        """Let time pass in steps of a second, and every broker but *without* do what it does meanwhile."""
        while seconds > 0:
            step = min(seconds, 1.0)
            self.reactor.pass_time(step)
            seconds -= step
            self.sweep(without)

    def skip(self, seconds: float) -> None:
        """Let time pass at once."""
        self.reactor.pass_time(seconds)
        self.sweep(None)

    def sweep(self, without: Made | None) -> None:
        for made in self.made:
            if made is not without:
                self.run(made.broker.sweep())

    def kill(self, made: Made) -> None:
        """Its process is gone: it says and does nothing any more."""
        self.made.remove(made)
        made.broker._loops[1].stop()
        self.run(made.redis.stop())

    def close(self) -> None:
        for made in self.made:
            self.run(made.broker.stop())


@contextmanager
def brokers(server: Place) -> Iterator[Brokers]:
    """Brokers on *server*, which is empty to begin with."""
    server.ask("FLUSHALL")
    reactor = RealReactor()
    made = Brokers(server, reactor)
    try:
        yield made
    finally:
        made.close()
        reactor.close()
