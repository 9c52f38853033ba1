"""Where the embedded NATS server is, and the others of its cluster."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from anycable_tx.errors import ConfigurationError

__all__ = ["Place", "client_url", "place"]

_HERE = re.compile(r"127\..*|::1|localhost")
_FORM = "nats://[user:password@]host:port"
#: Stands for every address of this machine; who is on it uses the second.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Place(NamedTuple):
    """An address and what opens it: user and password, a token for a user without a password, or nothing."""

    host: str
    port: int
    user: str = ""
    password: str | None = None

    def __str__(self) -> str:
        return f"nats://{self.listen}"

    def __repr__(self) -> str:
        return f"<{self}>"  # a password never reaches a log

    @property
    def listen(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """With what opens it."""
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        login = f"{quote(self.user, safe='')}{password}@" if self.user or password else ""
        return f"nats://{login}{self.listen}"

    @property
    def is_open(self) -> bool:
        """Can others than this machine connect, without a login?"""
        return not self.user and self.password is None and not _HERE.fullmatch(self.host)

    @property
    def secrets(self) -> list[str]:
        """What must not be logged."""
        return [each for each in (self.user if self.password is None else self.password,) if each]

    def authorization(self) -> dict[str, Any]:
        """The part of a configuration that asks for it."""
        if self.password is not None:
            return {"authorization": {"user": self.user, "password": self.password}}
        return {"authorization": {"token": self.user}} if self.user else {}


def place(option: str, text: str) -> Place:
    """Parse the address *text*. Raises ConfigurationError naming *option* and what is accepted."""
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        port = parts.port
    except ValueError:
        port = None
    if not port or parts.scheme != "nats" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ConfigurationError(f"{option}: an address is not accepted; expected {_FORM}")
    password = None if parts.password is None else unquote(parts.password)
    found = Place(parts.hostname, port, unquote(parts.username or ""), password)
    if any(not each.isprintable() for each in (found.user, found.password or "")):
        raise ConfigurationError(f"{option}: there are control characters in the user or the password")
    return found


def client_url(address: str) -> str:
    """Where a process of this machine connects to the server at *address*. Raises ConfigurationError."""
    own = place("enats_addr", address)
    return own._replace(host=_ANY.get(own.host, own.host)).url
