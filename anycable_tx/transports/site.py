"""The plain HTTP side of the listeners: routes by port, time and size bounds, health, and a drain."""

# Twisted's channel and request carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from anycable_tx.metrics import Metrics
from anycable_tx.transports.paths import PathPatterns

__all__ = ["TEXT", "Health", "Leaf", "NotFound", "Readiness", "Route", "Sites", "answer"]

TEXT = b"text/plain; charset=utf-8"

#: Bodies of resources that set no ``max_body`` of their own.
DEFAULT_MAX_BODY = 8 * 1024 * 1024

#: Seconds a kept-alive connection may stay silent: between requests, and within a body.
IDLE_TIMEOUT = 300
BODY_TIMEOUT = 60

#: After a refusal in the middle of a body: how long and how much is still read and thrown away, so that the
#: peer gets to read the answer before the connection is reset.
LINGER_SECONDS = 2
LINGER_BYTES = 1024 * 1024

_log = Logger()


class Route(Protocol):
    """What a routed resource may add to IResource; each attribute is optional.

    ``max_body`` bounds its request bodies, in bytes: beyond, the answer is 413, or the status ``too_large``, and
    nothing is rendered.
    ``reads_body(request)`` is asked once the header is there, with ``request.method`` and the headers set;
    with False the body is not kept and the resource sees an empty one.
    """

    max_body: int
    too_large: int

    def reads_body(self, request: Request) -> bool: ...


def answer(request: Request, status: int, text: str = "") -> bytes:
    """Set *status* and plain text headers on *request*, and give the body to return from ``render``."""
    request.setResponseCode(status)
    body = f"{text}\n".encode() if text else b""
    if body:
        request.setHeader(b"content-type", TEXT)
        request.setHeader(b"content-length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body


class Leaf(Resource):
    """A resource without children and without a use for bodies; it answers every method alike."""

    isLeaf = True

    def reads_body(self, request: Request) -> bool:
        return False


class NotFound(Leaf):
    """The answer for a path without a route."""

    def render(self, request: Request) -> bytes:
        request.setHeader(b"x-content-type-options", b"nosniff")
        return answer(request, 404, "404 page not found")


class Health(Leaf):
    """200 to every method, whatever the state of backends; 503 once *draining()*."""

    def __init__(self, draining: Callable[[], bool] = lambda: False) -> None:
        self._draining = draining

    def render(self, request: Request) -> bytes:
        return answer(request, 503, "draining") if self._draining() else answer(request, 200, "healthy")


class Readiness(Leaf):
    """200 ``ready``, or 503 with a line for each reason that *reasons()* gives against it."""

    def __init__(self, reasons: Callable[[], list[str]]) -> None:
        self._reasons = reasons

    def render(self, request: Request) -> bytes:
        reasons = self._reasons()
        return answer(request, 503, "\n".join(reasons)) if reasons else answer(request, 200, "ready")


class Sites:
    """The routes of every port, and the requests that are running on them.

    Used from *settings*: ``handshake_timeout``, the seconds a peer has to send a complete header (5),
    ``max_header_size``, its bytes (16384), and ``health_drain``. *reactor* is an IReactorTime.
    """

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics | None = None) -> None:
        self.header_timeout: float = settings.get("handshake_timeout", 5)
        self.max_header_size: int = settings.get("max_header_size", 16384)
        self.reactor = reactor
        self.metrics = Metrics() if metrics is None else metrics
        self.draining = False
        self._health_drain = bool(settings.get("health_drain", False))
        self._routes: dict[tuple[str, int], dict[str, Any]] = {}
        self._sites: dict[tuple[str, int], _RoutedSite] = {}
        self._channels: set[_Channel] = set()
        self._running = 0
        self._drained: list[Deferred[None]] = []

    # -- routes

    def add_route(self, port: int, path: str, resource: Any, host: str = "") -> None:
        """Serve *resource* (IResource, see also Route) at *path* of *port*, of the address *host* ('': the main one).

        *path* is a pattern of PathPatterns and matched against the whole path as it was sent, without the
        query. Of two resources for one path the later wins. Raises ConfigurationError for a bad pattern.
        """
        PathPatterns([path])
        routes = self._routes.setdefault((host, port), {})
        routes[path if path.startswith("/") else "/" + path] = resource
        if (host, port) in self._sites:
            self._sites[host, port].set_routes(routes)

    def add_health(self, port: int, path: str) -> None:
        """Serve Health; it answers 503 while draining if the setting ``health_drain`` asks for it."""
        self.add_route(port, path, Health(lambda: self.draining and self._health_drain))

    def ports(self) -> list[tuple[str, int]]:
        """The addresses ('': the main one) and ports that have routes."""
        return sorted(self._routes)

    def site_for(self, port: int, host: str = "") -> Site:
        """The one Site of *port*; without routes it answers 404 to everything."""
        place = host, port
        if place not in self._sites:
            self._sites[place] = _RoutedSite(self)
            self._sites[place].set_routes(self._routes.get(place, {}))
        return self._sites[place]

    # -- requests

    def in_flight(self) -> int:
        """Requests whose header has arrived and whose answer is not complete."""
        return self._running

    def start_drain(self) -> None:
        """From now on every answer closes its connection, and connections without a request are closed."""
        self.draining = True
        for channel in list(self._channels):
            channel.close_if_idle()

    async def drain(self) -> None:
        """start_drain(), and done when the running requests have ended (P8). The caller bounds the time."""
        self.start_drain()
        if self._running:
            done: Deferred[None] = Deferred()
            self._drained.append(done)
            await done

    def _began(self) -> None:
        self._running += 1

    def _ended(self) -> None:
        self._running -= 1
        if not self._running:
            waiting, self._drained = self._drained, []
            for done in waiting:
                done.callback(None)


