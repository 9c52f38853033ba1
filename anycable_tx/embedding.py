"""The cable inside somebody else's ``twisted.web`` site: a resource that takes WebSocket connections over."""

# Twisted's channel and request carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ITCPTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from anycable_tx.service import AnyCableService
from anycable_tx.transports.handshake import Head, parse_head
from anycable_tx.transports.site import answer

__all__ = ["CableResource"]


class CableResource(Resource):
    """Where it is put, WebSocket connections become clients of *service*; the option ``path`` does not matter.

    It works in any Site of HTTP/1.1, over TCP and TLS. The clients have everything that those of the server's own
    ports have: origins are checked, limits hold, a stop of the service drains them. Unless the service runs they are
    answered 503. Their frames go through Twisted's transport; the fast path stays with the server's own ports.

    The Site sees no end of such a request: ``notifyFinish`` does not fire, and its access log has no line for it.
    """

    isLeaf = True

    def __init__(self, service: AnyCableService) -> None:
        super().__init__()
        self._service = service

    def render(self, request: Request) -> Any:
        """Take the connection over if it asks for a WebSocket, and answer 400 otherwise."""
        channel: Any = request.channel
        if channel is None:  # gone while somebody else decided whether it may come here
            return NOT_DONE_YET
        if not isinstance(channel, HTTPChannel):
            return answer(request, 400, "WebSocket connections need HTTP/1.1")
        if not request.requestHeaders.hasHeader(b"upgrade"):
            return answer(request, 400, "this is for WebSocket connections")
        head = read_head(request)
        transport: Any = channel.transport
        transport.unregisterProducer()
        transport.resumeProducing()
        channel.transport = None
        connection = self._service.server.factory.build_mounted()
        if isinstance(transport, ProtocolWrapper):  # TLS is one
            transport.wrappedProtocol = connection
        else:
            transport.protocol = connection
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        connection.makeConnection(transport)
        connection.answer(head)
        early = channel.clearLineBuffer()
        if early:
            connection.dataReceived(early)
        return NOT_DONE_YET


def read_head(request: Request) -> Head:
    """The head of *request* as if it had come to a port of ours; with TLS its target is absolute."""
    target = request.uri
    if request.isSecure() and target.startswith(b"/"):
        target = b"https://" + (request.getHeader(b"host") or b"") + target
    lines = [b"%b %b HTTP/1.1" % (request.method, target)]
    for name, values in request.requestHeaders.getAllRawHeaders():
        lines += [b"%b: %b" % (name, value) for value in values]
    return parse_head(b"\r\n".join(lines))
