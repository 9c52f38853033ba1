"""The Redis protocol, version 2: commands to bytes, bytes to answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from anycable_tx.redis.api import Arg, RedisError

__all__ = ["BadAnswer", "Reader", "encode"]

#: No line of an answer is longer, in bytes; what is long comes with its length.
_MAX_LINE = 65536


class BadAnswer(Exception):
    """What came is not the Redis protocol."""


def encode(args: tuple[Arg, ...]) -> bytes:
    """One command. Texts become UTF-8, numbers decimals."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if type(arg) is bytes else _encode_one(arg)
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _encode_one(arg: Arg) -> bytes:
    if isinstance(arg, str):
        return arg.encode()
    if isinstance(arg, bytes):
        return arg
    text = repr(arg)
    return (text if "e" not in text else format(Decimal(text), "f")).encode()


class Reader:
    """Takes bytes as they come; each byte is looked at once or twice, however the answers are cut into pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._need = 0  # so many bytes there must be before it is worth while to go on
        self._open: list[tuple[list[Any], int]] = []  # lists that are not complete, and their lengths

    def feed(self, data: bytes) -> list[Any]:
        """The answers that are complete now: bytes, ints, None, RedisError, and lists of them.

        Raises BadAnswer; the reader is of no use then.
        """
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._need:
            return []
        buffer = b"".join(self._pieces) if len(self._pieces) > 1 else data
        answers, position = self._parse(buffer)
        rest = buffer[position:]
        self._pieces, self._size = ([rest] if rest else []), len(rest)
        return answers

    def _parse(self, buffer: bytes) -> tuple[list[Any], int]:
        answers: list[Any] = []
        open_lists = self._open
        position = 0
        self._need = 0
        while (end := buffer.find(b"\r\n", position)) >= 0:
            kind = buffer[position]
            value: Any
            if kind == 36:  # $
                length = _number(buffer[position + 1 : end])
                if length < 0:
                    value = None
                else:
                    start, end = end + 2, end + 2 + length
                    if len(buffer) < end + 2:
                        self._need = end + 2 - position
                        return answers, position
                    value = buffer[start:end]
            elif kind == 58:  # :
                value = _number(buffer[position + 1 : end])
            elif kind == 42:  # *
                length = _number(buffer[position + 1 : end])
                if length > 0:
                    open_lists.append(([], length))
                    position = end + 2
                    continue
                value = [] if length == 0 else None
            elif kind == 43:  # +
                value = buffer[position + 1 : end]
            elif kind == 45:  # -
                value = RedisError(buffer[position + 1 : end].decode("utf-8", "replace"))
            else:
                raise BadAnswer(f"an answer cannot begin with {buffer[position : position + 1]!r}")
            position = end + 2
            while open_lists:
                items, length = open_lists[-1]
                items.append(value)
                if len(items) < length:
                    break
                value = items
                open_lists.pop()
            else:
                answers.append(value)
        if len(buffer) - position > _MAX_LINE:
            raise BadAnswer("a line of an answer is too long")
        return answers, position


def _number(digits: bytes) -> int:
    try:
        return int(digits)
    except ValueError:
        raise BadAnswer(f"{digits[:20]!r} is not a number") from None
