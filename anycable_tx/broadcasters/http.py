"""Publications by HTTP: ``POST /_broadcast``, answered with 201 once they are stored."""

# Twisted's requests carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hmac
from hashlib import sha256
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from anycable_tx.broadcasters.ingest import Ingest, Job
from anycable_tx.broadcasters.unanswered import Unanswered
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import RemoteCommand
from anycable_tx.cable.publications import MAX_ID_LENGTH, decode
from anycable_tx.config.secrets import BROADCAST, derive_key
from anycable_tx.errors import BadPublication, BrokerUnavailable
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.logs import shorten
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.site import answer

__all__ = ["HTTPBroadcaster", "create"]

#: Brokers that live in this process: what they could not store is certainly not stored, so publications need
#: no id of ours to be tried again.
_IN_PROCESS = frozenset(("", "none", "memory"))

_DERIVED = "auto-generated authorization secret from the application secret\n"

#: Room for the ``:k`` of a batch's elements.
_MAX_KEY_LENGTH = MAX_ID_LENGTH - 8


def create(context: ProviderContext) -> HTTPBroadcaster:
    """The broadcaster, its path already routed on its port."""
    return HTTPBroadcaster(context)


@implementer(IBroadcaster)
class HTTPBroadcaster:
    """Accepts publications at ``http_broadcast_path`` of ``http_broadcast_port``.

    With ``broadcast_key`` (unless ``public``) requests need ``Authorization: Bearer <key>``. Checked are, in this
    order: CORS and preflight, method, authorisation, body. The answers:

    * 201: stored (P6), or a body that is no publication (``broadcast_strict``: 422 with the reason);
    * 401, 413, 422: no or a wrong key, a body above ``http_broadcast_max_body`` bytes, not a POST;
    * 501: not stored within ``broadcast_hold`` seconds; it may be sent again, as after a lost connection.

    ``meta.id``, else the header ``Idempotency-Key``, makes a repeated publication stored and delivered once. A
    publisher that sends neither and left without an answer is recognised by its address and the same body.
    """

    def __init__(self, context: ProviderContext) -> None:
        settings = context.settings
        key = "" if settings.get("public") else settings.get("broadcast_key", "")
        port, path = settings["http_broadcast_port"], settings["http_broadcast_path"]
        origins = None
        if settings.get("http_broadcast_cors"):
            origins = Origins(settings.get("allowed_origins", ()))
        self._ingest = Ingest(context.node, context.reactor, context.metrics, settings.get("broadcast_hold", 12))
        self._resource = BroadcastResource(
            self._ingest,
            Unanswered(context.reactor.seconds),
            context.metrics,
            key="" if key == "none" else key,
            origins=origins,
            max_body=settings.get("http_broadcast_max_body", 8 * 1024 * 1024),
            strict=bool(settings.get("broadcast_strict", False)),
            lenient=bool(settings.get("broadcast_lenient", True)),
            gives_ids=settings.get("broker", "") not in _IN_PROCESS,
        )
        context.site.add_route(port, path, self._resource)
        scheme = "https" if settings.get("ssl_cert") else "http"
        derived = key and key == derive_key(settings.get("secret", ""), BROADCAST)
        self.announcement = (
            f"{_DERIVED if derived else ''}"
            f"Accept broadcast requests at {scheme}://{settings.get('host', 'localhost')}:{port}{path} "
            f"({'authorization required' if self._resource.key else 'no authorization'}"
            f"{', CORS enabled' if origins else ''})"
        )

    async def start(self) -> None:
        """Nothing to do: the path is routed, and requests come once the port is open."""

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    async def stop(self) -> None:
        """Take no more requests; done when those taken have ended, at the latest after ``broadcast_hold``."""
        self._resource.stopped = True
        await self._ingest.finished()


