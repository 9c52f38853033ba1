"""What is said to a client of server-sent events: the text of events, and the wire formats that shared frames have.

An event is ``event``, ``data``, ``id`` and ``retry``, in this order, each where it says something, and an empty line.
Its id is the position of the message in its stream, ``<offset>/<epoch>/<stream>``, with which a client resumes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from anycable_tx.cable.codec import broadcast_frame
from anycable_tx.cable.messages import Position, StreamMessage

__all__ = ["EventWire", "event", "event_id", "wire_of"]

#: What a client is told that is not to come back: to wait for a year, in milliseconds.
NEVER = b"31536000000"

_BREAK = re.compile(rb"\r\n|\r|\n")
#: What the line of an id cannot hold. Clients ignore an id with a NUL.
_UNFIT = re.compile(r"[\r\n\0]")


def event(data: bytes | None, kind: str = "", id: bytes = b"", retry: bytes = b"") -> bytes:
    """One event. With None as *data* clients take note of the id and of the time to wait, and show nothing."""
    lines = []
    if kind:
        lines.append(b"event: " + _BREAK.sub(b" ", kind.encode()))
    if data is not None:
        lines.append(b"data: " + (_BREAK.sub(b"\ndata: ", data) if b"\n" in data or b"\r" in data else data))
    if id:
        lines.append(b"id: " + id)
    if retry:
        lines.append(b"retry: " + retry)
    return b"\n".join(lines) + b"\n\n"


def event_id(stream: str, position: Position) -> bytes:
    """The id that names a *position*; b'' where there is none, or the line of an id cannot hold it."""
    if not position.epoch or _UNFIT.search(stream):
        return b""
    return b"%d/%b/%b" % (position.offset, position.epoch.encode(), stream.encode())


def _text(payload: bytes) -> bytes:
    """A message (JSON text) as a browser's ``event.data``: a string without its quotes, anything else as JSON."""
    if payload.lstrip()[:1] != b'"':
        return payload
    try:
        text: str = orjson.loads(payload)
        return text.encode()
    except ValueError:  # half of a character, which JSON can write and UTF-8 cannot
        return payload


class EventWire:
    """The events of one kind of client; use ``wire_of``.

    ``whole``: messages come as protocol objects, with their identifier. ``raw``: nothing but messages is told.
    ``chunked``: the response is (HTTP/1.1), otherwise it ends with its connection.
    """

    __slots__ = ("chunked", "end", "raw", "whole")

    def __init__(self, *, whole: bool, raw: bool, chunked: bool) -> None:
        self.whole = whole
        self.raw = raw
        self.chunked = chunked
        #: What ends a response.
        self.end = b"0\r\n\r\n" if chunked else b""

    def broadcast(self, identifier: bytes, message: StreamMessage, tail: bytes) -> bytes:
        """*message* as an event; b'' if it has a type and the client is told of messages only."""
        kind = message.broadcast_type
        if kind and self.raw:
            return b""
        data = broadcast_frame(identifier, message, tail) if kind or self.whole else _text(message.payload)
        id = event_id(message.stream, Position(message.epoch, message.offset)) if message.offset else b""
        return event(data, kind, id)

    def notice(self, payload: bytes, value: dict[str, Any] | None, id: bytes = b"") -> bytes:
        """A protocol message, whose JSON *value* is, as an event; b'' if there is nothing this client is told of it.

        Of what has a type, a raw client is told the *id* and that it must not come back.
        """
        kind = value.get("type") if value is not None else None
        if value is None or not isinstance(kind, str) or not kind:
            if value is not None and "message" in value and not self.whole:
                payload = _text(json.dumps(value["message"], ensure_ascii=False, separators=(",", ":")).encode())
            return event(payload, id=id)
        retry = NEVER if kind == "disconnect" and value.get("reconnect") is False else b""
        if self.raw:
            return event(None, id=id, retry=retry) if id or retry else b""
        return event(payload, kind, id, retry)

    def ping(self, time: int) -> bytes:
        """A sign of life at *time*, which raw clients do not see."""
        return b":\n\n" if self.raw else b'event: ping\ndata: {"type":"ping","message":%d}\n\n' % time

    def frame(self, payload: bytes) -> bytes:
        """Events as a part of the response."""
        return b"%x\r\n%b\r\n" % (len(payload), payload) if self.chunked else payload


_WIRES = {
    (whole, raw, chunked): EventWire(whole=whole, raw=raw, chunked=chunked)
    for whole in (False, True)
    for raw in (False, True)
    for chunked in (False, True)
}


def wire_of(*, whole: bool, raw: bool, chunked: bool) -> EventWire:
    """The wire format of this kind; frames are shared by those who have the same one."""
    return _WIRES[whole, raw, chunked]
