"""A client whose answers a test waits for, and a server that says whatever a test likes."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred

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

    @property
    def problem(self) -> str:
        return self.client.problem()

    def start(self) -> None:
        self._running = True
        self.reactor.result(self.client.start())

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.reactor.result(self.client.stop())

    def subscribe(self, subject: str, lost: Callable[[], None] | None = None) -> tuple[list[Message], Subscription]:
        """What arrives on *subject*."""
        heard: list[Message] = []
        return heard, self.reactor.result(self.client.subscribe(subject, heard.append, lost))

    def request(self, subject: str, data: bytes = b"", **options: Any) -> Message:
        answer: Message = self.reactor.result(self.client.request(subject, data, **options))
        return answer

    def begin(self, work: Any) -> Deferred[Any]:
        """*work*, begun; its end is waited for later."""
        return Deferred.fromCoroutine(work)

    def until_up(self, patience: float = 15.0) -> None:
        self.until(lambda: not self.problem, patience)

    def until(self, condition: Callable[[], Any], patience: float = 15.0) -> None:
        self.reactor.until(condition, patience)


class _Talk(socketserver.StreamRequestHandler):
    server: FakeServer

    def handle(self) -> None:
        self.server.talks.append(self)
        with suppress(OSError):
            self.wfile.write(self.server.greeting)
            for line in self.rfile:
                self.server.heard.append(line)
                if line.startswith(self.server.closes_on):
                    return
                if line == b"PING\r\n" and self.server.answers:
                    self.wfile.write(b"PONG\r\n")

    def say(self, data: bytes) -> None:
        self.wfile.write(data)


class FakeServer(socketserver.ThreadingTCPServer):
    """Greets like a NATS server, answers pings, and says what a test has it say. A context manager."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, *, greeting: bytes = b"", answers: bool = True, closes_on: bytes = b"\0", **info: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        facts = {"server_id": "x", "version": "2.9.0", "headers": True, "max_payload": 1_048_576, **info}
        self.greeting = greeting or f"INFO {json.dumps(facts)}\r\n".encode()
        self.answers, self.closes_on = answers, closes_on
        self.heard: list[bytes] = []
        self.talks: list[_Talk] = []
        self.url = f"nats://127.0.0.1:{self.server_address[1]}"

    def say(self, data: bytes) -> None:
        """To whoever connected last."""
        self.talks[-1].say(data)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what many tests are about."""

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()
