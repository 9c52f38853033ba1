"""Calls to a backend over HTTP: one POST each, over connections that are kept open."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, ParseError, Request, ResponseFailed
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.rpc import json_messages
from anycable_tx.rpc.breaker import Breaker
from anycable_tx.rpc.http_connections import Connections, abort
from anycable_tx.rpc.http_tls import Secured, connection_creator
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply

__all__ = ["HttpTransport", "create"]

#: Seconds for one attempt, and bytes of one answer, unless an option says otherwise.
ATTEMPT_TIME = 3.0
MAX_ANSWER = 4 * 1024 * 1024
#: Seconds until the next address of the backend's name is tried beside the first. Twisted waits them out even if
#: that was refused at once, as the IPv6 address of localhost often is.
NEXT_ADDRESS = 0.02
#: How much of an answer goes into the text of an error.
EXCERPT = 200

#: What a status other than 200 means: the code, and whether the backend may have carried out the call all the
#: same. Any other status is UNKNOWN, and it may.
STATUSES = {
    400: (Code.INVALID, True),
    401: (Code.UNAUTHENTICATED, False),
    422: (Code.INVALID, True),
    429: (Code.EXHAUSTED, False),
    502: (Code.UNAVAILABLE, True),
    503: (Code.EXHAUSTED, False),
    504: (Code.UNAVAILABLE, True),
}
#: A backend without the method ``restore`` says so with one of these.
NO_METHOD = frozenset((404, 405, 501))

_log = Logger()


class HttpTransport:
    """A Transport over HTTP/1.1, for the address ``rpc_host``.

    Used from *settings*: ``rpc_host``, ``http_rpc_secret``, ``rpc_request_timeout``, ``rpc_concurrency`` and
    ``rpc_concurrency_max``, ``rpc_max_call_recv_size``, ``rpc_tls_root_ca``, ``rpc_tls_verify``. *reactor* is an
    IReactorTime and IReactorPluggableNameResolver that can connect; *wall* tells the time of day. Redirects are
    not followed and proxies of the environment not used. Raises ConfigurationError for options it cannot use.
    """

    def __init__(self, settings: Mapping[str, Any], reactor: Any, wall: Callable[[], float] = time.time) -> None:
        self._reactor = reactor
        self._wall = wall
        url = _base(settings["rpc_host"])
        self._paths = {method: _target(url, method) for method in json_messages.REQUESTS}
        self._headers = _headers(url, settings["http_rpc_secret"])
        self._attempt_time: float = settings["rpc_request_timeout"] / 1000 or ATTEMPT_TIME
        self._max_answer: int = settings["rpc_max_call_recv_size"] or MAX_ANSWER
        self._unverified = url.scheme == "https" and not settings["rpc_tls_verify"]
        self._breaker = Breaker()
        self._calls: set[Deferred[RpcReply]] = set()
        self._stopped = False
        self._place = f"{url.scheme}://{url.netloc}"
        host = url.hostname or ""
        port = url.port or (443 if url.scheme == "https" else 80)
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, attemptDelay=NEXT_ADDRESS)
        if url.scheme == "https":
            endpoint = Secured(endpoint, connection_creator(settings, host), reactor)
        size = settings["rpc_concurrency"] or settings["rpc_concurrency_max"]
        self._connections = Connections(endpoint, size, reactor)
        self.announcement = f"HTTP, {self._place}{url.path}"

    async def start(self) -> None:
        """Warn of a backend that is not checked (RA-9); connections are made when they are needed."""
        if self._unverified:
            _log.warn(
                "rpc_tls_verify is off: whoever answers at {place} is taken for the backend",
                place=self._place,
                attrs={"context": "rpc"},
            )

    async def stop(self) -> None:
        """Close every connection; calls that still run fail (UNAVAILABLE)."""
        self._stopped = True
        for running in list(self._calls):
            running.cancel()
        self._connections.close()

    def problem(self) -> str:
        """Says so while the breaker is open (RA-41)."""
        seconds = self._breaker.open_for(self._reactor.seconds())
        if not seconds:
            return ""
        return f"calls to {self._place} failed so often that none is made for another {seconds:.1f} s"

    async def call(self, method: str, request: dict[str, Any], sid: str, within: float | None) -> RpcReply:
        """One POST. Without *within*, or beyond it, the time for one attempt is ``rpc_request_timeout``, or 3 s.

        ``delivered`` of a failure is False as long as nothing of the request was written (RA-22), and when the
        backend's answer says that it was not looked at.
        """
        post = _Post(json_messages.encode(method, request))
        if self._stopped:
            raise CallFailed(Code.UNAVAILABLE, "the server is stopping", delivered=False)
        admitted = self._breaker.admit(self._reactor.seconds())
        if admitted is None:
            text = self.problem() or f"calls to {self._place} failed; the first few of new ones are not over yet"
            raise CallFailed(Code.UNREACHABLE, text, delivered=False)
        try:
            reply = await self._limited(method, post, sid, min(within or self._attempt_time, self._attempt_time))
        except CallFailed:
            self._judge(method, post.status, admitted)
            raise
        except BaseException:
            self._breaker.dropped(admitted)
            raise
        self._judge(method, post.status, admitted)
        return reply

    def _judge(self, method: str, status: int, admitted: int) -> None:
        """Tell the breaker: no answer, and a server's error, are failures (RA-29)."""
        now = self._reactor.seconds()
        if self._stopped:
            self._breaker.dropped(admitted)
        elif 0 < status < 500 or (method == "restore" and status in NO_METHOD):
            self._breaker.succeeded(admitted, now)
        elif self._breaker.failed(admitted, now):
            _log.warn("{problem}", problem=self.problem(), attrs={"context": "rpc", "reason": Code.UNREACHABLE.value})

    async def _limited(self, method: str, post: _Post, sid: str, seconds: float) -> RpcReply:
        """The exchange, ended when its time is up."""
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            running.cancel()

        running = Deferred.fromCoroutine(self._exchange(method, post, sid))
        self._calls.add(running)
        timer = self._reactor.callLater(seconds, expire)
        try:
            return await running
        except CallFailed:
            raise
        except Exception as e:
            post.status = 0  # whatever has begun to come, there is no answer
            if expired:
                text = f"no answer from {self._place} within {seconds:g} s"
                raise CallFailed(Code.TIMEOUT, text, delivered=post.begun) from None
            if self._stopped:
                raise CallFailed(Code.UNAVAILABLE, "the server is stopping", delivered=post.begun) from None
            if _is_cancellation(e):
                raise CancelledError() from None
            code, reason = _explain(e, answering=post.begun)
            text = f"no answer from {self._place}: {reason}"
            raise CallFailed(code, text, delivered=post.begun) from None
        finally:
            self._calls.discard(running)
            if timer.active():
                timer.cancel()

    async def _exchange(self, method: str, post: _Post, sid: str) -> RpcReply:
        connection = await self._connections.get()
        headers = self._headers.copy()
        headers.addRawHeader(b"x-anycable-meta-sid", sid.encode("utf-8", "replace"))
        try:
            response: Any = await connection.request(
                Request(b"POST", self._paths[method], headers, post, persistent=True)
            )
            post.status = response.code
            body = _Body(connection, self._max_answer)
            if isinstance(response.length, int) and response.length > self._max_answer:
                body.refuse()
            else:
                response.deliverBody(body)
            if response.code != 200:
                raise await self._refusal(method, response, body)
            return json_messages.decode(method, await body.complete)
        except Exception:
            if connection.state != "QUIESCENT":
                abort(connection)
            raise

    async def _refusal(self, method: str, response: Any, body: _Body) -> CallFailed:
        """What an answer means that is no reply."""
        status = response.code
        try:
            said = (await body.complete)[:EXCERPT].decode("utf-8", "replace")
        except (CallFailed, ResponseFailed):
            said = ""
        text = f"{self._place} answered {status} {response.phrase.decode('latin-1')}".rstrip()
        location = response.headers.getRawHeaders(b"location", (b"",))[0].decode("latin-1")
        if 300 <= status < 400 and location:
            text += f" to {location[:EXCERPT]}, and redirects are not followed; give the final address in rpc_host"
        elif said:
            text += f": {said}"
        if method == "restore" and status in NO_METHOD:
            return CallFailed(Code.UNIMPLEMENTED, text, delivered=False)
        code, delivered = STATUSES.get(status, (Code.UNKNOWN, True))
        after = _retry_after(response.headers, self._wall) if code is Code.EXHAUSTED else None
        return CallFailed(code, text, delivered=delivered, retry_after=after)


