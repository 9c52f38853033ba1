"""Headers of messages, as bytes and as a mapping."""

from __future__ import annotations

import re
from typing import NamedTuple

from anycable_tx.nats.api import Headers

__all__ = ["Decoded", "decode", "encode"]

_OPENING = b"NATS/1.0"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Decoded(NamedTuple):
    """What a block of headers says; ``status`` is 0 unless it opens with one, such as 404."""

    headers: dict[str, str]
    status: int = 0
    description: str = ""


def encode(headers: Headers) -> bytes:
    """The block that goes before a body. Raises ValueError for what would not arrive as it is."""
    lines = [_OPENING]
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if value != value.strip() or "\r" in value or "\n" in value:
            raise ValueError(f"the header {name} cannot be {value!r}: no line breaks, and no spaces around it")
        lines.append(f"{name}: {value}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


def decode(block: bytes) -> Decoded:
    """What *block* says. Lines nobody understands are left out; of a name that is there twice the last one counts."""
    first, *lines = block.split(b"\r\n")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    opening = first[len(_OPENING) :].split(None, 1)
    if opening and opening[0].isdigit():
        description = opening[1].decode("utf-8", "replace") if len(opening) > 1 else ""
        return Decoded(headers, int(opening[0]), description)
    return Decoded(headers)
