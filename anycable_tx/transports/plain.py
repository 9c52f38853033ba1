"""The plain path: any Twisted stream transport (TLS, other platforms), with a bounded queue of our own behind it."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["PlainTransport"]

#: Large data is passed on in pieces of so many bytes, so that the transport is never much more than full, and a slow
#: reader is seen to take some of it.
PIECE = 1 << 14


@implementer(IPushProducer)
class PlainTransport:
    """Wraps a Twisted transport: writes pass through until it asks for a pause, and wait here meanwhile.

    So the bytes a slow reader may hold are counted and can be dropped, whatever the transport is.
    """

    direct = False
    __slots__ = ("_closing", "_paused", "_protocol", "_queue", "_size", "progressed", "real")

    def __init__(self, real: Any, protocol: Any) -> None:
        self.real = real
        self._protocol = protocol
        self._queue: list[bytes] = []
        self._size = 0
        self._paused = False
        self._closing = False
        #: The transport took something since this was last reset.
        self.progressed = False
        real.registerProducer(self, True)

    @property
    def slot(self) -> PlainTransport:
        """What groups hand frames to."""
        return self

    @property
    def backlog(self) -> int:
        """Bytes that wait because the transport is full; those in there are counted as one."""
        return self._size + self._paused

    def write(self, data: bytes) -> None:
        """Pass *data* on, behind what waits."""
        if self._closing:
            return
        if not self._paused:
            data = self._pass(data)
        if data:
            self._queue.append(data)
            self._size += len(data)
            self._protocol.backlogged(len(data))

    def _pass(self, data: bytes) -> bytes:
        """Write as much of *data* as the transport wants; answers the rest."""
        start = 0
        while start < len(data) and not self._paused:
            self.real.write(data[start : start + PIECE])
            start += PIECE
        return data[start:]

    def send(self, data: bytes) -> int:
        """Take all of *data*, as a socket may: so it can be a slot beside sockets (see ``direct``)."""
        self.write(data)
        return len(data)

    def writeSequence(self, iovec: Any) -> None:
        """Like ``write`` of the joined parts."""
        self.write(b"".join(iovec))

    def queue(self, data: bytes) -> None:
        """The same as ``write``."""
        self.write(data)

    def drop_queue(self) -> None:
        """Forget what waits, but for frames that may be on their way already."""
        del self._queue[1:]
        self._size = sum(map(len, self._queue))

    def pauseProducing(self) -> None:
        """The transport is full."""
        self._paused = True
        self._protocol.slow_changed(True)

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._paused = False
        self.progressed = True
        passed = 0
        for passed, data in enumerate(self._queue, 1):
            rest = self._pass(data)
            self._size -= len(data) - len(rest)
            if rest:
                passed -= 1
                self._queue[passed] = rest
            if self._paused:
                break
        del self._queue[:passed]
        if self._paused:
            return
        if self._closing:
            self._close()
        else:
            self._protocol.slow_changed(False)

    def stopProducing(self) -> None:
        """The transport is gone."""

    def unregisterProducer(self) -> None:
        """Ours stays until the end."""

    def loseConnection(self) -> None:
        """Close after what waits was written."""
        self._closing = True
        if not self._paused:
            self._close()

    def _close(self) -> None:
        self.real.unregisterProducer()
        self.real.loseConnection()

    def abortConnection(self) -> None:
        """Close now."""
        self.real.abortConnection()

    def stopReading(self) -> None:
        """Stop reading from the peer."""
        self.real.pauseProducing()

    def startReading(self) -> None:
        """Read from the peer again."""
        self.real.resumeProducing()