class _TwistedsLog(Logger):
    """What Twisted logs through a subclass of ours stays under Twisted's name."""

    def __get__(self, instance: object, owner: type | None = None) -> Logger:
        return self


class _Request(Request):
    """A request whose body is bounded while it arrives, and counted from its header to its end."""

    channel: Any
    defaultContentType = None
    _log = _TwistedsLog("twisted.web.server")
    max_body = DEFAULT_MAX_BODY
    too_large = 413
    _counted = False
    _keeps_body = True
    #: The connection ended before the answer was complete.
    gone = False
    _received = 0

    def begin(self, sites: Sites, resource: Any) -> None:
        """The header is complete and *resource* will answer."""
        self._sites = sites
        self._counted = True
        sites._began()
        self.max_body = getattr(resource, "max_body", DEFAULT_MAX_BODY)
        self.too_large = getattr(resource, "too_large", 413)
        reads_body = getattr(resource, "reads_body", None)
        self._keeps_body = reads_body is None or reads_body(self)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.max_body:
            self.channel.refuse_body()
        elif self._keeps_body:
            super().handleContentChunk(data)

    def render(self, resrc: Any) -> None:
        self.setHeader(b"server", b"anycable-tx")
        if self._sites.draining:
            self.setHeader(b"connection", b"close")
            self.channel.persistent = False
        super().render(resrc)

    def finish(self) -> None:
        self._uncount()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self.gone = True
        self._uncount()
        super().connectionLost(reason)

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._sites._ended()


