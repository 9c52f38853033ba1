"""Parts that live on NATS, on a real server and a reactor that a test turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

from anycable_tx.config.declarations import nats as options
from anycable_tx.interfaces import ProviderContext
from anycable_tx.testing.nats_servers import NatsServer
from anycable_tx.testing.processes import HOST, kept_port
from tests.pubsub.redis_support import Place

DEFAULTS = {
    **{option.name: option.default for option in (*options.PUBSUB, *options.BROKER, *options.BROADCASTER)},
    "broker_rules": (),
    "history_limit": 100,
    "history_ttl": 300,
}


class Watched(NatsServer):
    """A server that tells who is subscribed to what."""

    def __init__(self, **options: Any) -> None:
        self.monitor = kept_port()
        super().__init__(f"http: {HOST}:{self.monitor}", **options)

    def subjects(self) -> list[str]:
        """What clients are subscribed to, each as often as it is; but for where answers and probes arrive."""
        with urlopen(f"http://{HOST}:{self.monitor}/connz?subs=1&limit=1000", timeout=5) as answer:
            connections = json.load(answer)["connections"]
        all = [subject for each in connections for subject in each.get("subscriptions_list") or ()]
        return sorted(each for each in all if not each.startswith("_INBOX") and ".p." not in each)


class NatsPlace(Place):
    """A Place whose parts have a prefix of their own."""

    server: Any

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.prefix = f"t{uuid4().hex[:8]}"

    def context(self, node: Any, **settings: Any) -> ProviderContext:
        own = {"nats_servers": (self.server.url,), "nats_prefix": self.prefix}
        return ProviderContext({**DEFAULTS, **own, **settings}, self.reactor, node, self.metrics)


@contextmanager
def place(server: Any) -> Iterator[NatsPlace]:
    """A place on a server that others may have used before."""
    place = NatsPlace(server)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def servers() -> Iterator[Callable[[str], Watched]]:
    """Running servers by their kind, started when first asked for."""
    running: dict[str, Watched] = {}

    def get(kind: str) -> Watched:
        if kind not in running:
            running[kind] = Watched(kind=kind.removesuffix("-core"), jetstream=not kind.endswith("-core"))
            running[kind].start()
        return running[kind]

    try:
        yield get
    finally:
        for server in running.values():
            server.close()
