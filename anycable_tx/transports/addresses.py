"""How many connections come from one address."""

from __future__ import annotations

import ipaddress

__all__ = ["Addresses"]


class Addresses:
    """Counts connections by address, at most *limit* of each; of IPv6 a network of 64 bits is one address.

    What is no IP address, such as the path of a socket, is not limited.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """How many addresses have connections."""
        return len(self._counts)

    def take(self, address: str) -> str | None:
        """One more connection: the name to ``release`` it by, or None if there are too many."""
        name = _name(address)
        count = self._counts.get(name, 0)
        if name and count >= self._limit:
            return None
        self._counts[name] = count + 1
        return name

    def release(self, name: str) -> None:
        """A connection ended."""
        count = self._counts[name] - 1
        if count:
            self._counts[name] = count
        else:
            del self._counts[name]


def _name(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
    return address
