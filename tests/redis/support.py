"""A client whose answers a test waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anycable_tx.metrics import Metrics
from anycable_tx.redis.api import Arg, RedisUnavailable, Script, Subscriber
from anycable_tx.redis.client import Client
from tests.rpc.http_support import RealReactor

SETTINGS: dict[str, Any] = {
    "redis_url": "redis://localhost:6379",
    "redis_sentinels": (),
    "redis_sentinel_discovery_interval": 30.0,
    "redis_keepalive_interval": 30.0,
    "redis_tls_verify": False,
    "redis_tls_ca_cert_path": "",
    "redis_tls_client_cert_path": "",
    "redis_tls_client_key_path": "",
}


class Heard:
    """What a subscriber and a client told, in order."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.events: list[str] = []

    def receive(self, channel: bytes, payload: bytes) -> None:
        self.messages.append((channel, payload))

    def tell(self, event: str) -> Callable[[], None]:
        return lambda: self.events.append(event)


class Kept:
    """A Client, with the reactor that is turned until it answers."""

    def __init__(self, client: Client, reactor: RealReactor, metrics: Metrics) -> None:
        self.client, self.reactor, self.metrics = client, reactor, metrics
        self.heard = Heard()
        client.watch(up=self.heard.tell("master up"), down=self.heard.tell("master down"))
        self._running = False

    def start(self) -> None:
        self._running = True
        self.reactor.result(self.client.start())

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.reactor.result(self.client.stop())

    def ask(self, *args: Arg, key: str = "") -> Any:
        """The answer to a command about *key*, by default its first argument."""
        return self.reactor.result(self.client.execute(key or str(args[1]), *args))

    def ask_until(self, *args: Arg, patience: float = 15.0) -> Any:
        """The answer, asked for again as long as there is none."""
        answers: list[Any] = []

        def answered() -> bool:
            try:
                answers.append(self.ask(*args))
            except RedisUnavailable:
                return False
            return True

        end = self.reactor.loop.time() + patience
        while not answered():
            assert self.reactor.loop.time() < end, self.client.problem()
            turn(self.reactor, 0.05)
        return answers[0]

    def pipeline(self, key: str, *commands: tuple[Arg, ...]) -> list[Any]:
        result: list[Any] = self.reactor.result(self.client.pipeline(key, commands))
        return result

    def run(self, script: Script, keys: list[str], *args: Arg) -> Any:
        return self.reactor.result(self.client.run(script, keys, *args))

    def subscribe(self, *channels: str, heard: Heard | None = None) -> Subscriber:
        """A subscriber whose *channels* are confirmed."""
        heard = heard or self.heard
        subscriber = self.client.subscriber(heard.receive, up=heard.tell("up"), down=heard.tell("down"))
        self.reactor.result(subscriber.subscribe(channels))
        return subscriber

    def until(self, condition: Callable[[], Any], patience: float = 15.0) -> None:
        self.reactor.until(condition, patience)


def turn(reactor: RealReactor, seconds: float) -> None:
    """Turn for so long, where what is to be seen is that nothing happens."""
    end = reactor.loop.time() + seconds
    reactor.until(lambda: reactor.loop.time() >= end, seconds + 5)
