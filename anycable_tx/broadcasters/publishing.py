"""What a request asks to publish, on its way to the broker: understood, recognised when repeated, stored."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from typing import Any

from twisted.logger import Logger
from twisted.web.server import Request

from anycable_tx.broadcasters.ingest import Ingest, Job
from anycable_tx.broadcasters.unanswered import Unanswered
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.publications import MAX_ID_LENGTH, decode
from anycable_tx.errors import BadPublication, BrokerUnavailable
from anycable_tx.logs import shorten
from anycable_tx.metrics import Metrics
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.endpoint import Answer, Endpoint, Refused, header, peer

__all__ = ["Publishing", "PublishingEndpoint"]

#: Brokers that live in this process: what they could not store is certainly not stored, so publications need
#: no id of ours to be tried again.
_IN_PROCESS = frozenset(("", "none", "memory"))

#: Room for the ``:k`` of a batch's elements.
_MAX_KEY_LENGTH = MAX_ID_LENGTH - 8


class Publishing:
    """Publishes what the bodies of requests hold, for every endpoint that takes publications.

    ``meta.id``, else the header ``Idempotency-Key``, makes a repeated publication stored and delivered once. A
    publisher that sends neither and left without an answer is recognised by its address and the same body.
    *attrs* go with every log line.
    """

    _log = Logger()

    def __init__(
        self, settings: Mapping[str, Any], reactor: Any, node: Any, metrics: Metrics, attrs: dict[str, str]
    ) -> None:
        self._metrics = metrics
        self._attrs = attrs
        self._lenient = bool(settings.get("broadcast_lenient", True))
        self._ingest = Ingest(node, reactor, metrics, settings.get("broadcast_hold", 12))
        self._unanswered = Unanswered(reactor.seconds)
        gives_ids = settings.get("broker", "") not in _IN_PROCESS
        self._ids = map(f"h:{new_sid()}:{{}}".format, count()) if gives_ids else None

    async def finished(self) -> None:
        """Done when no publication is on its way."""
        await self._ingest.finished()

    async def take(self, request: Request) -> Job:
        """Done when all that *request* publishes is stored (P6); the Job has the receipts.

        Raises BadPublication when its body cannot be understood, and Refused, with the status 501, when it was not
        stored in time: then it may be sent again.
        """
        content: Any = request.content
        body = content.read()
        publisher = peer(request)
        given = _idempotency_key(request)
        id = given or self._unanswered.recall(publisher, body) or (next(self._ids) if self._ids else "")
        try:
            work = decode(body, lenient=self._lenient, idempotency_key=id)
        except BadPublication as e:
            self._metrics.count("failed_broadcast_msg_total")
            attrs = {**self._attrs, "data": shorten(body), "error": e}
            self._log.warn("failed to parse pubsub message", attrs=attrs)
            raise
        self._metrics.count("publications_total")
        job = Job(work, len(body), batch=body.lstrip().startswith(b"["))

        def unknown() -> None:
            if id and not given and job.attempted:
                self._unanswered.remember(publisher, body, id)

        def left(_: object) -> None:
            job.abandoned = True
            unknown()

        request.notifyFinish().addErrback(left)
        try:
            await self._ingest.store(job)
        except BrokerUnavailable as e:
            if not job.abandoned:
                unknown()
            raise Refused(501, "unavailable", f"not stored: {e}") from None
        if not job.abandoned:
            self._unanswered.forget(publisher, body)
        return job


class PublishingEndpoint(Endpoint):
    """Takes POSTs and publishes them: answered are 201 once all is stored (P6), 422 to other methods, 501.

    What is no publication is answered with 422 and the reason where that is *strict*, else with 201.
    """

    methods = (b"POST",)
    wrong_method = 422
    counter = "rejected_publications_total"

    def __init__(
        self,
        publishing: Publishing,
        metrics: Metrics,
        *,
        key: str,
        origins: Origins | None,
        max_body: int,
        strict: bool,
    ) -> None:
        super().__init__(metrics, key=key, origins=origins)
        self.max_body = max_body
        self._publishing = publishing
        self._strict = strict

    async def work(self, request: Request) -> Answer:
        """Store it."""
        try:
            job = await self._publishing.take(request)
        except BadPublication as e:
            return self.refusal(Refused(422, e.code, str(e))) if self._strict else Answer(201)
        return self.stored(job)

    def stored(self, job: Job) -> Answer:
        """What is said of what was stored: nothing."""
        return Answer(201)


def _idempotency_key(request: Request) -> str:
    """The header ``Idempotency-Key``, or a digest of one that is too long to be an id; '' without one."""
    key = header(request, b"idempotency-key") or ""
    return key if len(key) <= _MAX_KEY_LENGTH else sha256(key.encode()).hexdigest()
