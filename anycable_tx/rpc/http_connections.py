"""Connections to one HTTP server, kept open for the next request."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory

# What twisted.web.client.Agent is made of. Its pool keeps connections that the server has said it will close, and
# an Agent does not tell which connection a request is on, so that it could be aborted in the middle of an answer.
from twisted.web._newclient import HTTP11ClientProtocol

__all__ = ["IDLE", "Connections"]

#: Seconds a connection is kept without a request. Servers close idle connections after some whole seconds; a
#: request that crosses with such a close is lost, and nobody could tell whether it was carried out. So ours are
#: closed before the most impatient server's, and under load they are used again long before.
IDLE = 0.7


class Connections:
    """Gives connections to the server behind *endpoint*; at most *size* are kept when nobody uses them."""

    def __init__(self, endpoint: IStreamClientEndpoint, size: int, reactor: Any) -> None:
        self._endpoint = endpoint
        self._size = size
        self._reactor = reactor
        self._idle: dict[HTTP11ClientProtocol, Any] = {}  # with the timer that ends it; the latest last
        self._factory = _ClientFactory(self)
        self._closed = False

    async def get(self) -> HTTP11ClientProtocol:
        """A connection for one request; it comes back by itself when its answer was read.

        Raises what connecting raises.
        """
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            if connection.state == "QUIESCENT":
                return connection
        return await self._endpoint.connect(self._factory)  # type: ignore[return-value]

    def close(self) -> None:
        """Close the connections that nobody uses, and every other one when its answer was read."""
        self._closed = True
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            _close(connection)

    def _answered(self, connection: HTTP11ClientProtocol) -> None:
        """Keep *connection*, whose answer is complete, if it may be used again."""
        if self._closed or len(self._idle) >= self._size or _ends(connection):
            _close(connection)
        else:
            self._idle[connection] = self._reactor.callLater(IDLE, self._end, connection)

    def _end(self, connection: HTTP11ClientProtocol) -> None:
        del self._idle[connection]
        _close(connection)


class _ClientFactory(Factory):
    noisy = False

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def buildProtocol(self, addr: IAddress | None) -> HTTP11ClientProtocol:
        return HTTP11ClientProtocol(self._connections._answered)


def abort(connection: HTTP11ClientProtocol) -> None:
    """End it at once, whatever is still to be read or written."""
    if connection.state != "CONNECTION_LOST":
        transport: Any = connection.transport
        transport.abortConnection()


def _close(connection: HTTP11ClientProtocol) -> None:
    transport: Any = connection.transport
    transport.loseConnection()


def _ends(connection: Any) -> bool:
    """Has the server said that it closes *connection* after this answer?"""
    parser = connection._parser
    said = b",".join(parser.connHeaders.getRawHeaders(b"connection", ())).lower()
    tokens = {token.strip() for token in said.split(b",")}
    if parser.response.version < (b"HTTP", 1, 1):
        return b"keep-alive" not in tokens
    return b"close" in tokens
