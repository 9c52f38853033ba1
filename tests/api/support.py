"""A server on a clock whose API is asked without a socket."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock

from anycable_tx.cable.messages import Publication, Receipt
from anycable_tx.config.load import defaults
from anycable_tx.server import Server
from anycable_tx.testing.sync import result_of
from tests.transports.peer import Answer, Peer


class Reactor(Clock):
    """A clock that pretends to listen, and remembers where."""

    def __init__(self) -> None:
        super().__init__()
        self.listening: list[tuple[str, int]] = []

    def listenTCP(self, port: int, factory: Any, backlog: int, interface: str) -> Any:
        self.listening.append((interface, port))
        return self

    def stopListening(self) -> None:
        """There was nothing."""


class World:
    """A server with a memory broker and an open API on port 9000, unless *settings* say otherwise."""

    def __init__(self, **settings: Any) -> None:
        self.reactor = Reactor()
        self.settings = defaults(**{"broker": "memory", "api_port": 9000, "fast_path": False, **settings})
        self.server = Server(self.settings, self.reactor)
        self.node = self.server.node
        self.metrics = self.server.metrics
        result_of(self.server.start())

    def stop(self) -> None:
        """Leave no timers behind."""
        result_of(self.server.node.stop())
        self.server.factory.stop()

    def peer(self, port: int | None = None, host: str = "") -> Peer:
        return Peer(self.server.sites.site_for(port or self.settings["api_port"], host), self.reactor)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.peer().ask(method, path, body, **headers)

    def publish(self, body: Any, **headers: str) -> Answer:
        return self.ask("POST", "/api/publish", body if type(body) is bytes else json.dumps(body).encode(), **headers)

    def store(self, stream: str, *payloads: Any) -> list[Receipt]:
        """Publish without HTTP."""
        publications = [Publication(stream, json.dumps(payload).encode()) for payload in payloads]
        return [result_of(self.node.publish(publication)) for publication in publications]

    def history(self, stream: str, **query: Any) -> Answer:
        parameters = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
        return self.ask("GET", f"/api/streams/{quote(stream, safe='')}/history?{parameters}")


def content(answer: Answer) -> Any:
    """The JSON of an answer."""
    return json.loads(answer.body)