def create(settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> HttpTransport:
    """The transport of the provider ``http``; what becomes of its calls is counted by who makes them."""
    return HttpTransport(settings, reactor)


@implementer(IBodyProducer)
class _Post:
    """A request's body, written in one go, and how far the request has come."""

    #: Was anything written?
    begun = False
    #: The status of the answer, 0 as long as there is none.
    status = 0

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.begun = True
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It has written everything already."""

    def resumeProducing(self) -> None:
        """It has written everything already."""

    def stopProducing(self) -> None:
        """It has written everything already."""


class _Body(Protocol):
    """Collects an answer of at most *limit* bytes; what is larger ends the connection.

    ``complete`` fires with it, or fails with CallFailed (TOO_LARGE) or ResponseFailed.
    """

    def __init__(self, connection: HTTP11ClientProtocol, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.complete: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            self.refuse()
        else:
            self._parts.append(data)

    def refuse(self) -> None:
        """Read no further."""
        self._parts.clear()
        if not self.complete.called:
            abort(self._connection)
            text = f"the answer is larger than {self._limit} bytes (rpc_max_call_recv_size)"
            self.complete.errback(CallFailed(Code.TOO_LARGE, text, delivered=True))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        # Without a length, the end of the connection is the end of the answer.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(reason)


# -- addresses and headers


def _base(given: str) -> SplitResult:
    """The address of the backend. Raises ConfigurationError; what it shows has no password and no query."""
    shown = "what is given" if "@" in given else repr(given.partition("?")[0])
    try:
        url = urlsplit(given)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[\x21-\x7e]+", given):
        raise ConfigurationError(
            f"rpc_host: {shown} is not the address of an HTTP backend; expected: http(s)://host[:port]/path, in ASCII"
        )
    if "@" in url.netloc:
        raise ConfigurationError(
            "rpc_host: no user and password are sent to an HTTP backend; give it a token, http_rpc_secret"
        )
    return url


def _target(url: SplitResult, method: str) -> bytes:
    """The request target of *method*: below the base's path, with the base's query."""
    path = re.sub("/{2,}", "/", f"/{url.path}/{method}")
    return f"{path}?{url.query}".encode() if url.query else path.encode()


def _headers(url: SplitResult, secret: str) -> Headers:
    port = f":{url.port}" if url.port not in (None, {"http": 80, "https": 443}[url.scheme]) else ""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    headers = Headers({"host": [f"{host}{port}"], "content-type": ["application/json"]})
    if secret:
        if re.search(r"[\x00-\x1f\x7f]", secret):
            raise ConfigurationError("http_rpc_secret: control characters cannot be sent in a header")
        headers.addRawHeader(b"authorization", b"Bearer " + secret.encode("utf-8", "surrogateescape"))
    headers.addRawHeader(b"x-anycable-meta-protov", b"v1")
    return headers


def _retry_after(headers: Headers, wall: Callable[[], float]) -> float | None:
    """Seconds to wait: a number, or a date to be compared with the server's own clock if it tells it."""
    value = _header(headers, b"retry-after")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    date = _seconds(value)
    if date is None:
        return None
    now = _seconds(_header(headers, b"date"))
    return max(0.0, date - (wall() if now is None else now))


def _header(headers: Headers, name: bytes) -> str:
    return headers.getRawHeaders(name, (b"",))[0].decode("latin-1").strip()


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


# -- failures


def _causes(error: BaseException) -> list[BaseException]:
    """*error*, or what it wraps."""
    reasons = getattr(error, "reasons", None)
    return [cause for reason in reasons for cause in _causes(reason.value)] if reasons else [error]


def _is_cancellation(error: BaseException) -> bool:
    return any(isinstance(cause, CancelledError | ConnectingCancelledError) for cause in _causes(error))


def _explain(error: BaseException, *, answering: bool) -> tuple[Code, str]:
    """The code and the text of a failure to get an answer."""
    cause = _causes(error)[0]
    if isinstance(cause, VerificationError):
        return Code.UNAUTHENTICATED, "TLS failed: its certificate is for another name"
    if isinstance(cause, SSL.Error):
        [*_, last] = cause.args[0] if cause.args and cause.args[0] else [("", "", "unknown reason")]
        return Code.UNAUTHENTICATED, f"TLS failed: {last[-1]}"
    if answering and isinstance(cause, ParseError | ValueError | KeyError):
        return Code.UNKNOWN, "what came is not HTTP"
    return Code.UNAVAILABLE, str(cause).rstrip(".") or type(cause).__name__
