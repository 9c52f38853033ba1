"""What is said between nodes, as JSON: that of AnyCable servers with a few members more.

A message is ``{"stream", "data"[, "meta"][, "id"][, "offset", "epoch", "prev"], "time"}``, a command is
``{"command", "payload"}``. ``data`` is a string with the text of the payload. ``time`` (milliseconds) marks the
messages of our own nodes: only the position of these counts, because other servers have stores of their own.
"""

from __future__ import annotations

from typing import Any

import orjson

from anycable_tx.cable import publications
from anycable_tx.cable.messages import Publication, RemoteCommand, StreamMessage
from anycable_tx.errors import BadPublication

__all__ = ["body_of", "decode", "encode", "message_of", "opening_of"]


def encode(message: StreamMessage | RemoteCommand) -> bytes:
    """The JSON text of *message*."""
    if isinstance(message, RemoteCommand):
        return orjson.dumps({"command": message.command, "payload": message.payload})
    position = b""
    if message.offset:
        position = b',"offset":%d,"epoch":%b,"prev":%d' % (message.offset, orjson.dumps(message.epoch), message.prev)
    return b'%b%b%b,"time":%d}' % (opening_of(message.stream), body_of(message), position, round(message.time * 1000))


def opening_of(stream: str) -> bytes:
    """The beginning of a message, up to what ``body_of`` answers."""
    return b'{"stream":%b,' % orjson.dumps(stream)


def body_of(message: StreamMessage | Publication) -> bytes:
    """The members of a message that say neither where it goes nor when it was stored."""
    body = b'"data":%b' % orjson.dumps(message.payload.decode())
    meta = {}
    if message.exclude_socket:
        meta["exclude_socket"] = message.exclude_socket
    if message.broadcast_type:
        meta["broadcast_type"] = message.broadcast_type
    if meta:
        body += b',"meta":%b' % orjson.dumps(meta)
    if message.id:
        body += b',"id":%b' % orjson.dumps(message.id)
    return body


def decode(payload: bytes) -> StreamMessage | RemoteCommand | None:
    """What *payload* says; None for what nobody here can have meant.

    Where it may be said is for the caller to know.
    """
    try:
        members = orjson.loads(payload)
    except ValueError:
        members = None
    if isinstance(members, dict) and "time" in members:
        message = message_of(members)
    else:
        message = _foreign(payload)
    if message is None and isinstance(members, dict):
        return _command(members)
    return message


def message_of(members: dict[str, Any]) -> StreamMessage | None:
    """The message of one of our nodes; None if it is not well formed."""
    meta = members.get("meta", {})
    try:
        message = StreamMessage(
            members["stream"],
            members["data"].encode(),
            members.get("offset", 0),
            members.get("prev", 0),
            members.get("epoch", ""),
            members["time"] / 1000,
            meta.get("exclude_socket", ""),
            meta.get("broadcast_type", ""),
            members.get("id", ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    texts = (message.stream, message.epoch, message.exclude_socket, message.broadcast_type, message.id)
    good = all(type(text) is str for text in texts) and type(message.offset) is type(message.prev) is int
    return message if good and message.stream else None


def _foreign(payload: bytes) -> StreamMessage | None:
    """The message of another kind of server, as far as it is one; it has no position here."""
    try:
        found = publications.decode(payload, lenient=True)
    except BadPublication:
        return None
    if isinstance(found, RemoteCommand) or len(found) != 1:
        return None
    return StreamMessage(
        found[0].stream,
        found[0].payload,
        exclude_socket=found[0].exclude_socket,
        broadcast_type=found[0].broadcast_type,
        id=found[0].id,
    )


def _command(members: dict[str, Any]) -> RemoteCommand | None:
    command, payload = members.get("command"), members.get("payload")
    if type(command) is not str or not command or "stream" in members:
        return None
    return RemoteCommand(command, payload if isinstance(payload, dict) else {})
