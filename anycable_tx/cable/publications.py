"""Turn the bytes a publisher sent into publications or a command; pure, no I/O.

Accepted is one object ``{"stream", "data"[, "meta"]}``, an array of them (a batch, taken whole or refused
whole) or a command ``{"command", "payload"}``. Keys match whatever their case and the last of equal keys wins.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

from anycable_tx.cable.messages import Publication, RemoteCommand
from anycable_tx.errors import BadPublication

__all__ = ["MAX_ID_LENGTH", "decode"]

#: The longest idempotency id, in characters.
MAX_ID_LENGTH = 128

_KEYS = frozenset(("stream", "data", "meta", "offset", "epoch", "command", "payload"))
_META_KEYS = frozenset(("exclude_socket", "broadcast_type", "transient", "id"))
_PAYLOAD_KEYS = frozenset(("identifier", "reconnect"))

#: Commands that only nodes may send to each other.
_INTERNAL_COMMANDS = frozenset(("takeover",))

#: One escape after the other, so that a backslash is never taken for the start of the wrong one: a pair of
#: surrogates, a lone one (in the group), or any other.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_SPACE = re.compile(r"[ \t\n\r]*")

#: Finds where values end. Numbers stay text: nothing is converted that is not needed.
_scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


def decode(body: bytes, *, lenient: bool, idempotency_key: str = "") -> list[Publication] | RemoteCommand:
    """The publications in *body*, in their order, or the one command.

    *lenient* accepts ``data`` that is not a string and takes it as the message itself. *idempotency_key* is
    the id of a publication without ``meta.id``; element k of a batch gets ``<key>:k`` (k from 0). An offset or
    epoch sent by the publisher is checked and ignored: only brokers give positions.

    Raises BadPublication, and nothing else, saying what is wrong, where, and what is accepted.
    """
    text: str | None = None
    try:
        document = orjson.loads(body)
    except ValueError as e:
        text = _mended(body)
        if text is None:
            raise BadPublication(f"the body is not JSON: {e}") from None
        try:
            document = orjson.loads(text)
        except ValueError as e:
            raise BadPublication(f"the body is not JSON: {e}") from None

    if type(document) is dict:
        members = document if document.keys() <= _KEYS else _folded(document, _KEYS)
        stream = members.get("stream")
        if not stream and stream in (None, ""):
            return _command(members)
        data = members.get("data")
        if type(data) is str:
            payload = _payload(data)
        else:
            payload = _other_payload(data, lenient, "", lambda: _values(body, text)[0])
        return [_publication(members, payload, idempotency_key, "")]
    if type(document) is list:
        return _batch(document, body, text, lenient, idempotency_key)
    raise BadPublication(f"the body is {_kind(document)}; an object or an array of objects is accepted")


def _batch(elements: list[Any], body: bytes, text: str | None, lenient: bool, key: str) -> list[Publication]:
    if not elements:
        raise BadPublication("the batch is empty; an array of objects with 'stream' and 'data' is accepted")
    values: list[str] = []

    def value(index: int) -> str:
        if not values:
            values.extend(_values(body, text))
        return values[index]

    publications = []
    for index, element in enumerate(elements):
        where = f" in element {index} of the batch"
        if type(element) is not dict:
            raise BadPublication(
                f"element {index} of the batch is {_kind(element)}; an object with 'stream' and 'data' is accepted"
            )
        members = element if element.keys() <= _KEYS else _folded(element, _KEYS)
        data = members.get("data")
        if type(data) is str:
            payload = _payload(data)
        else:
            payload = _other_payload(data, lenient, where, lambda index=index: value(index))
        publications.append(_publication(members, payload, f"{key}:{index}" if key else "", where))
    return publications


def _publication(members: dict[str, Any], payload: bytes, key: str, where: str) -> Publication:
    stream = members.get("stream")
    if type(stream) is not str or not stream:
        _refuse("stream", where, stream, "a string that is not empty")
    if len(members) > 2 or "data" not in members:  # there may be more than these two
        offset, epoch = members.get("offset"), members.get("epoch")
        if offset is not None and (type(offset) is not int or offset < 0):
            _refuse("offset", where, offset, "an integer of 0 or more")
        if epoch is not None and type(epoch) is not str:
            _refuse("epoch", where, epoch, "a string")
        meta = members.get("meta")
        if meta is not None:
            return _with_meta(stream, payload, meta, key, where)
    return Publication(stream, payload, "", "", False, key)


def _with_meta(stream: str, payload: bytes, meta: Any, key: str, where: str) -> Publication:
    if type(meta) is not dict:
        _refuse("meta", where, meta, "an object or null")
    if not meta.keys() <= _META_KEYS:
        meta = _folded(meta, _META_KEYS)
    id_ = _text(meta, "id", where)
    if len(id_) > MAX_ID_LENGTH:
        raise BadPublication(f"'meta.id'{where} has {len(id_)} characters; at most {MAX_ID_LENGTH} are accepted")
    transient = meta.get("transient")
    if transient is None:
        transient = False
    elif type(transient) is not bool:
        _refuse("meta.transient", where, transient, "true or false")
    return Publication(
        stream,
        payload,
        _text(meta, "exclude_socket", where),
        _text(meta, "broadcast_type", where),
        transient,
        id_ or key,
    )


def _text(meta: dict[str, Any], name: str, where: str) -> str:
    value = meta.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        _refuse(f"meta.{name}", where, value, "a string")
    return value


def _command(members: dict[str, Any]) -> RemoteCommand:
    command = members.get("command")
    if command is None or command == "":
        raise BadPublication("invalid publication format: there is neither a 'stream' nor a 'command'")
    if type(command) is not str:
        _refuse("command", "", command, "a string")
    if command in _INTERNAL_COMMANDS:
        raise BadPublication(f"the command {command!r} is reserved for the nodes; 'disconnect' is accepted")
    payload = members.get("payload")
    if command != "disconnect":
        return RemoteCommand(command, payload if type(payload) is dict else {})
    if type(payload) is not dict:
        _refuse("payload", " of disconnect", payload, "an object with an 'identifier'")
    payload = _folded(payload, _PAYLOAD_KEYS)
    identifier, reconnect = payload.get("identifier"), payload.get("reconnect")
    if type(identifier) is not str or not identifier:
        _refuse("payload.identifier", " of disconnect", identifier, "a string that is not empty")
    if reconnect is not None and type(reconnect) is not bool:
        _refuse("payload.reconnect", " of disconnect", reconnect, "true or false")
    return RemoteCommand(command, {"identifier": identifier, "reconnect": bool(reconnect)})


def _payload(data: str) -> bytes:
    """*data* itself if it is the text of a JSON value other than null, else *data* as a JSON string."""
    raw = data.encode()
    try:
        value = orjson.loads(raw)
    except ValueError:
        if "\\ud" not in data and "\\uD" not in data:
            return orjson.dumps(data)
        raw = _without_lone_surrogates(data).encode()
        try:
            value = orjson.loads(raw)
        except ValueError:
            return orjson.dumps(data)
    if value is None:
        return orjson.dumps(data)
    return raw.strip()


def _other_payload(data: Any, lenient: bool, where: str, value: Any) -> bytes:
    """The payload for *data* that is not a string; *value()* is the text it was decoded from."""
    if data is None:
        return b'""'
    if not lenient:
        _refuse("data", where, data, "a string (other values only with broadcast_lenient)")
    text: str = value()
    return text.encode()


def _values(body: bytes, text: str | None) -> list[str]:
    """The text of the ``data`` member of each object in a body that is known to be valid JSON ('': none).

    Copying the text keeps every digit and the order of keys, which a trip through Python's numbers would not.
    """
    if text is None:
        text = body.decode()
    try:
        start = _skip(text, 0)
        if text[start] == "{":
            return [_data_text(text, start)[0]]
        values = []
        at = _skip(text, start + 1)
        while text[at] != "]":
            if text[at] == "{":
                value, at = _data_text(text, at)
            else:
                value, (_, at) = "", _scan(text, at)
            values.append(value)
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
        return values
    except RecursionError:
        raise BadPublication("the body is nested too deeply") from None


def _data_text(text: str, start: int) -> tuple[str, int]:
    """The text of the last ``data`` member of the object at *start*, and the index after the object."""
    found = ""
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, at = _scan(text, at)
        begin = _skip(text, _skip(text, at) + 1)  # over the colon
        _, at = _scan(text, begin)
        if key == "data" or key.casefold() == "data":
            found = text[begin:at]
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _folded(members: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The *members* whose names are among *keys* when case is ignored; the later of equal ones wins."""
    found = {}
    for name, value in members.items():
        folded = name if name in keys else name.casefold()
        if folded in keys:
            found[folded] = value
    return found


def _mended(body: bytes) -> str | None:
    """*body* with U+FFFD for broken UTF-8 and lone surrogates, or None if there is nothing to mend."""
    text = body.decode("utf-8", "replace")
    if "\\ud" in text or "\\uD" in text:
        return _without_lone_surrogates(text)
    return text if "\ufffd" in text else None


def _without_lone_surrogates(text: str) -> str:
    return _ESCAPE.sub(_mend, text)


def _mend(match: re.Match[str]) -> str:
    escape: str = match[0]
    return escape if match[1] is None else "\\ufffd"


def _refuse(name: str, where: str, value: Any, accepted: str) -> NoReturn:
    raise BadPublication(f"'{name}'{where} is {_kind(value)}; {accepted} is accepted")


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    if value == "":
        return "an empty string"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return f"the number {value}"[:40]
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
