"""Tokens, signed names and requests shared by the tests of this directory."""

from __future__ import annotations

from typing import Any

import jwt as pyjwt

from anycable_tx.cable.replies import RequestEnv, SessionView
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics

SECRET = "s3cr3t"
NOW = 1_750_000_000.0
USER = '{"user_id":42}'

VALID = (
    "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjo0MTAyNDQ0ODAwfQ"
    ".C5dOvkI6n7zF4IqtYkog3mWtwDEiNcNCPXlG5JlTqIw"
)
EXPIRED = (
    "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6NDJ9IiwiZXhwIjoxNzAwMDAwMDAwfQ"
    ".BtH0L-jo3MYySJ8_BIsLlq97H9Ek_K8FPDRcpWHoOj8"
)
WITHOUT_EXT = (
    "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjo0MiwiZXhwIjo0MTAyNDQ0ODAwfQ.5G_ZaAw0rgGENjszqmbSU8gXireld4bWyTSr7rpvSm0"
)

UNAUTHORIZED = b'{"type":"disconnect","reason":"unauthorized","reconnect":false}'
TOKEN_EXPIRED = b'{"type":"disconnect","reason":"token_expired","reconnect":false}'


def token(
    claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256", header: dict[str, Any] | None = None
) -> str:
    """A token made by an independent library."""
    return pyjwt.encode(claims, secret, algorithm=algorithm, headers=header)


def request(query: str = "", **headers: str) -> RequestEnv:
    """A request with that raw query; ``x_jid=...`` gives the header ``x-jid``."""
    return RequestEnv(
        url="http://localhost:8080/cable" + (f"?{query}" if query else ""),
        headers={"REMOTE_ADDR": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()},
    )


def context(**settings: Any) -> ProviderContext:
    """What a factory is given, with these settings only."""
    return ProviderContext(settings=settings, reactor=None, node=None, metrics=Metrics())


SESSION = SessionView(sid="sid-1", identifiers=USER, env=None)