class BroadcastResource(Resource):
    """The resource behind the path; see HTTPBroadcaster."""

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        ingest: Ingest,
        unanswered: Unanswered,
        metrics: Any,
        *,
        key: str,
        origins: Origins | None,
        max_body: int,
        strict: bool,
        lenient: bool,
        gives_ids: bool,
    ) -> None:
        super().__init__()
        self.key = key
        self.max_body = max_body
        self.stopped = False
        self._ingest = ingest
        self._unanswered = unanswered
        self._metrics = metrics
        self._expected = f"Bearer {key}".encode()
        self._origins = origins
        self._strict = strict
        self._lenient = lenient
        self._ids = map(f"h:{new_sid()}:{{}}".format, count()) if gives_ids else None

    def reads_body(self, request: Request) -> bool:
        """Only a body that will be looked at is kept in memory."""
        return request.method == b"POST" and self._authorized(request)

    def render(self, request: Request) -> Any:
        """The answer, or NOT_DONE_YET while the publication is on its way."""
        if self._origins is not None:
            for name, value in self._origins.cors_headers(_header(request, b"origin")).items():
                request.setHeader(name.encode(), value.encode("latin-1"))
            if request.method == b"OPTIONS":
                return answer(request, 200)
        if request.method != b"POST":
            return self._reject(request, 422, "method", "only POST is accepted here")
        if not self._authorized(request):
            return self._reject(request, 401, "unauthorized", "the header Authorization: Bearer <key> is required")
        if self.stopped:
            # Publishers send again after a lost connection, but drop what was answered with an error.
            request.loseConnection()
            return NOT_DONE_YET
        content: Any = request.content
        self._take(request, content.read())
        return NOT_DONE_YET

    def _authorized(self, request: Request) -> bool:
        if not self.key:
            return True
        given = request.requestHeaders.getRawHeaders(b"authorization") or [b""]
        return hmac.compare_digest(given[-1], self._expected)

    def _reject(self, request: Request, status: int, reason: str, text: str) -> bytes:
        self._metrics.count("rejected_publications_total", reason=reason)
        self._log.warn(
            "broadcast refused: {text}",
            text=text,
            attrs={"context": "broadcast", "provider": "http", "peer": _peer(request)},
        )
        return answer(request, status, text)

    def _take(self, request: Request, body: bytes) -> None:
        publisher = _peer(request)
        given = _idempotency_key(request)
        id = given or self._unanswered.recall(publisher, body) or (next(self._ids) if self._ids else "")
        try:
            work = decode(body, lenient=self._lenient, idempotency_key=id)
        except BadPublication as e:
            self._metrics.count("failed_broadcast_msg_total")
            self._log.warn(
                "failed to parse pubsub message",
                attrs={"context": "broadcast", "provider": "http", "data": shorten(body), "error": e},
            )
            self._end(request, 422 if self._strict else 201, str(e) if self._strict else "")
            return
        if not isinstance(work, RemoteCommand):
            self._metrics.count("publications_total")

        job = Job(work, len(body))

        def unknown(_: object = None) -> None:
            if id and not given and job.attempted:
                self._unanswered.remember(publisher, body, id)

        def left(_: object) -> None:
            job.abandoned = True
            unknown()

        async def store() -> None:
            try:
                await self._ingest.store(job)
            except BrokerUnavailable as e:
                if not job.abandoned:
                    unknown()
                    self._end(request, 501, self._not_stored(e))
            else:
                if not job.abandoned:
                    self._unanswered.forget(publisher, body)
                    self._end(request, 201)

        request.notifyFinish().addErrback(left)
        Deferred.fromCoroutine(store()).addErrback(self._failed, request, job)

    def _not_stored(self, error: BrokerUnavailable) -> str:
        self._metrics.count("rejected_publications_total", reason="unavailable")
        self._log.warn(
            "publication was not stored",
            attrs={"context": "broadcast", "provider": "http", "error": error},
        )
        return f"not stored: {error}"

    def _failed(self, failure: Any, request: Request, job: Job) -> None:
        """An error nobody expected."""
        self._metrics.count("internal_errors_total")
        self._log.failure("broadcast failed", failure=failure, attrs={"context": "broadcast", "provider": "http"})
        if not job.abandoned:
            self._end(request, 500, "internal error")

    def _end(self, request: Request, status: int, text: str = "") -> None:
        body = answer(request, status, text)
        if not body:
            request.setHeader(b"content-length", b"0")
        request.write(body)
        request.finish()


def _peer(request: Request) -> str:
    return str(getattr(request.getClientAddress(), "host", ""))


def _header(request: Request, name: bytes) -> str | None:
    values = request.requestHeaders.getRawHeaders(name)
    return values[-1].decode("latin-1") if values else None


def _idempotency_key(request: Request) -> str:
    """The header ``Idempotency-Key``, or a digest of one that is too long to be an id; '' without one."""
    key = _header(request, b"idempotency-key") or ""
    return key if len(key) <= _MAX_KEY_LENGTH else sha256(key.encode()).hexdigest()
