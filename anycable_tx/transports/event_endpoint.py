"""Server-sent events: the resource that makes sessions of GET and POST requests."""

# Twisted's requests carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from anycable_tx import __version__
from anycable_tx.cable.admission import Arrival
from anycable_tx.errors import BadCommand
from anycable_tx.transports.clients import Clients
from anycable_tx.transports.event_requests import MAX_BODY, read_request
from anycable_tx.transports.event_stream import EventStream
from anycable_tx.transports.events import wire_of
from anycable_tx.transports.handshake import Head, Refusal
from anycable_tx.transports.site import answer

__all__ = ["EventEndpoint"]

_log = Logger()
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "private, no-cache, no-store, must-revalidate, max-age=0",
    "Pragma": "no-cache",
    "Expires": "0",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",
    "X-AnyCable-Version": __version__,
}


class EventEndpoint(Resource):
    """GET: one subscription, named by parameters. POST: those in the lines of the body.

    The answers: 200 and events; 400: the request cannot be understood, or a subscription was rejected; 401: the
    client was not let in; 405: another method; 410: a raw client misses what cannot be had any more. A client that
    may have more luck later gets 200 and an event that tells it to come back.
    """

    isLeaf = True
    max_body = MAX_BODY
    too_large = 400

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        #: The responses that have begun and whose connections are there.
        self.open: set[EventStream] = set()
        self._clients = clients
        clients.metrics.has("sse")
        clients.metrics.gauge("sse_clients_num", self.open.__len__)

    def reads_body(self, request: Request) -> bool:
        """Only a POST has one that matters."""
        return request.method == b"POST"

    def render(self, request: Request) -> Any:
        """The answer, or NOT_DONE_YET when the request has become an EventStream."""
        head = _head(request)
        headers = _HEADERS | self._clients.origins.cors_headers(head.headers.get("origin"), "GET, POST, OPTIONS")
        for name, value in headers.items():
            request.setHeader(name.encode(), value.encode("latin-1"))
        if head.method == "OPTIONS":
            return answer(request, 200)
        if head.method not in ("GET", "POST"):
            self.refused("method")
            return answer(request, 405)
        try:
            content: Any = request.content
            commands, whole, raw = read_request(head, content.read())
        except BadCommand as e:
            self.refused("bad request")
            return answer(request, 400, str(e))
        wire = wire_of(whole=whole, raw=raw, chunked=request.clientproto == b"HTTP/1.1")
        stream = EventStream(self._clients, self, wire, headers, commands)
        channel: Any = request.channel
        stream.transport = channel.hand_over(stream)
        self._begin(stream, head)
        return NOT_DONE_YET

    def _begin(self, stream: EventStream, head: Head) -> None:
        clients = self._clients
        try:
            clients.admit(stream, head)
        except Refusal as refusal:
            stream.turn_away(refusal.reason)
            return
        env = clients.envs.read(head, "", clients.peer(stream.transport))
        stream.open(Arrival(env), head.headers.get("x-request-id", "") if clients.request_id_sid else "")

    def refused(self, reason: str) -> None:
        """Count a client that got no events."""
        self._clients.metrics.count("sse_refusals_total", reason=reason)
        _log.debug("event stream refused", attrs={"context": "sse", "reason": reason})


def _head(request: Request) -> Head:
    """The request head as the handshake knows it."""
    headers: dict[str, str] = {}
    for name, values in request.requestHeaders.getAllRawHeaders():
        key = name.decode("latin-1").lower()
        headers[key] = (b",".join(values) if key == "x-forwarded-for" else values[0]).decode("latin-1")
    path, _, query = request.uri.decode("latin-1").partition("?")
    return Head(request.method.decode("latin-1"), request.uri.decode("latin-1"), path, query, headers)
