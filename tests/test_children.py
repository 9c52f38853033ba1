"""Child processes whose end is noticed on every reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ProcessDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from anycable_tx.children import ReapedProtocol


class Corpse:
    """The transport of a process that can be reaped at the third look."""

    def __init__(self, protocol: ReapedProtocol) -> None:
        self.protocol = protocol
        self.looks = 0

    def reapProcess(self) -> None:
        self.looks += 1
        if self.looks == 3:
            self.protocol.processEnded(Failure(ProcessDone(0)))


def started() -> tuple[Clock, ReapedProtocol, Any]:
    clock = Clock()
    protocol = ReapedProtocol(clock, (3, 4))
    corpse = Corpse(protocol)
    protocol.makeConnection(corpse)  # type: ignore[arg-type]
    return clock, protocol, corpse


def test_an_end_that_nobody_is_told_of_is_looked_for_once_the_pipes_are_closed() -> None:
    clock, protocol, corpse = started()
    protocol.childConnectionLost(3)
    clock.advance(10)
    assert corpse.looks == 0
    protocol.childConnectionLost(4)
    clock.pump([0.05] * 10)
    assert corpse.looks == 3
    assert clock.getDelayedCalls() == []


def test_an_end_that_was_told_of_is_not_looked_for() -> None:
    clock, protocol, corpse = started()
    protocol.processEnded(Failure(ProcessDone(0)))
    for pipe in (3, 4):
        protocol.childConnectionLost(pipe)
    assert (corpse.looks, clock.getDelayedCalls()) == (0, [])


def test_nor_is_one_that_is_told_of_with_the_last_pipe() -> None:
    """Twisted reaps before it tells of the pipes, where it hears the signal; there is nobody to look for then."""
    clock, protocol, corpse = started()
    protocol.childConnectionLost(3)
    protocol.childConnectionLost(4)
    protocol.processEnded(Failure(ProcessDone(0)))
    assert (corpse.looks, clock.getDelayedCalls()) == (0, [])
