"""Random identifiers: session ids, node ids, epochs."""

from __future__ import annotations

import secrets

__all__ = ["new_epoch", "new_node_id", "new_sid"]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
# One look-up per byte: 256 is a multiple of 64, so the choice stays uniform.
_BY_BYTE = _ALPHABET * 4


def _random(length: int) -> str:
    return "".join([_BY_BYTE[b] for b in secrets.token_bytes(length)])


def new_sid() -> str:
    """A session id: 21 characters of ``[A-Za-z0-9_-]``, 126 random bits (CP-14)."""
    return _random(21)


def new_node_id() -> str:
    """A node id for the logs: 6 characters of the same alphabet."""
    return _random(6)


def new_epoch() -> str:
    """A broker epoch: 8 characters, so that two runs never share one by accident (D-41)."""
    return _random(8)
