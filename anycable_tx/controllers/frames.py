"""The two answers to a subscribe; the client gets back the very identifier it sent.

*identifier* is a str and the result is UTF-8 JSON text, with the keys in the order of the protocol.
"""

from __future__ import annotations

import orjson

__all__ = ["confirm_frame", "reject_frame"]


def confirm_frame(identifier: str) -> bytes:
    """The subscription of *identifier* stands."""
    return b'{"type":"confirm_subscription","identifier":%b}' % orjson.dumps(identifier)


def reject_frame(identifier: str) -> bytes:
    """The subscription of *identifier* is refused."""
    return b'{"type":"reject_subscription","identifier":%b}' % orjson.dumps(identifier)
