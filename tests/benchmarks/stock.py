"""The stock server: Autobahn's ``WebSocketServerProtocol`` and ``sendMessage`` on ``listenTCP``, default options.

It does the least that serves the same clients and the same publisher: a welcome on open, a confirmation for each
``subscribe``, and one ``sendMessage`` for each publication and subscriber. No sessions, positions, history or pings.
On the path ``/bare`` it leaves the welcome out: then a connect costs the handshake and nothing else.

Run as ``python -m tests.benchmarks.stock PORT HTTP_PORT``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.web.resource import Resource
from twisted.web.server import Site

WELCOME = b'{"type":"welcome"}'

Subscribers = dict[str, set["StockProtocol"]]


class StockProtocol(WebSocketServerProtocol):
    """One client."""

    bare = False

    def onConnect(self, request: Any) -> str | None:
        self.bare = request.path == "/bare"
        return request.protocols[0] if request.protocols else None

    def onOpen(self) -> None:
        self.subscribed: list[str] = []
        if not self.bare:
            self.sendMessage(WELCOME)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        command = json.loads(payload)
        if command.get("command") != "subscribe":
            return
        name = command["identifier"]
        self.subscribed.append(name)
        self.factory.subscribers.setdefault(name, set()).add(self)
        self.sendMessage(json.dumps({"type": "confirm_subscription", "identifier": name}).encode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        for name in getattr(self, "subscribed", ()):
            self.factory.subscribers[name].discard(self)


class Broadcast(Resource):
    """``POST`` one publication or an array of them; each is encoded once and sent as one frame a subscriber."""

    isLeaf = True

    def __init__(self, subscribers: Subscribers) -> None:
        super().__init__()
        self.subscribers = subscribers

    def render_POST(self, request: Any) -> bytes:
        body = json.loads(request.content.read())
        for publication in body if isinstance(body, list) else [body]:
            name = json.dumps({"channel": "$pubsub", "stream_name": publication["stream"]}, separators=(",", ":"))
            message = json.dumps({"identifier": name, "message": json.loads(publication["data"])}).encode()
            for client in self.subscribers.get(name, ()):
                client.sendMessage(message)
        request.setResponseCode(201)
        return b""


class QuietSite(Site):
    """A site that does not format an access log line nobody reads."""

    def log(self, request: Any) -> None:
        pass


def main(port: int, http_port: int) -> None:
    """Serve both ports until the process ends."""
    from twisted.internet import reactor

    factory = WebSocketServerFactory()
    factory.protocol = StockProtocol
    factory.subscribers = {}
    reactor.listenTCP(port, factory, interface="127.0.0.1")
    reactor.listenTCP(http_port, QuietSite(Broadcast(factory.subscribers)), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
