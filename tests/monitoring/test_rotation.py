"""Snapshots at equal times, and the log printer that writes them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from anycable_tx.config.load import defaults
from anycable_tx.logs import make_observer
from anycable_tx.metrics import COUNTERS, Metrics
from anycable_tx.monitoring.monitor import Monitor
from anycable_tx.monitoring.rotation import Rotation, Snapshot
from anycable_tx.testing.sync import result_of
from anycable_tx.transports.site import Sites
from tests.monitoring.support import logged, texts


class Kept:
    """A writer that keeps what it gets; it fails when told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.snapshots: list[Snapshot] = []
        self.fails = fails
        self.stopped = False

    def start(self) -> None:
        pass

    def write(self, snapshot: Snapshot) -> None:
        if self.fails:
            raise RuntimeError("no")
        self.snapshots.append(snapshot)

    async def stop(self) -> None:
        self.stopped = True


class World:
    """A rotation of 10 seconds on a clock."""

    def __init__(self, *writers: Kept) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.rotation = Rotation(self.metrics, self.clock, 10, writers)
        self.rotation.start()


@pytest.mark.statement("HE-15")
def test_a_snapshot_has_what_counters_grew_by_and_what_gauges_are() -> None:
    kept = Kept()
    world = World(kept)
    world.metrics.gauge("clients_num", lambda: 7)
    world.metrics.count("publications_total", 3)
    world.metrics.count("history_rejects_total", 1, "trimmed")
    world.metrics.count("history_rejects_total", 1, "expired")
    world.clock.advance(9.9)
    assert kept.snapshots == []
    world.clock.advance(0.1)
    world.metrics.count("publications_total", 2)
    world.clock.pump([10, 10])
    assert [s.counters["publications_total"] for s in kept.snapshots] == [3, 2, 0]
    assert [s.counters["history_rejects_total"] for s in kept.snapshots] == [2, 0, 0]
    assert [s.gauges for s in kept.snapshots] == [{"clients_num": 7}] * 3
    result_of(world.rotation.stop())


def test_at_the_end_the_rest_is_written_once() -> None:
    kept = Kept()
    world = World(kept)
    world.clock.advance(10)
    world.metrics.count("publications_total")
    result_of(world.rotation.stop())
    result_of(world.rotation.stop())
    world.clock.advance(100)
    assert [s.counters["publications_total"] for s in kept.snapshots] == [0, 1]
    assert kept.stopped
    assert world.clock.getDelayedCalls() == []


def test_a_writer_that_fails_is_reported_and_harms_nobody() -> None:
    bad, good = Kept(fails=True), Kept()
    world = World(bad, good)
    with logged() as events:
        world.clock.pump([10, 10])
    assert len(good.snapshots) == 2
    assert texts(events) == ["cannot write the metrics"] * 2
    assert world.metrics.value("internal_errors_total") == 2
    result_of(world.rotation.stop())


def test_a_gauge_that_fails_is_reported_and_the_next_snapshot_comes() -> None:
    kept = Kept()
    world = World(kept)
    answers = iter([1])
    world.metrics.gauge("clients_num", lambda: 1 // next(answers, 0))
    with logged() as events:
        world.clock.pump([10, 10])
    assert len(kept.snapshots) == 1
    assert texts(events) == ["cannot read the metrics"]
    world.metrics.gauge("clients_num", lambda: 1)
    result_of(world.rotation.stop())


# -- the log


class Logged:
    """A monitor on a clock, and its log as JSON records."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.stream = io.StringIO()
        self._settings = defaults(stats_refresh_interval=0, **settings)
        self.monitor = Monitor(self._settings, self.clock, self.metrics, Sites(self._settings, self.clock))

    def records(self, *steps: float) -> list[dict[str, Any]]:
        """Start, let time pass, and stop; what was written."""
        observer = make_observer(self.stream, format="json", level="info", node_id="n")
        with logged() as events:
            result_of(self.monitor.start())
            self.monitor.announce()
            self.clock.pump(steps)
            result_of(self.monitor.stop())
        for event in events:
            observer(event)
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.mark.statement("HE-14")
def test_the_log_has_one_record_a_rotation_with_sorted_names() -> None:
    world = Logged(metrics_log=True, metrics_rotate_interval=10)
    world.metrics.count("publications_total", 4)
    beginning, first, second, last = world.records(10, 10)
    assert (beginning["msg"], beginning["context"], beginning["interval"]) == ("log metrics", "metrics", 10)
    assert "fields" not in beginning
    for record in (first, second, last):
        assert record["level"] == "INFO"
        assert record["msg"] == ""
        names = [name for name in record if name not in ("time", "level", "msg", "nodeid")]
        assert names == sorted(names)
        assert "context" not in record
        assert {"clients_num", "publications_total", "mem_sys_bytes"} - set(names) == {"clients_num"}
    assert [r["publications_total"] for r in (first, second, last)] == [4, 0, 0]


@pytest.mark.statement("HE-14")
def test_the_filter_keeps_what_it_lists() -> None:
    world = Logged(metrics_log=True, metrics_log_filter="publications_total,nonsense,cpu_percent")
    beginning, first, _ = world.records(15)
    assert beginning["fields"] == ["publications_total", "nonsense", "cpu_percent"]
    assert set(first) == {"time", "level", "msg", "nodeid", "publications_total", "cpu_percent"}
    assert "metrics_log_filter: there is no metric nonsense" in world.monitor._settings.notices


def test_the_filter_alone_logs_nothing() -> None:
    assert Logged(metrics_log_filter="publications_total").records(15, 15) == []


@pytest.mark.parametrize("interval", [0, 15])
def test_no_interval_is_the_usual_one(interval: float) -> None:
    world = Logged(metrics_log=True, metrics_rotate_interval=interval)
    assert len(world.records(14.9, 0.1, 15)) == 4
    assert set(world.metrics.counters()) <= set(COUNTERS)


def test_records_of_the_log_can_be_left_out() -> None:
    with logged() as events:
        world = Logged(metrics_log=True)
        result_of(world.monitor.start())
        world.clock.advance(15)
        result_of(world.monitor.stop())
    assert {event["log_level"] for event in events} == {LogLevel.info}
