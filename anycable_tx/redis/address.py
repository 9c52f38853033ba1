"""Where Redis is, and how to log in there: ``redis_url`` and the options beside it, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from anycable_tx.errors import ConfigurationError

__all__ = ["Address", "Host", "Login", "parse"]

_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_FORMS = "redis://[user:password@]host[:port][/db], rediss:// or valkeys:// for TLS, valkey://, unix:///path"
_IGNORED = ("client_cache", "max_retries", "protocol", "write_timeout")
_PORT = 6379
_SENTINEL_PORT = 26379
_DIAL_TIMEOUT = 5.0


class Host(NamedTuple):
    """A server: host and port, or the path of a Unix socket and port 0."""

    name: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.name
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True)
class Login:
    """What a server is told about us. An empty *user* with a password is the default user."""

    user: str = ""
    password: str | None = None
    db: int = 0
    client_name: str = ""

    def __repr__(self) -> str:
        return f"Login(db={self.db})"  # a password never reaches a log


@dataclass(frozen=True)
class Address:
    """Everything ``redis_url`` and ``redis_sentinels`` say.

    *hosts* is one server, the seeds of a cluster (more than one), or, where *master* is given, empty: the servers
    are the *sentinels*, who know which one is the master of that name.
    """

    hosts: tuple[Host, ...]
    login: Login
    tls: bool = False
    verify: bool | None = None
    dial_timeout: float = _DIAL_TIMEOUT
    master: str = ""
    sentinels: tuple[Host, ...] = ()
    sentinel_login: Login = Login()
    sentinel_tls: bool = False

    @property
    def log_name(self) -> str:
        """For people, without secrets: ``host:port``, or the list of all, ``[a:1 b:2]``."""
        hosts = self.sentinels or self.hosts
        return str(hosts[0]) if len(hosts) == 1 and not self.master else f"[{' '.join(map(str, hosts))}]"


def parse(settings: Mapping[str, Any]) -> Address:
    """The Address in *settings* (BR-75). Raises ConfigurationError naming the option and what is accepted."""
    first, *more = [each.strip() for each in settings["redis_url"].split(",") if each.strip()] or [""]
    address = _one(first)
    hosts = list(address.hosts)
    for each in more:
        hosts += _one(each).hosts
    return replace(address, hosts=tuple(hosts))


def _one(text: str) -> Address:
    if "://" not in text:
        text = f"redis://{text}"
    url = urlsplit(text)
    if url.scheme not in _SCHEMES:
        raise ConfigurationError(f"redis_url: the scheme {url.scheme!r} is not known; accepted: {_FORMS}")
    return Address(
        (Host(url.hostname or "localhost", url.port or _PORT),),
        Login(
            unquote(url.username or ""),
            unquote(url.password) if url.password else None,
            int(url.path.strip("/") or 0),
        ),
        tls=_SCHEMES[url.scheme],
    )
