"""What messages of streams look like on NATS: the payload is the body, everything else is a header.

Where a message stands is said by headers of the server when it stored it and handed it on; what goes straight to the
live subject says so itself in ``Ac-Position``, or has no position.
"""

from __future__ import annotations

import json
from datetime import datetime
from urllib.parse import quote, unquote

import orjson

from anycable_tx.cable.messages import Publication, StreamMessage
from anycable_tx.nats.api import Headers, Message
from anycable_tx.nats.jetstream import Stored
from anycable_tx.nats.names import Names
from anycable_tx.tokens import token

__all__ = ["headers_of", "live_message", "stored_message"]

#: A JSON object with ``exclude_socket`` and ``broadcast_type``, as far as there are such.
META = "Ac-Meta"
#: The publication's own id, percent-encoded.
ID = "Ac-Id"
#: The name of a stream whose subject does not tell it, percent-encoded.
STREAM = "Ac-Stream"
#: ``offset prev milliseconds epoch`` of a message that is stored elsewhere.
POSITION = "Ac-Position"


def headers_of(message: Publication | StreamMessage) -> dict[str, str]:
    """The headers of *message*: ASCII and without line breaks, whatever is in it. Its body is the payload."""
    headers = {}
    meta = {}
    if message.exclude_socket:
        meta["exclude_socket"] = message.exclude_socket
    if message.broadcast_type:
        meta["broadcast_type"] = message.broadcast_type
    if meta:
        headers[META] = json.dumps(meta)
    if message.id:
        headers[ID] = quote(message.id)
    if _is_hashed(message.stream):
        headers[STREAM] = quote(message.stream)
    if isinstance(message, StreamMessage) and message.offset:
        milliseconds = round(message.time * 1000)
        headers[POSITION] = f"{message.offset} {message.prev} {milliseconds} {quote(message.epoch)}"
    return headers


def live_message(names: Names, kind: str, stream: str, message: Message, now: float) -> StreamMessage:
    """What arrived at Unix time *now* on the live subject of *stream*, of the class *kind*.

    The epoch is that in the name of the log which the server says it stored the message in. Raises ValueError if
    nobody here can have meant it.
    """
    headers = message.headers
    offset = headers.get("Nats-Sequence")
    if offset is not None:
        epoch = names.epoch_of(kind, headers.get("Nats-Stream", ""))
        if not epoch:
            raise ValueError(f"it was stored in {headers.get('Nats-Stream')!r}, which is no log of the class {kind}")
        prev, stored = headers.get("Nats-Last-Sequence", "0"), headers.get("Nats-Time-Stamp")
        time = datetime.fromisoformat(stored).timestamp() if stored else now
        return _message(stream, message.data, headers, int(offset), int(prev), epoch, time)
    position = headers.get(POSITION)
    if position is not None:
        offset, prev, milliseconds, epoch = position.split(" ")
        try:
            time = int(milliseconds) / 1000
        except OverflowError as e:
            raise ValueError(e) from None
        return _message(stream, message.data, headers, int(offset), int(prev), unquote(epoch), time)
    return _message(stream, message.data, headers, 0, 0, "", now)


def stored_message(stream: str, stored: Stored, epoch: str, prev: int) -> StreamMessage:
    """A message of *stream* as it was read from the log of *epoch*; *prev* is the offset of the one before it.

    Raises ValueError if nobody here can have meant it.
    """
    return _message(stream, stored.data, stored.headers, stored.offset, prev, epoch, stored.time)


def _message(
    stream: str, payload: bytes, headers: Headers, offset: int, prev: int, epoch: str, time: float
) -> StreamMessage:
    if offset < 0 or not 0 <= prev <= offset:
        raise ValueError(f"{offset} after {prev} is no position")
    orjson.loads(payload)  # it goes into frames as it is
    meta = orjson.loads(headers.get(META, "{}"))
    if type(meta) is not dict:
        raise ValueError(f"{META} is no object")
    exclude_socket, broadcast_type = meta.get("exclude_socket", ""), meta.get("broadcast_type", "")
    if type(exclude_socket) is not str or type(broadcast_type) is not str:
        raise ValueError(f"{META} holds what is no text")
    if STREAM in headers and unquote(headers[STREAM]) != stream:
        raise ValueError("it is a message of another stream")
    id = headers.get(ID, "")
    return StreamMessage(
        stream, payload, offset, prev, epoch, time, exclude_socket, broadcast_type, unquote(id) if id else ""
    )


def _is_hashed(stream: str) -> bool:
    return token(stream).startswith("h")
