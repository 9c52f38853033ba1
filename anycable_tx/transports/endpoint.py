"""HTTP endpoints that are asked with a key: CORS, methods, authorisation, and an answer that may take its time."""

from __future__ import annotations

import hmac
from typing import Any, ClassVar, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from anycable_tx.metrics import Metrics
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.site import TEXT

__all__ = ["Answer", "Endpoint", "Refused", "header", "peer"]


class Answer(NamedTuple):
    """What a request is answered with. An empty *body* has no type."""

    status: int
    body: bytes = b""
    type: bytes = TEXT


class Refused(Exception):
    """A request is not served: the *status* of the answer, the *reason* for the counter, the *text* for people."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text


class Endpoint(Resource):
    """A resource for backends. Checked are, in this order: CORS and preflight, method, authorisation.

    With *key* requests need ``Authorization: Bearer <key>``; with *origins* CORS headers are sent and ``OPTIONS`` is
    answered with 200. Everything else is for ``work``. ``counter`` counts what is refused, by reason; ``attrs`` go
    with every log line.
    """

    isLeaf = True
    methods: ClassVar[tuple[bytes, ...]] = (b"GET", b"HEAD")
    #: The status for other methods.
    wrong_method = 405
    counter = ""
    attrs: ClassVar[dict[str, str]] = {}
    _log = Logger()

    def __init__(self, metrics: Metrics, *, key: str, origins: Origins | None) -> None:
        super().__init__()
        self.key = key
        #: Nothing is taken any more.
        self.stopped = False
        self.metrics = metrics
        self._expected = f"Bearer {key}".encode()
        self._origins = origins

    async def work(self, request: Request) -> Answer:
        """The answer to a request that passed all checks. May raise Refused."""
        raise NotImplementedError

    def refusal(self, refused: Refused) -> Answer:
        """What a refused request is answered with."""
        return Answer(refused.status, f"{refused.text}\n".encode())

    # -- the site and Twisted call these

    def reads_body(self, request: Request) -> bool:
        """Only a body that will be looked at is kept in memory."""
        return request.method == b"POST" and b"POST" in self.methods and self._authorized(request)

    def render(self, request: Request) -> int:
        """Answer now, or when the work is done."""
        if self._origins is not None:
            allowed = ", ".join(method.decode() for method in (*self.methods, b"OPTIONS"))
            for name, value in self._origins.cors_headers(header(request, b"origin"), allowed).items():
                request.setHeader(name.encode(), value.encode("latin-1"))
            if request.method == b"OPTIONS":
                return self._end(request, Answer(200))
        if request.method not in self.methods:
            request.setHeader(b"allow", b", ".join(self.methods))
            names = " and ".join(method.decode() for method in self.methods)
            text = f"only {names} {'is' if len(self.methods) == 1 else 'are'} accepted here"
            return self._end(request, self._refuse(request, Refused(self.wrong_method, "method", text)))
        if not self._authorized(request):
            request.setHeader(b"www-authenticate", b"Bearer")
            text = "the header Authorization: Bearer <key> is required"
            return self._end(request, self._refuse(request, Refused(401, "unauthorized", text)))
        if self.stopped:
            # Publishers send again after a lost connection, but drop what was answered with an error.
            request.loseConnection()
            return NOT_DONE_YET
        Deferred.fromCoroutine(self._answer(request)).addErrback(self._failed)
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        try:
            answer = await self.work(request)
        except Refused as e:
            if request.gone:
                return
            answer = self._refuse(request, e)
        except Exception:
            self._failed(Failure())
            answer = self.refusal(Refused(500, "internal", "internal error"))
        if not request.gone:
            self._end(request, answer)

    def _failed(self, failure: Failure) -> None:
        """An error nobody expected."""
        self.metrics.count("internal_errors_total")
        self._log.failure("request failed", failure=failure, attrs=self.attrs)

    def _authorized(self, request: Request) -> bool:
        if not self.key:
            return True
        given = request.requestHeaders.getRawHeaders(b"authorization") or [b""]
        return hmac.compare_digest(given[-1], self._expected)

    def _refuse(self, request: Request, refused: Refused) -> Answer:
        self.metrics.count(self.counter, reason=refused.reason)
        attrs: dict[str, Any] = {**self.attrs, "reason": refused.reason, "peer": peer(request)}
        self._log.warn("request refused: {text}", text=refused.text, attrs=attrs)
        return self.refusal(refused)

    def _end(self, request: Request, answer: Answer) -> int:
        request.setResponseCode(answer.status)
        request.setHeader(b"content-length", b"%d" % len(answer.body))
        if answer.body:
            request.setHeader(b"content-type", answer.type)
        request.write(answer.body)
        request.finish()
        return NOT_DONE_YET


def peer(request: Request) -> str:
    """The address at the other end of the connection."""
    return str(getattr(request.getClientAddress(), "host", ""))


def header(request: Request, name: bytes) -> str | None:
    """The last value of a header, or None."""
    values = request.requestHeaders.getRawHeaders(name)
    return values[-1].decode("latin-1") if values else None
