"""NKeys: how a user proves to NATS who it is without showing a secret."""

from __future__ import annotations

import os
from base64 import b32decode, b32encode, b64encode
from binascii import Error, crc_hqx
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from anycable_tx.errors import ConfigurationError

__all__ = ["Identity", "read"]

#: The first five bits of what a seed, and a user's key, begin with: the letters S and U.
_SEED, _USER = 18 << 3, 20 << 3


@dataclass(frozen=True)
class Identity:
    """Who we are: a public *key* (such as ``UABC...``), or the *jwt* that says so; and how to prove it."""

    key: str
    jwt: str
    private: Ed25519PrivateKey

    def sign(self, nonce: str) -> bytes:
        """What proves it, for a *nonce* of the server's."""
        return b64encode(self.private.sign(nonce.encode()))

    def __repr__(self) -> str:
        return f"<{self.key}>"


def read(settings: Mapping[str, Any]) -> Identity | None:
    """The identity in the file that ``nats_creds_file`` or ``nats_nkey_file`` names; None without either.

    Raises ConfigurationError for a file that cannot be used, and for two.
    """
    creds, nkey = settings["nats_creds_file"], settings["nats_nkey_file"]
    if creds and nkey:
        raise ConfigurationError("nats_creds_file: it cannot be used together with nats_nkey_file")
    if not creds and not nkey:
        return None
    option, path = ("nats_creds_file", creds) if creds else ("nats_nkey_file", nkey)
    try:
        with open(os.path.expanduser(path), encoding="ascii") as file:
            lines = [line.strip() for line in file]
    except OSError as e:
        raise ConfigurationError(f"{option}: cannot read {path!r}: {e.strerror or e}") from None
    except ValueError:
        lines = []
    jwt = next((line for line in lines if line.startswith("ey") and line.count(".") == 2), "")
    seed = next((line for line in lines if line.startswith("SU")), "")
    if creds and not jwt:
        raise ConfigurationError(f"{option}: cannot use {path!r}: there is no user's JWT in it")
    try:
        private = Ed25519PrivateKey.from_private_bytes(_secret(seed))
    except ValueError:
        raise ConfigurationError(f"{option}: cannot use {path!r}: there is no user's seed (SU...) in it") from None
    return Identity(_public(private), jwt, private)


def _secret(seed: str) -> bytes:
    """The 32 bytes in a user's seed. Raises ValueError."""
    try:
        raw = b32decode(seed + "=" * (-len(seed) % 8))
    except Error as e:
        raise ValueError("no base32") from e
    body, checksum = raw[:-2], int.from_bytes(raw[-2:], "little")
    kind = (body[0] & 7) << 5 | body[1] >> 3 if len(body) == 34 else 0
    if kind != _USER or body[0] & 0xF8 != _SEED or crc_hqx(body, 0) != checksum:
        raise ValueError("no seed of a user")
    return body[2:]


def _public(private: Ed25519PrivateKey) -> str:
    raw = bytes((_USER,)) + private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b32encode(raw + crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")
