"""A request for history, and the page of it that answers; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from anycable_tx.cable.messages import History, HistoryRequest, Position, StreamMessage
from anycable_tx.transports.endpoint import Refused

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "MAX_PAGE_BYTES", "Query", "page", "read_query"]

#: Messages in a page, unless fewer are asked for, and at most.
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
#: A page ends behind the message with which its payloads are larger than this (P7).
MAX_PAGE_BYTES = 4 * 1024 * 1024
#: The largest offset and time; what brokers count with is exact up to here.
_MAX_NUMBER = 2**53 - 1


class Query(NamedTuple):
    """What a request for history asks for."""

    request: HistoryRequest
    limit: int


def read_query(args: Mapping[bytes, Sequence[bytes]]) -> Query:
    """The parameters ``offset`` and ``epoch``, or ``since`` (0: from the beginning), and ``limit``.

    Others are ignored, and of a repeated one the last counts. Raises Refused (400) naming the one that is wrong.
    """
    limit = _number(args, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    if b"offset" not in args and b"epoch" not in args:
        return Query(HistoryRequest(since=_number(args, "since", 0, 0, _MAX_NUMBER)), limit)
    for name in (b"offset", b"epoch"):
        if name not in args:
            raise _bad(f"{name.decode()} is missing; a position has an offset and an epoch")
    if b"since" in args:
        raise _bad("since is given beside a position; one of them is accepted")
    try:
        epoch = args[b"epoch"][-1].decode()
    except UnicodeDecodeError:
        raise _bad("epoch is not UTF-8") from None
    return Query(HistoryRequest(Position(epoch, _number(args, "offset", 0, 0, _MAX_NUMBER))), limit)


def _number(args: Mapping[bytes, Sequence[bytes]], name: str, default: int, minimum: int, maximum: int) -> int:
    values = args.get(name.encode())
    if not values:
        return default
    text = values[-1]
    if not text.isdigit() or len(text) > 16 or not minimum <= int(text) <= maximum:
        shown = text[:30].decode("ascii", "replace")
        raise _bad(f"{name} is {shown!r}; an integer from {minimum} to {maximum} is accepted")
    return int(text)


def _bad(text: str) -> Refused:
    return Refused(400, "bad_request", text)


def page(history: History, limit: int, most: int = MAX_PAGE_BYTES) -> bytes:
    """The first *limit* messages, fewer if they are large, as JSON: ``messages``, ``position``, ``more``.

    Whoever asks for what follows ``position`` goes on exactly there. ``more`` says that there is something.
    """
    shown: list[bytes] = []
    size = 0
    top = history.top
    for message in history.messages:
        if len(shown) == limit or size > most:
            last = history.messages[len(shown) - 1]
            top = Position(last.epoch, last.offset)
            break
        shown.append(_entry(message))
        size += len(message.payload)
    return b'{"messages":[%b],"position":{"offset":%d,"epoch":%b},"more":%b}' % (
        b",".join(shown),
        top.offset,
        orjson.dumps(top.epoch),
        b"true" if len(shown) < len(history.messages) else b"false",
    )


def _entry(message: StreamMessage) -> bytes:
    """A message with its payload as it was published, digit by digit."""
    kind = b'"type":%b,' % orjson.dumps(message.broadcast_type) if message.broadcast_type else b""
    return b'{%b"offset":%d,"time":%b,"message":%b}' % (
        kind,
        message.offset,
        orjson.dumps(message.time),
        message.payload,
    )
