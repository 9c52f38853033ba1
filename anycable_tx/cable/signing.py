"""Signed stream names: make them, check the signature, read the name.

A signed name is ``<encoded>--<digest>``: *encoded* is the base64 of the name as a JSON string, *digest* the
lower-case hex HMAC-SHA256 of the encoded text. Signatures are compared in constant time (RA-7).
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterable

import orjson

__all__ = ["decode_name", "keys_of", "sign_name", "signed_part", "verify_name"]

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def keys_of(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """The HMAC keys of *secrets*, in order, without the empty ones. Bytes that were not UTF-8 stay as given."""
    return tuple(secret.encode("utf-8", "surrogateescape") for secret in secrets if secret)


def sign_name(name: str, key: bytes) -> str:
    """The signed form of the stream *name* under *key* (the secret's UTF-8 bytes), standard base64, padded.

    Raises ValueError for an empty key: whatever it signs, anyone could sign (RA-1).
    """
    if not key:
        raise ValueError("stream names cannot be signed with an empty secret")
    encoded = b64encode(orjson.dumps(name))
    return f"{encoded.decode('ascii')}--{hmac.digest(key, encoded, 'sha256').hex()}"


def signed_part(signed: str, keys: Iterable[bytes]) -> str | None:
    """The encoded name of *signed* if one of *keys* signed it, else None. Never raises.

    The text is split at its last ``--``, because the URL-safe alphabet may put more of them into the encoded
    part (RA-34). An empty key matches nothing (RA-1, CP-142).
    """
    encoded, separator, digest = signed.rpartition("--")
    if not separator or not signed.isascii():
        return None
    message = encoded.encode("ascii")
    for key in keys:
        if key and hmac.compare_digest(hmac.digest(key, message, "sha256").hex(), digest):
            return encoded
    return None


def decode_name(encoded: str) -> str | None:
    """The stream name in *encoded*: base64 of either alphabet, padded or not, of a JSON string (RA-34).

    None when it is anything else, or the empty name. Never raises. Call it for text whose signature matched.
    """
    try:
        text = encoded.encode("ascii").translate(_TO_STANDARD).rstrip(b"=")
        name = orjson.loads(a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True))
    except (UnicodeEncodeError, Base64Error, orjson.JSONDecodeError):
        return None
    return name if isinstance(name, str) and name else None


def verify_name(signed: str, keys: Iterable[bytes]) -> str | None:
    """The stream name in *signed* if one of *keys* signed it and it is one, else None. Never raises."""
    encoded = signed_part(signed, keys)
    return None if encoded is None else decode_name(encoded)
