"""Gauges of the process: memory, descriptors, processor, and how late the event loop is."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from anycable_tx.metrics import Metrics, aged

__all__ = ["Process"]

#: The event loop's delay is looked at so often, in seconds.
GLANCE = 0.25
_STATM = Path("/proc/self/statm")
_FDS = Path("/proc/self/fd")


def memory() -> int:
    """The bytes of memory the process has: where the system tells only that, its most so far."""
    if _STATM.exists():
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def descriptors() -> int:
    """How many file descriptors are open."""
    # Newer kernels say it without a list of what may be a hundred thousand.
    return _FDS.stat().st_size or len(os.listdir(_FDS)) - 1


class Process:
    """Supplies the gauges of the process; figures are at most *age* seconds old.

    The event loop's delay and the processor's use are those of the last whole period of *age* seconds, at least one
    of GLANCE; the delay of the period under way counts when it is longer.
    """

    def __init__(self, metrics: Metrics, reactor: Any, age: float) -> None:
        self._reactor = reactor
        self._period = max(age, GLANCE)
        self._call: Any = None
        self._due = self._begun = 0.0
        self._used = 0.0
        self._delay = self._last_delay = 0.0
        self._percent = 0
        metrics.gauge("mem_sys_bytes", aged(memory, age, reactor.seconds))
        if _FDS.exists():
            metrics.gauge("open_fds_num", aged(descriptors, age, reactor.seconds))
        metrics.gauge("loop_delay_ms", lambda: round(max(self._delay, self._last_delay) * 1000))
        metrics.gauge("cpu_percent", lambda: self._percent)

    def start(self) -> None:
        """Begin to look."""
        self._begun = self._reactor.seconds()
        self._used = time.process_time()
        self._look_later(self._begun)

    def stop(self) -> None:
        """End."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look_later(self, now: float) -> None:
        self._due = now + GLANCE
        self._call = self._reactor.callLater(GLANCE, self._look)

    def _look(self) -> None:
        now = self._reactor.seconds()
        self._delay = max(self._delay, now - self._due)
        self._look_later(now)
        if now - self._begun >= self._period:
            used = time.process_time()
            self._percent = round(100 * (used - self._used) / (now - self._begun))
            self._last_delay, self._delay = self._delay, 0.0
            self._begun, self._used = now, used