class _Channel(HTTPChannel):
    """An HTTP/1.1 connection that must send each header in time and whose bodies are bounded.

    One timer serves three limits in turn: the whole header, silence within a body, silence between requests.
    """

    site: _RoutedSite
    transport: Any
    #: What carries the connection, where it began as one that could have been a client's.
    carrier: Any = None
    _log = _TwistedsLog("twisted.web.http")
    _handed_over = False
    _idle = False
    _in_body = False
    _refused = False
    _lingered = 0

    def connectionMade(self) -> None:
        self.totalHeadersSize = self.MAX_LENGTH = self.site.sites.max_header_size
        self.site.sites._channels.add(self)
        super().connectionMade()  # starts the timer with the header's limit

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.sites._channels.discard(self)
        super().connectionLost(reason)

    def close_if_idle(self) -> None:
        """Close a connection on which no request has begun."""
        if not self.requests:
            self.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self.setTimeout(self.site.sites.header_timeout)
        super().dataReceived(data)

    def resetTimeout(self) -> None:
        # Only a body may take as long as it keeps coming; a header has to be there in time.
        if self._in_body:
            super().resetTimeout()

    def timeoutConnection(self) -> None:
        if not (self._idle or self._refused):
            self._count_refusal("slow_body" if self._in_body else "slow_header")
        super().timeoutConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse_header()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._receivedHeaderSize > self.totalHeadersSize:
            self._refuse_header()
            return
        self._count_refusal("bad_request")
        super()._respondToBadRequestAndDisconnect()

    def _refuse_header(self) -> None:
        text = b"the head of the request is larger than %d bytes" % self.totalHeadersSize
        self._refuse(431, "header_too_large", text)
        self.setRawMode()  # what follows is no line any more

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        request.method = self._command
        resource = self.site.resource_at(self._path.partition(b"?")[0])
        request.begin(self.site.sites, resource)
        self._in_body = True
        self.setTimeout(BODY_TIMEOUT)
        if self.length is not None and self.length > request.max_body:
            request.gotLength(0)
            self.refuse_body()
            self.length = None  # there is no content to wait for, yet it must not be called complete
        else:
            super().allHeadersReceived()

    def hand_over(self, successor: Any) -> Any:
        """The request that is being rendered becomes *successor*'s, with the connection: answers its transport.

        Nothing of it is counted here any more. Raises AssertionError where connections are HTTP from the start.
        """
        assert self.carrier is not None
        self.requests[0]._uncount()
        self.setTimeout(None)
        self.site.sites._channels.discard(self)
        self._handed_over = True
        self.transport.unregisterProducer()
        return self.carrier.hand_over(successor)

    def rawDataReceived(self, data: bytes) -> None:
        if self._handed_over:
            return
        if self._refused:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.loseConnection()
            return
        super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if self._refused:
            return
        self._in_body = False
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        self._idle = True
        self._savedTimeOut = IDLE_TIMEOUT
        if self.site.sites.draining:
            self.persistent = False
        super().requestDone(request)

    def _count_refusal(self, reason: str) -> None:
        self.site.sites.metrics.count("refused_requests_total", reason=reason)
        peer = getattr(self.transport.getPeer(), "host", "")
        _log.debug("request refused", attrs={"context": "http", "reason": reason, "peer": peer})

    def refuse_body(self) -> None:
        """Answer at once; nothing of the request is kept, and the connection ends."""
        if not self._refused:
            request = self.requests[-1]
            text = b"the request body is larger than %d bytes" % request.max_body
            self._refuse(request.too_large, "too_large", text)

    def _refuse(self, status: int, reason: str, text: bytes) -> None:
        self._refused = True
        self._in_body = False
        self._count_refusal(reason)
        text += b", the most that is accepted here\n"
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nServer: anycable-tx\r\nConnection: close\r\n"
            b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (status, HTTPStatus(status).phrase.encode(), TEXT, len(text), text)
        )
        self.setTimeout(LINGER_SECONDS)


class _RoutedSite(Site):
    """A Site that looks up the whole path in a table and keeps no access log."""

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        super().__init__(
            NotFound(), _Request, timeout=sites.header_timeout, reactor=sites.reactor, parsePOSTFormSubmission=False
        )
        self._routes: dict[str, Any] = {}
        self._patterns = PathPatterns(())

    def set_routes(self, routes: dict[str, Any]) -> None:
        self._routes = routes
        self._patterns = PathPatterns(routes)

    def resource_at(self, path: bytes) -> Any:
        """The resource for *path*, or the one that answers 404."""
        pattern = self._patterns.find(path.decode("latin-1"))
        return self.resource if pattern is None else self._routes[pattern]

    def getResourceFor(self, request: Request) -> Any:
        return self.resource_at(request.path)

    def getContentFile(self, length: int | None) -> BytesIO:
        """Bodies are bounded and short-lived: no temporary files."""
        return BytesIO()

    def startFactory(self) -> None:
        """No access log, so no clock for its lines either."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def log(self, request: Any) -> None:
        """What matters about a request is counted and logged by its resource."""

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may offer: HTTP/1.1 only."""
        return [b"http/1.1"]
