"""Child processes whose end is noticed on every reactor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

__all__ = ["ReapedProtocol"]

#: How often it is looked whether a process that closed its pipes has ended.
_GLANCE = 0.05


class ReapedProtocol(ProcessProtocol):
    """A process that closes its *pipes* when it ends.

    Twisted is told of an end by a signal, which a loop of uvloop keeps to itself: once the pipes are closed, it is
    looked for the end as well.
    """

    def __init__(self, reactor: Any, pipes: Iterable[int] = (0, 1, 2)) -> None:
        self._open_pipes = set(pipes)
        self._has_ended = False
        self._reaping = LoopingCall(self._reap)
        self._reaping.clock = reactor

    def childConnectionLost(self, childFD: int) -> None:
        """For Twisted: a pipe is closed."""
        super().childConnectionLost(childFD)
        self._open_pipes.discard(childFD)
        if not self._open_pipes and not self._has_ended and not self._reaping.running:
            self._reaping.start(_GLANCE, now=False)  # if it is known to have ended, that is told now

    def processEnded(self, reason: Failure) -> None:
        """For Twisted: the process has ended, and all it said was heard."""
        self._has_ended = True
        if self._reaping.running:
            self._reaping.stop()

    def _reap(self) -> None:
        if not self._has_ended:
            process: Any = self.transport
            process.reapProcess()
