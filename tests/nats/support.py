"""A client whose answers a test waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anycable_tx.metrics import Metrics
from anycable_tx.nats.api import Message, Subscription
from anycable_tx.nats.client import Client
from anycable_tx.nats.jetstream import JetStream
from tests.rpc.http_support import RealReactor

SETTINGS: dict[str, Any] = {
    "nats_servers": ("nats://127.0.0.1:4222",),
    "nats_dont_randomize_servers": False,
    "nats_creds_file": "",
    "nats_nkey_file": "",
    "nats_tls_ca_cert_path": "",
    "nats_tls_client_cert_path": "",
    "nats_tls_client_key_path": "",
    "nats_tls_verify": True,
    "nats_ping_interval": 10.0,
    "nats_prefix": "ac",
    "nats_replicas": 1,
}


class Kept:
    """A Client, with the reactor that is turned until it answers. ``events`` are what it told its watcher."""

    def __init__(self, client: Client, reactor: RealReactor, metrics: Metrics) -> None:
        self.client, self.reactor, self.metrics = client, reactor, metrics
        self.jetstream = JetStream(client)
        self.events: list[str] = []
        client.watch(up=lambda: self.events.append("up"), down=lambda: self.events.append("down"))
        self._running = False

    def start(self) -> None:
        self._running = True
        self.reactor.result(self.client.start())

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.reactor.result(self.client.stop())

    def subscribe(self, subject: str, **options: Any) -> tuple[list[Message], Subscription]:
        """What arrives on *subject*."""
        heard: list[Message] = []
        return heard, self.reactor.result(self.client.subscribe(subject, heard.append, **options))

    def request(self, subject: str, data: bytes = b"", **options: Any) -> Message:
        return self.reactor.result(self.client.request(subject, data, **options))

    def until_up(self, patience: float = 15.0) -> None:
        self.until(lambda: not self.client.problem(), patience)

    def until(self, condition: Callable[[], Any], patience: float = 15.0) -> None:
        self.reactor.until(condition, patience)
