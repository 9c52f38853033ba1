"""What a worker is given when it starts: through a pipe, so that no secret is in a command line or a file."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import RawIOBase

from anycable_tx.config.settings import Settings

__all__ = ["CONTROL", "REPORTS", "SOCKETS", "Handover", "descriptors", "pack", "unpack"]

#: Descriptors in the worker: what it is told, what it tells, and the first of the sockets it serves.
CONTROL, REPORTS, SOCKETS = 3, 4, 5

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True)
class Handover:
    """The settings in effect, the reactor that was asked for (or None), where modules are found, how many sockets.

    *restarts*: how those that it replaces ended, and how many did so.
    """

    settings: Settings
    reactor: str | None
    path: tuple[str, ...]
    sockets: int
    restarts: Mapping[str, int] = field(default_factory=dict)

    def adopt(self) -> list[socket.socket]:
        """In the worker: its sockets."""
        return [socket.socket(fileno=SOCKETS + number) for number in range(self.sockets)]


def pack(handover: Handover) -> bytes:
    """What a worker reads first. Parent and worker are one installation of one program: they need no format."""
    data = pickle.dumps(handover)
    return _LENGTH.pack(len(data)) + data


def unpack(pipe: RawIOBase) -> Handover:
    """What *pipe* begins with. Raises EOFError when the parent is gone."""
    handover: Handover = pickle.loads(_exactly(pipe, *_LENGTH.unpack(_exactly(pipe, _LENGTH.size))))
    return handover


def _exactly(pipe: RawIOBase, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = pipe.read(size - len(data))
        if not more:
            raise EOFError("the parent is gone")
        data += more
    return data


def descriptors(stdin: int, sockets: Sequence[socket.socket]) -> dict[int, int | str]:
    """Those of a worker, as ``spawnProcess`` wants them."""
    given: dict[int, int | str] = {0: stdin, 1: 1, 2: 2, CONTROL: "w", REPORTS: "r"}
    given.update(enumerate((sock.fileno() for sock in sockets), SOCKETS))
    return given
