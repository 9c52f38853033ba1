"""JetStream: what the server stores, asked for over the shared connection."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.api import Headers, Message, Nats
from anycable_tx.nats.headers import decode

__all__ = ["NO_MESSAGE", "Ack", "JetStream", "JetStreamError", "Stored"]

#: ``err_code`` of "there is no such message".
NO_MESSAGE = 10037
#: What the server calls a JetStream stream is a *log* here: the streams are those of the clients.
_PATIENCE = 5.0
#: About so many bytes are answered to one request to read: a server ends connections for which too much waits, by
#: default 64 MB, and dozens of such requests may be under way.
_AT_ONCE = 512 * 1024


class JetStreamError(BrokerUnavailable):
    """JetStream refused: ``status`` is of HTTP's kind, ``err_code`` says exactly why (10059: no such log)."""

    def __init__(self, status: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream: {description} ({err_code})" if err_code else f"JetStream: {description}")
        self.status = status
        self.err_code = err_code


class Ack(NamedTuple):
    """A message is stored, by a majority of the replicas. *duplicate*: it was already, at that offset."""

    log: str
    offset: int
    duplicate: bool


class Stored(NamedTuple):
    """A message of a log; *time* in Unix seconds is when it was stored."""

    subject: str
    offset: int
    time: float
    headers: Headers
    data: bytes


class JetStream:
    """Every method raises JetStreamError when JetStream refuses, and NatsUnavailable when nobody answers."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._level: int | None = None
        nats.watch(up=self._forget, down=self._forget)

    async def api(
        self, operation: str, request: Mapping[str, Any] | None = None, within: float = _PATIENCE
    ) -> dict[str, Any]:
        """The answer to ``$JS.API.<operation>``, which is not an error."""
        body = b"" if request is None else orjson.dumps(request)
        return _answer(await self._nats.request(f"$JS.API.{operation}", body, within=within))

    async def publish(
        self, subject: str, data: bytes, headers: Headers | None = None, within: float = _PATIENCE
    ) -> Ack:
        """Store a message in whatever log has *subject*. Without an answer it may have been stored or not."""
        answer = _answer(await self._nats.request(subject, data, headers, within))
        try:
            return Ack(answer["stream"], answer["seq"], answer.get("duplicate", False))
        except KeyError:
            raise JetStreamError(500, 0, f"what was published on {subject} was not answered by a log") from None

    async def last(self, log: str, subject: str, within: float = _PATIENCE) -> Stored | None:
        """The newest message of a subject, by the word of the leader."""
        return await self._get(log, {"last_by_subj": subject}, within)

    async def next(self, log: str, subject: str, offset: int, within: float = _PATIENCE) -> Stored | None:
        """The first message of a subject at *offset* or after it, by the word of the leader."""
        return await self._get(log, {"seq": max(offset, 1), "next_by_subj": subject}, within)

    async def read(self, log: str, subject: str, offset: int, number: int, within: float = _PATIENCE) -> list[Stored]:
        """The first *number* messages of a subject at *offset* or after it, or all there are.

        Any replica may answer, also one that lags behind: the newest may be missing, but none in between. *within* is
        the time of each request.
        """
        found: list[Stored] = []
        try:
            level = await self.level()
        except BrokerUnavailable:  # nobody leads who could tell; what is answered to a batch shows it, too
            level = 1
        offset = max(offset, 1)
        while len(found) < number:
            request: dict[str, Any] = {"seq": offset, "next_by_subj": subject}
            if level:
                request |= {"batch": number - len(found), "max_bytes": _AT_ONCE}
            answers = await self._direct(log, request, within)
            end = answers.pop() if answers[-1].status else None
            found += map(_stored_directly, answers)
            # A server that knows no batches sends one message and no end; other ends tell how many are left.
            if end is not None and (end.status == 404 or _pending(end) == 0 or not answers):
                break
            offset = found[-1].offset + 1
        return found

    async def level(self) -> int:
        """The level of the API, 0 where none is told (before 2.11); asked for once for each connection."""
        if self._level is None:
            answer = await self.api("INFO")
            self._level = int(answer.get("api", {}).get("level", 0))
        return self._level

    def _forget(self) -> None:
        self._level = None

    async def _get(self, log: str, request: dict[str, Any], within: float) -> Stored | None:
        try:
            message = (await self.api(f"STREAM.MSG.GET.{log}", request, within))["message"]
        except JetStreamError as e:
            if e.err_code == NO_MESSAGE:
                return None
            raise
        headers = decode(b64decode(message["hdrs"])).headers if "hdrs" in message else {}
        data = b64decode(message.get("data", ""))
        return Stored(message["subject"], message["seq"], _seconds(message["time"]), headers, data)

    async def _direct(self, log: str, request: dict[str, Any], within: float) -> list[Message]:
        subject, body = f"$JS.API.DIRECT.GET.{log}", orjson.dumps(request)
        if "batch" in request:
            answers = await self._nats.request_many(subject, body, within=within)
        else:
            answers = [await self._nats.request(subject, body, within=within)]
        last = answers[-1]
        if last.status not in (0, 204, 404):
            raise JetStreamError(last.status, 0, last.description)
        return answers


def _answer(message: Message) -> dict[str, Any]:
    try:
        answer = orjson.loads(message.data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise JetStreamError(500, 0, f"not its answer: {message.data[:100]!r}")
    if "error" in answer:
        error = answer["error"]
        raise JetStreamError(error.get("code", 500), error.get("err_code", 0), error.get("description", ""))
    return answer


def _pending(message: Message) -> int:
    return int(message.headers.get("Nats-Num-Pending", 0))


def _stored_directly(message: Message) -> Stored:
    own = {name: value for name, value in message.headers.items() if name not in _ADDED}
    subject, time = message.headers["Nats-Subject"], message.headers.get("Nats-Time-Stamp", "")
    return Stored(subject, int(message.headers["Nats-Sequence"]), _seconds(time), own, message.data)


#: What the server adds to the headers of a message that is read directly.
_ADDED = frozenset(
    ("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence")
)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0
