"""The bodies of HTTP calls: requests as every backend understands them, and lenient reading of replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import orjson

from anycable_tx.rpc.transport import CallFailed, Code, RestoredStreams, RpcReply, RpcStatus

__all__ = ["decode", "encode"]

#: Method -> the keys of its request, in the order they are sent. ``env`` is always there.
REQUESTS: dict[str, tuple[str, ...]] = {
    "connect": ("env",),
    "command": ("command", "identifier", "connection_identifiers", "data", "env"),
    "disconnect": ("identifiers", "subscriptions", "env"),
    "restore": ("identifiers", "subscriptions", "env", "prev_sid", "disconnect_notified"),
}
ENV = ("url", "headers", "cstate", "istate")

STATUSES = {"ERROR": RpcStatus.ERROR, "SUCCESS": RpcStatus.SUCCESS, "FAILURE": RpcStatus.FAILURE}

_Reader = Callable[[str, Any], Any]


def encode(method: str, request: Mapping[str, Any]) -> bytes:
    """The body of a request: the keys that *method* has and nothing else, and of those what is not empty.

    Strict backends refuse keys they do not know, so nothing may be added. Raises CallFailed if *request* holds
    what JSON cannot.
    """
    env = request.get("env") or {}
    values = {**request, "env": {key: env[key] for key in ENV if env.get(key)}}
    try:
        return orjson.dumps({key: values[key] for key in REQUESTS[method] if key == "env" or values.get(key)})
    except TypeError as e:
        raise CallFailed(Code.INVALID, f"the request cannot be written as JSON: {e}", delivered=False) from None


def decode(method: str, body: bytes) -> RpcReply:
    """What a reply's body says.

    Keys that *method* does not have are ignored, missing ones and null mean the default. ``status`` is a number or
    a name, and keys may be in camelCase as well (RA-31); snake_case wins over it. Raises CallFailed (UNKNOWN) for
    anything else, naming the key.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        text = f"the answer is not JSON: {e}" if body else "the answer is empty; a JSON object is expected"
        raise _unreadable(text) from None
    values = _object("the answer", document)
    reply = RpcReply()
    for key, reader in _REPLIES[method].items():
        value = _get(values, key)
        if value is not None:
            setattr(reply, "restored_streams" if reader is _restored else key, reader(key, value))
    env = _object("env", _get(values, "env", {}))
    for key in ("cstate",) if method == "connect" else ("cstate", "istate"):
        state = _get(env, key)
        if state is not None:
            setattr(reply, key, _texts_by_name(f"env.{key}", state))
    return reply


def _unreadable(text: str) -> CallFailed:
    return CallFailed(Code.UNKNOWN, text, delivered=True)


def _wrong(key: str, expected: str, value: object) -> CallFailed:
    """The value itself is not shown: it may be a user's."""
    kind = "null" if value is None else f"a value of type {type(value).__name__}"
    return _unreadable(f"{key}: {expected} is expected in the answer, not {kind}")


def _get(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value under *key* or its alias, *default* without one."""
    value = values.get(key)
    if value is None and "_" in key:
        value = values.get(_alias(key))
    return default if value is None else value


@cache
def _alias(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(other.capitalize() for other in others)


def _object(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(key, "an object", value)
    return value


def _status(key: str, value: Any) -> int:
    number = STATUSES.get(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number not in STATUSES.values():
        shown = f"{value!r:.40}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
        raise _unreadable(f"{key}: 0, 1, 2, {', '.join(STATUSES)} are known in the answer, not {shown}")
    return number


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "a string", value)
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, "true or false", value)
    return value


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(key, "a list of strings", value)
    return [_text(f"{key}[{n}]", each) for n, each in enumerate(value)]


def _texts_by_name(key: str, value: Any) -> dict[str, str]:
    """A state; null is as good as the empty string there, which deletes the name."""
    return {
        name: "" if each is None else _text(f"{key}[{name!r:.80}]", each)
        for name, each in _object(key, value).items()
    }


def _presence(key: str, value: Any) -> dict[str, str]:
    values = _object(key, value)
    return {name: _text(f"{key}.{name}", _get(values, name, "")) for name in ("type", "id", "info")}


def _restored(key: str, value: Any) -> list[RestoredStreams]:
    if not isinstance(value, list):
        raise _wrong(key, "a list of objects", value)
    restored = []
    for n, each in enumerate(value):
        place = f"{key}[{n}]"
        values = _object(place, each)
        restored.append(
            RestoredStreams(
                _text(f"{place}.identifier", _get(values, "identifier")),
                _flag(f"{place}.stop_streams", _get(values, "stop_streams", False)),
                _texts(f"{place}.stopped_streams", _get(values, "stopped_streams", [])),
                _texts(f"{place}.streams", _get(values, "streams", [])),
            )
        )
    return restored


#: Method -> the keys of its reply, beside ``env``, and how each is read.
_REPLIES: dict[str, dict[str, _Reader]] = {
    "connect": {"status": _status, "identifiers": _text, "transmissions": _texts, "error_msg": _text},
    "command": {
        "status": _status,
        "disconnect": _flag,
        "stop_streams": _flag,
        "streams": _texts,
        "transmissions": _texts,
        "error_msg": _text,
        "stopped_streams": _texts,
        "presence": _presence,
    },
    "disconnect": {"status": _status, "error_msg": _text},
    "restore": {
        "status": _status,
        "identifiers": _text,
        "transmissions": _texts,
        "error_msg": _text,
        "rejected_subscriptions": _texts,
        "streams": _restored,
    },
}
