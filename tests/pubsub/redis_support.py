"""Parts that live on Redis, on a real server and a reactor that a test turns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred

from anycable_tx.config.declarations import redis as options
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.redis_servers import RedisServer, redis_server
from tests.rpc.http_support import RealReactor

DEFAULTS = {
    option.name: option.default
    for option in (*options.PUBSUB, *options.STREAM_BROADCASTER, *options.LEGACY_BROADCASTER)
}


class Place:
    """One reactor, one server, and the parts made for a test; all of them are stopped at its end."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.reactor = RealReactor()
        self.metrics = Metrics()
        self.parts: list[Any] = []

    def context(self, node: Any, **settings: Any) -> ProviderContext:
        """For parts of *node*."""
        return ProviderContext(
            {**DEFAULTS, "redis_url": self.server.url, **settings}, self.reactor, node, self.metrics
        )

    def make(self, factory: Callable[[ProviderContext], Any], node: Any = None, **settings: Any) -> Any:
        """A part that is to be started; its node is its attribute ``node``."""
        part = factory(self.context(node or RecordingNode(), **settings))
        part.node = part._node
        self.parts.append(part)
        return part

    def start(self, factory: Callable[[ProviderContext], Any], node: Any = None, **settings: Any) -> Any:
        """A started part."""
        part = self.make(factory, node, **settings)
        self.result(part.start())
        return part

    def stop(self, part: Any) -> None:
        """Stop it now."""
        self.parts.remove(part)
        self.result(part.stop(), 20)

    def abandon(self, part: Any) -> None:
        """Let it do nothing more, as if its process had been killed; what it left in Redis stays."""
        self.parts.remove(part)
        part.cancel_all()
        tenure = getattr(part, "_tenure", None)
        if tenure is not None:
            tenure.end()
            tenure.cancel_all()
            part._done.cancel_all()
        self.result(part._redis.stop())

    def result(self, work: Coroutine[Any, Any, Any] | Deferred[Any], patience: float = 10.0) -> Any:
        """What *work* comes to."""
        return self.reactor.result(work, patience)

    def until(self, condition: Callable[[], Any], patience: float = 10.0) -> None:
        """Turn the reactor until *condition* holds."""
        self.reactor.until(condition, patience)

    def turn(self, seconds: float = 0.05) -> None:
        """Turn the reactor for a while."""
        end = self.reactor.loop.time() + seconds
        self.reactor.until(lambda: self.reactor.loop.time() >= end)

    def close(self) -> None:
        """Stop everything; nothing may be left."""
        for part in list(self.parts):
            self.stop(part)
        try:
            self.until(self.reactor.at_rest, 3)
        finally:
            self.reactor.close()


@contextmanager
def place(server: RedisServer) -> Iterator[Place]:
    """A Place on an empty server."""
    server.ask("FLUSHALL")
    place = Place(server)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def servers() -> Iterator[Callable[[str], RedisServer]]:
    """Running servers by their kind, started when first asked for."""
    running: dict[str, Any] = {}

    def get(kind: str) -> RedisServer:
        if kind not in running:
            manager = redis_server(kind=kind)
            running[kind] = manager, manager.__enter__()
        server: RedisServer = running[kind][1]
        return server

    try:
        yield get
    finally:
        for manager, _ in running.values():
            manager.__exit__(None, None, None)
