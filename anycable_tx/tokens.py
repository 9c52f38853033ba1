"""Safe names for names: what a stream is called in the keys and subjects of a backend."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256

__all__ = ["token"]

#: The longest token that still holds the name itself.
_LONGEST = 200


def token(name: str) -> str:
    """A name for *name*, another for each, of ``[A-Za-z0-9_-]`` and at most 200 characters."""
    raw = name.encode()
    text = "b" + urlsafe_b64encode(raw).rstrip(b"=").decode()
    return text if len(text) <= _LONGEST else "h" + sha256(raw).hexdigest()
