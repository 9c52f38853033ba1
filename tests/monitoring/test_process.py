"""The gauges of the process."""

from __future__ import annotations

import os
import time

import pytest
from twisted.internet.task import Clock

from anycable_tx.metrics import Metrics
from anycable_tx.monitoring import process
from anycable_tx.monitoring.process import GLANCE, Process


class World:
    """A process that is looked at, on a clock."""

    def __init__(self, age: float = 5, *, start: bool = True) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.process = Process(self.metrics, self.clock, age)
        if start:
            self.process.start()

    def value(self, name: str) -> int:
        return self.metrics.value(name)


def test_memory_and_descriptors_are_those_of_the_system() -> None:
    world = World(age=0)
    page = os.sysconf("SC_PAGE_SIZE")
    before = world.value("mem_sys_bytes")
    assert before % page == 0
    ballast = b"x" * 50_000_000
    assert world.value("mem_sys_bytes") - before >= 45_000_000
    assert len(ballast)
    count = world.value("open_fds_num")
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    assert world.value("open_fds_num") == count + 5
    for fd in fds:
        os.close(fd)
    assert world.value("open_fds_num") == count


def test_figures_may_be_as_old_as_allowed() -> None:
    world = World(age=5)
    count = world.value("open_fds_num")
    fd = os.open(os.devnull, os.O_RDONLY)
    world.clock.advance(4.9)
    assert world.value("open_fds_num") == count
    world.clock.advance(0.1)
    assert world.value("open_fds_num") == count + 1
    os.close(fd)


def test_a_system_that_tells_less_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_STATM", process.Path("/nowhere"))
    monkeypatch.setattr(process, "_FDS", process.Path("/nowhere"))
    world = World(age=0)
    assert "open_fds_num" not in world.metrics.gauges()
    assert world.value("mem_sys_bytes") > 1_000_000


def test_the_delay_of_the_event_loop_is_the_longest_lately() -> None:
    world = World(age=2)
    world.clock.pump([GLANCE] * 3)
    assert world.value("loop_delay_ms") == 0
    world.clock.advance(GLANCE + 0.3)
    world.clock.pump([GLANCE] * 2)
    assert world.value("loop_delay_ms") == 300
    world.clock.pump([GLANCE] * 8)  # the next whole period
    assert world.value("loop_delay_ms") == 300
    world.clock.pump([GLANCE] * 16)
    assert world.value("loop_delay_ms") == 0


def test_the_use_of_the_processor_is_that_of_the_last_period(monkeypatch: pytest.MonkeyPatch) -> None:
    used = 100.0
    monkeypatch.setattr(time, "process_time", lambda: used)
    world = World(age=5)
    assert world.value("cpu_percent") == 0
    used += 2.5
    world.clock.pump([GLANCE] * 20)
    assert world.value("cpu_percent") == 50
    used += 5.0
    world.clock.pump([GLANCE] * 20)
    assert world.value("cpu_percent") == 100


def test_after_the_stop_nothing_is_looked_at() -> None:
    world = World()
    world.process.stop()
    world.process.stop()
    assert world.clock.getDelayedCalls() == []
    World(start=False).process.stop()
