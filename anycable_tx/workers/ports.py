"""The sockets of the ports that workers share: bound once, before privileges are dropped."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from anycable_tx.errors import ConfigurationError

__all__ = ["bind"]


def bind(places: Iterable[tuple[str, int]]) -> list[socket.socket]:
    """A bound socket for each host and port, which does not listen yet: the first worker that is ready does that.

    Raises ConfigurationError naming the address that cannot be had.
    """
    sockets: list[socket.socket] = []
    try:
        for host, port in places:
            sockets.append(_bound(host, port))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(host: str, port: int) -> socket.socket:
    interface = "127.0.0.1" if host == "localhost" else host
    sock = socket.socket(socket.AF_INET6 if ":" in interface else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((interface, port))
    except OSError as e:
        sock.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {e}") from None
    return sock
