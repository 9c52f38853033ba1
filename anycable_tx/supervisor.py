"""What a supervisor such as systemd hands to a process, and what it wants to be told: sockets and states."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

from anycable_tx.errors import ConfigurationError

__all__ = ["Notifier", "inherited_sockets"]

#: The descriptor of the first inherited socket; the others follow.
FIRST = 3


def inherited_sockets(environ: MutableMapping[str, str], first: int = FIRST) -> list[socket.socket]:
    """The listening sockets that this process was started with (socket activation, ``LISTEN_FDS``).

    They belong to the caller and are not passed on to children; nor are the variables that announced them, which are
    removed. Sockets that are meant for another process (``LISTEN_PID``) are left alone. Raises ConfigurationError
    naming a descriptor that is no listening TCP socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets: list[socket.socket] = []
    try:
        for descriptor in range(first, first + int(count)):
            sockets.append(_adopted(descriptor))
    except ConfigurationError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _adopted(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as e:
        raise ConfigurationError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {e.strerror}") from None
    internet = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if not internet or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ConfigurationError(
            f"LISTEN_FDS: descriptor {descriptor} is not accepted; expected a listening TCP socket"
        )
    sock.set_inheritable(False)
    return sock


class Notifier:
    """Tells the supervisor (``NOTIFY_SOCKET``) what the process is about; without one it tells nobody."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def __call__(self, state: str) -> None:
        """Send *state*, such as ``READY=1``. A supervisor that does not listen is none."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
