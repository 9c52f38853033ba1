"""The JSON frames of the Action Cable protocols: encode what the server says, decode what clients say."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from anycable_tx.cable.messages import Member, Position, StreamMessage
from anycable_tx.errors import BadCommand

__all__ = [
    "CONFIRM_HISTORY",
    "PONG",
    "REJECT_HISTORY",
    "Command",
    "HistoryAsk",
    "broadcast_frame",
    "broadcast_tail",
    "confirm_frame",
    "decode_command",
    "disconnect_frame",
    "history_frame",
    "member_event",
    "members_info",
    "presence_error",
    "presence_info",
    "reject_frame",
    "welcome_frame",
    "with_sid",
]

PONG = b'{"type":"pong"}'
CONFIRM_HISTORY = b'{"type":"confirm_history","identifier":'
REJECT_HISTORY = b'{"type":"reject_history","identifier":'


# -- server to client


def broadcast_tail(message: StreamMessage) -> bytes:
    """Everything of a broadcast frame after the identifier: the same for every identifier on the stream."""
    if not message.offset:
        return b',"message":%b}' % message.payload
    return b',"message":%b,"stream_id":%b,"epoch":%b,"offset":%d}' % (
        message.payload,
        orjson.dumps(message.stream),
        orjson.dumps(message.epoch),
        message.offset,
    )


def broadcast_frame(identifier: bytes, message: StreamMessage, tail: bytes) -> bytes:
    """The broadcast of *message* for *identifier* (JSON text), from its shared *tail*."""
    if message.broadcast_type:
        return b'{"type":%b,"identifier":%b%b' % (orjson.dumps(message.broadcast_type), identifier, tail)
    return b'{"identifier":%b%b' % (identifier, tail)


def welcome_frame(sid: str, restored: list[str] | None = None) -> bytes:
    """The welcome; with *restored*, the one of a resumed session. The list is sent even when empty (D-25)."""
    if restored is None:
        return b'{"type":"welcome","sid":%b}' % orjson.dumps(sid)
    return orjson.dumps({"type": "welcome", "sid": sid, "restored": True, "restored_ids": restored})


def with_sid(frame: bytes, sid: str) -> bytes:
    """A backend's *frame*; to a welcome without the sid, with which nobody could resume, it is added (RA-43)."""
    if b"welcome" not in frame:
        return frame
    try:
        value = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return frame
    if not isinstance(value, dict) or value.get("type") != "welcome" or "sid" in value:
        return frame
    return orjson.dumps({**value, "sid": sid})


def confirm_frame(identifier: str) -> bytes:
    """The subscription of *identifier* stands."""
    return b'{"type":"confirm_subscription","identifier":%b}' % orjson.dumps(identifier)


def reject_frame(identifier: str) -> bytes:
    """The subscription of *identifier* is refused."""
    return b'{"type":"reject_subscription","identifier":%b}' % orjson.dumps(identifier)


def disconnect_frame(reason: str, reconnect: bool) -> bytes:
    """The frame that precedes a close; official clients forget their session when they read it."""
    return orjson.dumps({"type": "disconnect", "reason": reason, "reconnect": reconnect})


def history_frame(kind: bytes, identifier: bytes) -> bytes:
    """CONFIRM_HISTORY or REJECT_HISTORY for *identifier* (JSON text)."""
    return b"%b%b}" % (kind, identifier)


def _presence(identifier: bytes, message: dict[str, Any]) -> bytes:
    return b'{"type":"presence","identifier":%b,"message":%b}' % (identifier, orjson.dumps(message))


def members_info(members: list[Member], *, records: bool = True) -> dict[str, Any]:
    """Who is present: the total, and the records unless they were declined or there are none."""
    message: dict[str, Any] = {"type": "info", "total": len(members)}
    if members and records:
        message["records"] = [{"id": m.id} if m.info is None else {"info": m.info, "id": m.id} for m in members]
    return message


def presence_info(identifier: bytes, members: list[Member], *, records: bool) -> bytes:
    """The answer to ``presence``."""
    return _presence(identifier, members_info(members, records=records))


def presence_error(identifier: bytes) -> bytes:
    """The answer to ``presence`` when it cannot be honoured."""
    return _presence(identifier, {"type": "error", "total": 0})


def member_event(kind: str, id: str, info: Any = None) -> bytes:
    """The payload of a ``join`` or ``leave`` event; it travels as a transient message of type ``presence``."""
    event: dict[str, Any] = {"id": id}
    if kind == "join" and info is not None:
        event["info"] = info
    event["type"] = kind
    return orjson.dumps(event)


# -- client to server

_KEYS = frozenset(("command", "identifier", "data", "history", "presence"))


class HistoryAsk(NamedTuple):
    """A client's history request: its positions by stream (None: it sent no ``streams``) and ``since``.

    ``sole``: the client cannot name more than one position, so it may lack something of streams it does not name.
    """

    streams: dict[str, Position] | None
    since: int
    sole: bool = False


class Command(NamedTuple):
    """One decoded client command. ``data`` is any JSON value; ``presence`` is (id, info) or None."""

    name: str
    identifier: str = ""
    data: Any = None
    history: HistoryAsk | None = None
    presence: tuple[str, Any] | None = None


def decode_command(text: bytes) -> Command | None:
    """The command in a client's frame; None for JSON ``null``, which is ignored (CP-40).

    Raises BadCommand naming what is wrong. Lenient where clients in use need it: keys in any case, ``since``
    of false or null, integral floats, a numeric presence id (D-02).
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as e:
        raise BadCommand(f"not JSON: {e}") from None
    if value is None:
        return None
    if type(value) is not dict:
        raise BadCommand(f"expected a JSON object, got {_kind(value)}")
    if not value.keys() <= _KEYS:
        value = {key.lower(): item for key, item in value.items()}
    get = value.get
    name = _text("command", get("command"))
    history, presence = get("history"), get("presence")
    return Command(
        name,
        _text("identifier", get("identifier")),
        get("data"),
        None if history is None else _history(history),
        None if presence is None else _member(presence),
    )


def _kind(value: object) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )


def _text(key: str, value: object) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        raise BadCommand(f"{key}: expected a string, got {_kind(value)}")
    return value


def _integer(key: str, value: object) -> int:
    if value is None or value is False:
        return 0
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise BadCommand(f"{key}: expected an integer, got {_kind(value)}")


def _lower(key: str, value: object) -> dict[str, Any]:
    if type(value) is not dict:
        raise BadCommand(f"{key}: expected an object, got {_kind(value)}")
    return {k.lower(): item for k, item in value.items()}


def _history(value: object) -> HistoryAsk:
    if value is False:
        return HistoryAsk(None, 0)
    asked = _lower("history", value)
    streams = asked.get("streams")
    since = _integer("history.since", asked.get("since"))
    if streams is None or streams is False:
        return HistoryAsk(None, since)
    if type(streams) is not dict:
        raise BadCommand(f"history.streams: expected an object, got {_kind(streams)}")
    positions = {}
    for stream, position in streams.items():
        if position is None:
            continue
        fields = _lower(f"history.streams.{stream}", position)
        offset = _integer("offset", fields.get("offset"))
        if offset < 0:
            raise BadCommand(f"history.streams.{stream}.offset: expected 0 or more, got {offset}")
        positions[stream] = Position(_text("epoch", fields.get("epoch")), offset)
    return HistoryAsk(positions, since)


def _member(value: object) -> tuple[str, Any]:
    fields = _lower("presence", value)
    id = fields.get("id")
    if type(id) is int or type(id) is float:
        id = str(id)
    return _text("presence.id", id), fields.get("info")
