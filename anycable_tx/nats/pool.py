"""The servers to connect to: those we were told of, and those that they know."""

from __future__ import annotations

from collections.abc import Iterable
from random import sample

from anycable_tx.nats.address import Server, named_by

__all__ = ["Pool"]

#: So many servers are remembered that only other servers know.
_MAX_NAMED = 64


class Pool:
    """*servers* are known for good. Unless *in_order*, they are tried in any order."""

    def __init__(self, servers: tuple[Server, ...], in_order: bool) -> None:
        self._servers = servers
        self._in_order = in_order
        self._named: tuple[Server, ...] = ()

    def learn(self, by: Server, addresses: Iterable[str]) -> None:
        """These are the servers of its cluster now, says one of them."""
        known = {str(each) for each in self._servers}
        found = {str(each): each for text in addresses if (each := named_by(by, text)) is not None}
        self._named = tuple(each for name, each in found.items() if name not in known)[:_MAX_NAMED]

    def order(self, last: Server | None = None) -> list[Server]:
        """All of them as they are to be tried, *last* at the end; those that others know after those we know."""
        servers = [*self._mixed(self._servers), *self._mixed(self._named)]
        if last in servers:
            servers.remove(last)
            servers.append(last)
        return servers

    def has_other(self, server: Server) -> bool:
        """Is there any but this?"""
        return any(each != server for each in (*self._servers, *self._named))

    def _mixed(self, servers: tuple[Server, ...]) -> list[Server]:
        return list(servers) if self._in_order else sample(servers, len(servers))
