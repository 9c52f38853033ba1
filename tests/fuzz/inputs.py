"""What nobody would send, and what is almost right."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["almost", "bodies", "cut", "grafted", "json_like"]

#: Words that mean something to one endpoint or command or another.
WORDS = (
    *("stream", "data", "meta", "command", "payload", "identifier", "history", "presence", "streams", "since"),
    *("offset", "epoch", "id", "info", "type", "transient", "exclude_socket", "broadcast_type", "reconnect"),
    *("subscribe", "unsubscribe", "message", "whisper", "join", "leave", "ping", "pong", "disconnect", "takeover"),
    *("chat", "$pubsub", "channel", "stream_name", "signed_stream_name"),
    '{"channel":"$pubsub","stream_name":"chat"}',
)

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 1e308, -0.0, "", "\0", "\ud800", "x" * 300])
)
#: Any JSON value, of words that are known here more often than chance would have it.
json_like: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)


_PIECES = (b"\0", b"\r\n", b'"', b"{", b"[" * 2000, b"\xff", b"\\u", b"1e999", b"9" * 5000)


@st.composite
def almost(draw: st.DrawFn, sound: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of *sound* of which a few were replaced, removed, repeated or put in between."""
    data = bytearray(draw(sound))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 8)))
        piece = draw(st.binary(max_size=4) | st.sampled_from(_PIECES))
        data[at:upto] = piece if draw(st.booleans()) else bytes(data[at:upto]) + piece
    return bytes(data)


@st.composite
def grafted(draw: st.DrawFn, sound: bytes) -> bytes:
    """The JSON text *sound* with something else in one place of it."""
    value = json.loads(sound)
    if draw(st.integers(0, 9)) == 0:
        return _text(draw(json_like))
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
            break
        place = inner
    if draw(st.booleans()):
        place[key] = draw(json_like)
    else:
        del place[key]
    return _text(value)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


#: Bodies of requests and frames: JSON, what is almost JSON, and anything.
bodies = json_like.map(_text) | almost(json_like.map(_text)) | st.binary(max_size=60)


@st.composite
def cut(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> list[bytes]:
    """The bytes of *whole* in pieces, as they may arrive."""
    data = draw(whole)
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
