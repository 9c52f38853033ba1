"""The plain path: any Twisted stream transport (TLS, other platforms), with a bounded queue of our own behind it."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["PlainTransport"]


@implementer(IPushProducer)
class PlainTransport:
    """Wraps a Twisted transport: writes pass through until it asks for a pause, and wait here meanwhile.

    So the bytes a slow reader may hold are counted and can be dropped, whatever the transport is.
    """

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
        """Bytes that wait because the transport is full."""
        return self._size

    def write(self, data: bytes) -> None:
        """Pass *data* on, behind what waits."""
        if self._closing:
            return
        if self._paused:
            self._queue.append(data)
            self._size += len(data)
            self._protocol.backlogged()
        else:
            self.real.write(data)

    def writeSequence(self, iovec: Any) -> None:
        """Like ``write`` of the joined parts."""
        self.write(b"".join(iovec))

    def queue(self, data: bytes) -> None:
        """The same as ``write``."""
        self.write(data)

    def drop_queue(self) -> None:
        """Forget what waits; it is whole frames."""
        self._queue, self._size = [], 0

    def pauseProducing(self) -> None:
        """The transport is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._paused = False
        self.progressed = True
        queue, self._queue, self._size = self._queue, [], 0
        for n, data in enumerate(queue):
            if self._paused:
                self._queue = queue[n:]
                self._size = sum(map(len, self._queue))
                return
            self.real.write(data)
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
        if not self._queue:
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
