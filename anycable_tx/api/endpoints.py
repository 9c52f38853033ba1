"""The endpoints of the REST API. Answers are JSON; what is refused is answered with a problem (RFC 9457)."""

# Twisted's requests carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from twisted.web.server import Request

from anycable_tx.api.pages import page, read_query
from anycable_tx.broadcasters.ingest import Job
from anycable_tx.broadcasters.publishing import PublishingEndpoint
from anycable_tx.cable.codec import members_info
from anycable_tx.cable.messages import Receipt, RemoteCommand
from anycable_tx.errors import BrokerUnavailable, HistoryRefused, PresenceRefused, outcome_of
from anycable_tx.node import Node
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.endpoint import Answer, Endpoint, Refused

__all__ = ["ATTRS", "HistoryEndpoint", "PublishEndpoint", "UsersEndpoint"]

#: What goes with every line in the log.
ATTRS = {"context": "api"}

JSON = b"application/json"
PROBLEM = b"application/problem+json"


class _APIEndpoint(Endpoint):
    """An endpoint whose answers are JSON and are kept by nobody."""

    attrs = ATTRS

    def refusal(self, refused: Refused) -> Answer:
        """A problem: its ``code`` is for programs, its ``detail`` for people."""
        problem = {
            "title": HTTPStatus(refused.status).phrase,
            "status": refused.status,
            "code": refused.reason,
            "detail": refused.text,
        }
        return Answer(refused.status, orjson.dumps(problem), PROBLEM)

    def render(self, request: Request) -> int:
        """Answer now, or when the work is done."""
        request.setHeader(b"cache-control", b"no-store")
        return super().render(request)


class PublishEndpoint(_APIEndpoint, PublishingEndpoint):
    """Takes what the HTTP broadcaster takes, and says where it was stored."""

    def stored(self, job: Job) -> Answer:
        """The receipts."""
        return Answer(201, orjson.dumps(_stored(job)), JSON)


def _stored(job: Job) -> Any:
    """What is said of a publication, a batch, or a command: the shape is the one of the request."""
    if isinstance(job.work, RemoteCommand):
        return {"command": job.work.command}
    receipts = [
        _receipt(publication.stream, receipt) for publication, receipt in zip(job.work, job.receipts, strict=True)
    ]
    return receipts if job.batch else receipts[0]


def _receipt(stream: str, receipt: Receipt) -> dict[str, Any]:
    """Without a position for what was not stored: it was transient, or the broker keeps nothing."""
    said: dict[str, Any] = {"stream": stream}
    if receipt.offset:
        said |= {"offset": receipt.offset, "epoch": receipt.epoch}
    return said | {"duplicate": receipt.duplicate}


class _StreamEndpoint(_APIEndpoint):
    """Reads something of the stream that the segment before the last of the path names, percent-encoded."""

    counter = "rejected_reads_total"

    def __init__(self, node: Node, *, key: str, origins: Origins | None) -> None:
        super().__init__(node.metrics, key=key, origins=origins)
        self._node = node

    async def work(self, request: Request) -> Answer:
        """Decode the name, once, and read."""
        try:
            stream = unquote_to_bytes(request.path.split(b"/")[-2]).decode()
        except UnicodeDecodeError:
            raise Refused(400, "bad_request", "the name of the stream is not UTF-8, percent-encoded") from None
        if not stream:
            raise Refused(404, "not_found", "the name of the stream is empty")
        try:
            return Answer(200, await self.read(stream, request), JSON)
        except (BrokerUnavailable, PresenceRefused) as e:
            raise Refused(outcome_of(e).status, e.code, str(e)) from None

    async def read(self, stream: str, request: Request) -> bytes:
        """The JSON to answer with. May raise Refused, BrokerUnavailable and PresenceRefused."""
        raise NotImplementedError


class UsersEndpoint(_StreamEndpoint):
    """Who is present on a stream (HE-39, HE-40)."""

    wrong_method = 422

    async def read(self, stream: str, request: Request) -> bytes:
        """Nobody, for a stream that is not known."""
        return orjson.dumps(members_info(await self._node.broker.members(stream)))


class HistoryEndpoint(_StreamEndpoint):
    """What was published to a stream after a position, or since a time: whole or refused (P4)."""

    async def read(self, stream: str, request: Request) -> bytes:
        """One page; refused with 410 unless it is certain that nothing is missing."""
        query = read_query(request.args)
        try:
            history = await self._node.read(stream, query.request)
        except HistoryRefused as e:
            self.metrics.count("history_rejects_total", reason=e.reason)
            status = 501 if e.reason in _BROKER else outcome_of(e).status
            raise Refused(status, e.reason, _REFUSALS[e.reason]) from None
        self.metrics.count("history_confirms_total")
        return page(history, query.limit)


#: Reasons for which the broker, not the stream, is to blame.
_BROKER = frozenset(("unsupported", "unavailable"))

_REFUSALS = {
    "unknown_epoch": "the epoch is not the stream's: its positions begin anew",
    "future_offset": "the stream has no such offset yet",
    "trimmed": "messages after this position are gone: there were more than history_limit",
    "expired": "messages after this position are gone: they are older than history_ttl",
    "behind": "messages after this position cannot be had any more",
    "unsupported": "the broker keeps no history",
    "unavailable": "the broker does not answer now",
}
