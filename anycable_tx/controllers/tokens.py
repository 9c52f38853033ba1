"""Verification of HMAC-signed JSON Web Tokens; time is passed in.

Order of the checks: structure, algorithm, signature, time claims, ``ext``. Written by hand because a token
is checked on every connect and a general library takes ten times as long.
"""

from __future__ import annotations

import hmac
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from anycable_tx.cable.signing import keys_of

__all__ = [
    "ALGORITHM",
    "CLAIMS",
    "EXPIRED",
    "EXT",
    "MALFORMED",
    "NOT_YET",
    "SIGNATURE",
    "TokenVerifier",
    "Verdict",
]

#: What can be wrong with a token.
MALFORMED = "malformed"
ALGORITHM = "algorithm"
SIGNATURE = "signature"
CLAIMS = "claims"
EXPIRED = "expired"
NOT_YET = "not_yet_valid"
EXT = "ext"

_HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
_NUMBERS = (int, float)  # compared by identity: a bool is no time
_MAX_HEADERS = 64

# base64url to base64; what only plain base64 has becomes a byte that no alphabet has.
_FROM_URLSAFE = bytes.maketrans(b"-_+/=", b"+/!!!")
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")


class Verdict(NamedTuple):
    """The result of a check: ``fault`` is '' for a valid token, else one of the constants above.

    ``ext`` is the claim of that name, verbatim. It is None unless the signature is good, the fault is '' or
    ``expired``, and the claim is a string.
    """

    fault: str
    ext: str | None = None


def _decode(segment: bytes) -> Any:
    """The JSON value in a base64url segment. Raises Base64Error or ValueError."""
    text = segment.translate(_FROM_URLSAFE)
    return orjson.loads(a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True))


class TokenVerifier:
    """Checks tokens against a secret and further verification-only ones (RA-10).

    A token is accepted when any of *secrets* signed it. Empty secrets are dropped: without any secret no
    token is valid.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._keys = keys_of(secrets)
        # The hash of each header segment seen on a correctly signed token, so that nobody else can fill it.
        self._headers: dict[bytes, str] = {}

    def verify(self, token: str, now: float) -> Verdict:
        """The Verdict on *token* at the Unix time *now* (seconds). Never raises, whatever the text is.

        Signatures are compared in constant time (RA-7), in their encoded form, so that each token has
        exactly one accepted spelling. ``exp`` and ``nbf`` are numbers, cut to whole seconds, with no leeway;
        0 means none.
        """
        try:
            raw = token.encode("ascii")
        except UnicodeEncodeError:
            return Verdict(MALFORMED)
        signed, _, signature = raw.rpartition(b".")
        header, dot, payload = signed.partition(b".")
        if not dot or b"." in payload:
            return Verdict(MALFORMED)
        hash_name = self._headers.get(header)
        if hash_name is None:
            try:
                fields = _decode(header)
            except (Base64Error, ValueError):
                return Verdict(MALFORMED)
            if type(fields) is not dict:
                return Verdict(MALFORMED)
            hash_name = _hash_of(fields)
            if hash_name is None:
                return Verdict(ALGORITHM)
        if not self._signed(signed, signature, hash_name):
            return Verdict(SIGNATURE)
        if len(self._headers) < _MAX_HEADERS:
            self._headers[header] = hash_name
        try:
            claims = _decode(payload)
        except (Base64Error, ValueError):
            return Verdict(MALFORMED)
        if type(claims) is not dict:
            return Verdict(MALFORMED)
        return _judge(claims, now)

    def _signed(self, message: bytes, signature: bytes, hash_name: str) -> bool:
        for key in self._keys:
            digest = b2a_base64(hmac.digest(key, message, hash_name), newline=False)
            if hmac.compare_digest(digest.translate(_TO_URLSAFE).rstrip(b"="), signature):
                return True
        return False


def _hash_of(header: dict[str, Any]) -> str | None:
    """The hash that *header* asks for; None if it is not an HMAC we know, or has critical extensions."""
    algorithm = header.get("alg")
    if type(algorithm) is not str or "crit" in header:
        return None
    return _HASHES.get(algorithm)


def _judge(claims: dict[str, Any], now: float) -> Verdict:
    """The Verdict on the claims of a correctly signed token. An expired one is that, whatever else it is."""
    exp = claims.get("exp", 0)
    if type(exp) not in _NUMBERS:
        return Verdict(CLAIMS)
    ext = claims.get("ext")
    if type(ext) is not str:
        ext = None
    if exp and now >= int(exp):
        return Verdict(EXPIRED, ext)
    nbf = claims.get("nbf", 0)
    if type(nbf) not in _NUMBERS:
        return Verdict(CLAIMS)
    if nbf and now < int(nbf):
        return Verdict(NOT_YET)
    return Verdict(EXT) if ext is None else Verdict("", ext)
