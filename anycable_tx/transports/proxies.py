"""Trusted proxies: who is believed about where a request comes from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from anycable_tx.errors import ConfigurationError

__all__ = ["TrustedProxies"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """A ``trusted_proxies`` list: addresses and networks, IPv4 or IPv6; blank entries are dropped (RA-35).

    False if nobody is trusted. Raises ConfigurationError for an entry that is neither.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._networks = [_network(entry) for entry in map(str.strip, entries) if entry]
        #: Proxies are few and connect often, so what is known of them is kept.
        self.trusts = lru_cache(256)(self._trusts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _trusts(self, peer: str) -> bool:
        """Whether the TCP peer with this address is a trusted proxy."""
        try:
            return self._contains(_address(peer))
        except ValueError:  # not connected any more, so without an address
            return False

    def client(self, forwarded_for: str) -> str:
        """The client's address that a trusted peer names in its ``X-Forwarded-For``, without a port.

        That is the right-most one that is not trusted itself: what stands before it, anybody can have written.
        Empty if there is none, or if something that is no address comes first.
        """
        for entry in reversed(forwarded_for.split(",")):
            try:
                address = _address(_without_port(entry.strip()))
            except ValueError:
                break
            if not self._contains(address):
                return str(address)
        return ""

    def _contains(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        raise ConfigurationError(
            f"trusted_proxies: {entry!r} is not accepted; expected an address such as 10.0.0.1 or a network such as "
            "10.0.0.0/8, whose address has no bits beyond its length"
        ) from None


def _address(text: str) -> _Address:
    """The address that *text* is; an IPv4 address that is written as an IPv6 one is an IPv4 address."""
    if "%" in text:  # what follows, an interface's name, could be any text
        raise ValueError
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(entry: str) -> str:
    """``192.0.2.1`` of ``192.0.2.1:80``, ``2001:db8::1`` of ``[2001:db8::1]:80``; anything else as it is."""
    if entry.startswith("["):
        address, bracket, port = entry[1:].partition("]")
        return address if bracket and _is_port(port) else entry
    address, _, port = entry.partition(":")
    return address if _is_port(":" + port) else entry


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit())
