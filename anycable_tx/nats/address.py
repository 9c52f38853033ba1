"""Where NATS is, and how to log in there: ``nats_servers``, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from anycable_tx.errors import ConfigurationError

__all__ = ["Server", "named_by", "parse"]

_PORT = 4222
#: Scheme -> TLS?
_SCHEMES = {"nats": False, "tls": True}
_FORMS = "host[:port], nats://[user:password@]host[:port], nats://[token@]host[:port], and tls:// for TLS"


@dataclass(frozen=True)
class Server:
    """A server and what it is told. *tls_name* is the name its certificate has to have; its host's if empty."""

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str | None = None
    token: str = ""
    tls_name: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<{self}>"  # a password never reaches a log


def parse(settings: Mapping[str, Any]) -> tuple[Server, ...]:
    """The servers in *settings*, each once. Raises ConfigurationError saying what is accepted."""
    texts = [each.strip() for entry in settings["nats_servers"] for each in entry.split(",")]
    servers: dict[tuple[str, int], Server] = {}
    for text in filter(None, texts):
        server = _server(text)
        servers.setdefault((server.host, server.port), server)
    if not servers:
        raise _wrong("there is no server in it")
    return tuple(servers.values())


def named_by(server: Server, text: str) -> Server | None:
    """Another server of the cluster of *server*, as that has named it, ``host:port``; None if that is none.

    It is logged into in the same way. A number for a host stands for the name that the cluster is known by.
    """
    try:
        other = _server(text)
    except ConfigurationError:
        return None
    numeric = ":" in other.host or other.host.replace(".", "").isdigit()
    name = (server.tls_name or server.host) if numeric else ""
    return replace(server, host=other.host, port=other.port, tls_name=name)


def _server(text: str) -> Server:
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        port = parts.port
    except ValueError:
        raise _wrong("it is no URL with a host and a port") from None
    if parts.scheme not in _SCHEMES:
        raise _wrong(f"the scheme {parts.scheme!r} is not known")
    if not parts.hostname:
        raise _wrong("the host is missing")
    if port == 0:
        raise _wrong("the port is 0")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise _wrong("there is more after the host and the port")
    user = unquote(parts.username or "")
    server = Server(parts.hostname, port or _PORT, _SCHEMES[parts.scheme])
    if parts.password is None:
        return replace(server, token=user)
    return replace(server, user=user, password=unquote(parts.password))


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"nats_servers: {what}; accepted: a comma list of {_FORMS}")
