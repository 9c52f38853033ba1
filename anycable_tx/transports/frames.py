"""WebSocket frames as the server writes them (unmasked, unfragmented), and the mask of those it reads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from anycable_tx.cable.codec import broadcast_frame
from anycable_tx.cable.fanout import Wire

__all__ = ["DEFLATE", "PLAIN", "control_frame", "deflated_frame", "text_frame", "unmask"]


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 1 << 16:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


def text_frame(payload: bytes) -> bytes:
    """One text message."""
    return _header(0x81, len(payload)) + payload


def deflated_frame(payload: bytes) -> bytes:
    """One text message, compressed without reference to any other, so that it fits every connection (RFC 7692)."""
    deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -15)
    data = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return _header(0xC1, len(data) - 4) + data[:-4]


def control_frame(opcode: int, payload: bytes = b"") -> bytes:
    """A close (8), ping (9) or pong (10) frame; *payload* is at most 125 bytes."""
    return bytes((0x80 | opcode, len(payload))) + payload


def unmask(data: bytes, mask: bytes) -> bytes:
    """XOR *data* with the repeated four bytes of *mask*."""
    size = len(data)
    key = (mask * ((size + 3) >> 2))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


class _TextWire:
    """Protocol messages as they are, each in a text frame."""

    __slots__ = ("frame",)
    broadcast = staticmethod(broadcast_frame)

    def __init__(self, frame: Callable[[bytes], bytes]) -> None:
        self.frame = frame


#: The wire formats of WebSockets, without and with compression.
PLAIN: Wire = _TextWire(text_frame)
DEFLATE: Wire = _TextWire(deflated_frame)
