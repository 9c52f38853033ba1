"""What ``rpc_host`` may say when the backend is called over gRPC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from anycable_tx.errors import ConfigurationError

__all__ = ["Addresses", "Host", "parse"]

FORMS = "host:port, dns:///name:port, grpc://host:port, grpcs://host:port, grpc-list://host:port,host:port, unix:path"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: A name or an address, with or without a port; an IPv6 address with a port is in brackets.
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\s\[\]@:/?#,]+))(?::(?P<port>[0-9]{1,5}))?")
#: What gRPC takes for granted.
PORT = 443


class Host(NamedTuple):
    """One host, or one name that may stand for several: what gRPC is told, and how it is reached (unless by path)."""

    target: str
    name: str = ""
    port: int = PORT

    @property
    def authority(self) -> str:
        """How it is called in a URL."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Addresses(NamedTuple):
    """Where the backend is, and whether it is called over TLS."""

    hosts: tuple[Host, ...]
    tls: bool


def parse(settings: Mapping[str, Any]) -> Addresses:
    """Read ``rpc_host`` and whether TLS was asked for.

    Entries of a list are trimmed, and empty ones skipped (RA-23). TLS is on with ``grpcs://``, ``rpc_enable_tls`` or
    ``rpc_tls_root_ca`` (RA-24). Raises ConfigurationError.
    """
    text = settings["rpc_host"].strip()
    tls = bool(settings["rpc_enable_tls"] or settings["rpc_tls_root_ca"])
    if text.startswith(("unix:", "unix-abstract:")):
        return Addresses((Host(text),), tls)
    match = _SCHEME.match(text)
    scheme, rest = (match[1].lower(), text[match.end() :]) if match else ("", text)
    if scheme == "grpc-list":
        hosts = tuple(_host(each.strip()) for each in rest.split(",") if each.strip())
        if not hosts:
            raise ConfigurationError(
                "rpc_host: grpc-list:// names no host; accepted: grpc-list://host:port,host:port"
            )
        return Addresses(hosts, tls)
    if scheme == "dns":
        resolver, slash, rest = rest.partition("/")
        if not slash or "@" in resolver:
            raise _unknown()
        host = _host(rest)
        return Addresses((host._replace(target=f"dns://{resolver}/{rest}"),), tls)
    if scheme in ("http", "https"):
        raise ConfigurationError(f"rpc_host: {scheme}:// is not called over gRPC; set rpc_impl=http, or give {FORMS}")
    if scheme not in ("", "grpc", "grpcs"):
        raise _unknown()
    return Addresses((_host(rest.removesuffix("/")),), tls or scheme == "grpcs")


def _host(text: str) -> Host:
    match = _HOST.fullmatch(text)
    port = int(match["port"] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise _unknown()
    return Host(f"dns:///{text}", match["v6"] or match["name"], port)


def _unknown() -> ConfigurationError:
    # What was given is not shown: it may hold a password.
    return ConfigurationError(f"rpc_host: not an address for gRPC; accepted: {FORMS}")
