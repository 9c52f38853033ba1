"""Where Redis is, and how to log in there: ``redis_url`` and ``redis_sentinels``, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from anycable_tx.errors import ConfigurationError

__all__ = ["Address", "Host", "Login", "parse"]

#: Scheme -> TLS?
_SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_FORMS = (
    "host[:port], redis://[[user]:password@]host[:port][/db] (or valkey://), rediss:// or valkeys:// for TLS, "
    "unix://[user:password@]/path[?db=n], and a comma list of hosts for a cluster"
)
#: Parameters of other clients for things that this one does not have.
_MEANINGLESS = ("client_cache", "max_retries", "protocol", "write_timeout")
_PORT, _SENTINEL_PORT = 6379, 26379
_DIAL_TIMEOUT = 5.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


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

    *hosts* is one server, or the seeds of a cluster (more than one). Where *master* is given it is the name of the
    master, which the *sentinels* know the address of. ``ignored`` are parameters of the URL nobody knows.
    """

    hosts: tuple[Host, ...]
    login: Login
    tls: bool = False
    skip_verify: bool = False
    dial_timeout: float = _DIAL_TIMEOUT
    master: str = ""
    sentinels: tuple[Host, ...] = ()
    sentinel_login: Login = Login()
    sentinel_tls: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def log_name(self) -> str:
        """For people, without secrets: ``host:port``, or the list of all, ``[a:1 b:2]``."""
        hosts = self.sentinels or self.hosts
        return str(hosts[0]) if len(hosts) == 1 and not self.master else f"[{' '.join(map(str, hosts))}]"


def parse(settings: Mapping[str, Any]) -> Address:
    """The Address in *settings* (BR-75). Raises ConfigurationError naming the option and what is accepted."""
    first, *more = [each.strip() for each in settings["redis_url"].split(",") if each.strip()] or [""]
    address = _address(first)
    hosts = [*address.hosts, *(host for each in more for host in _address(each).hosts)]
    address = replace(address, hosts=tuple(dict.fromkeys(hosts)))
    sentinels = [_Url("redis_sentinels", each, _SENTINEL_PORT) for each in settings["redis_sentinels"]]
    if sentinels:
        # The credentials are those of the first; a list that asks for TLS asks for it to the master as well.
        tls = sentinels[0].tls
        address = replace(
            address, master=address.hosts[0].name, sentinels=tuple(each.host for each in sentinels),
            sentinel_login=replace(sentinels[0].login, db=0), sentinel_tls=tls, tls=address.tls or tls,
        )  # fmt: skip
    elif address.master:
        login = replace(address.login, db=0)
        address = replace(address, sentinels=address.hosts, sentinel_login=login, sentinel_tls=address.tls)
    return address


def _address(text: str) -> Address:
    url = _Url("redis_url", text, _PORT)
    more = [_Url("redis_url", each, _PORT).host for each in url.all("addr")]
    return Address(
        (url.host, *more),
        replace(url.login, client_name=url.last("client_name")),
        tls=url.tls,
        skip_verify="skip_verify" in url.parameters and url.last("skip_verify") in ("", "1", "true"),
        dial_timeout=_seconds(url.last("dial_timeout")) or _DIAL_TIMEOUT,
        master=url.last("master_set"),
        ignored=tuple(sorted(url.parameters - _KNOWN)),
    )


_KNOWN = {"db", "addr", "client_name", "skip_verify", "dial_timeout", "master_set", *_MEANINGLESS}


class _Url:
    """One URL of the option *option*. Little of it is ever shown, for it may hold a password."""

    def __init__(self, option: str, text: str, port: int) -> None:
        self._option = option
        try:
            parts = urlsplit(text if "://" in text else f"redis://{text}")
            number = parts.port
        except ValueError as e:
            raise self._wrong("it is no URL with a host and a port") from e
        if parts.scheme != "unix" and parts.scheme not in _SCHEMES:
            raise self._wrong(f"the scheme {parts.scheme!r} is not known")
        self._query = parse_qsl(parts.query, keep_blank_values=True)
        self.parameters = {name for name, _ in self._query}
        self.tls = _SCHEMES.get(parts.scheme, False)
        db = self.last("db")
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise self._wrong("the path of the socket is missing")
            self.host = Host(unquote(parts.path), 0)
        else:
            path = parts.path.removesuffix("/")
            if path.count("/") > 1:
                raise self._wrong("there is more than the number of a database after the host")
            db = path[1:] or db
            self.host = Host(parts.hostname or "localhost", port if number is None else number)
            if not self.host.port:
                raise self._wrong("the port is 0")
        if db and not (db.isascii() and db.isdigit()):
            raise self._wrong(f"the database {db!r} is not a number")
        self.login = _login(parts, int(db or 0))

    def all(self, name: str) -> list[str]:
        """The values of a parameter."""
        return [value for key, value in self._query if key == name]

    def last(self, name: str) -> str:
        """The last value of a parameter; '' without one."""
        return (self.all(name) or [""])[-1]

    def _wrong(self, what: str) -> ConfigurationError:
        accepted = _FORMS if self._option == "redis_url" else "[[user]:password@]host[:port]"
        return ConfigurationError(f"{self._option}: {what}; accepted: {accepted}")


def _login(parts: SplitResult, db: int) -> Login:
    password = unquote(parts.password) if parts.password else None
    # A user alone cannot log in; what stands there without a colon is taken for one all the same.
    return Login(unquote(parts.username or "") if password is not None else "", password, db)


def _seconds(text: str) -> float:
    """The seconds of ``1m30s`` or ``500ms``; 0 for nothing."""
    if not text:
        return 0.0
    found = _DURATION.findall(text)
    if "".join(number + unit for number, unit in found) != text:
        raise ConfigurationError(
            f"redis_url: dial_timeout: {text!r} is not a duration; accepted: such as 30s or 500ms"
        )
    return sum(float(number) * _UNITS[unit] for number, unit in found)
