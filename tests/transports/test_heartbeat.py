"""Pings, pong deadlines and handshake deadlines on one timer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from anycable_tx.metrics import Metrics
from anycable_tx.transports.heartbeat import FARTHEST, TICK, Heartbeat

#: Times are exact to a tick, and a little more for the arithmetic.
EXACT = TICK * 1.01


class Connection:
    """Remembers when it was visited."""

    def __init__(self, beat: Beat, *, answers: bool = True) -> None:
        self.beat = beat
        self.answers = answers
        self.alive = True
        self.pong_due = 0.0
        self.pings: list[float] = []
        self.missing: list[float] = []
        self.timed_out: list[float] = []

    def is_alive(self) -> bool:
        return self.alive

    def ping(self) -> None:
        self.pings.append(self.beat.clock.seconds())
        self.beat.heart.expect_pong(self)
        if self.answers:
            self.pong_due = 0.0

    def pong_missing(self) -> None:
        self.missing.append(self.beat.clock.seconds())
        self.alive = False

    def opening_timed_out(self) -> None:
        self.timed_out.append(self.beat.clock.seconds())


class Beat:
    """A heartbeat on a clock."""

    def __init__(self, pong_timeout: float = 0, handshake_timeout: float = 5) -> None:
        self.clock = Clock()
        self.clock.advance(1234.5)
        self.metrics = Metrics()
        self.heart = Heartbeat(
            self.clock, self.metrics, pong_timeout=pong_timeout, handshake_timeout=handshake_timeout
        )
        self.heart.start()

    def wait(self, seconds: float, step: float = 0.01) -> None:
        self.clock.pump([step] * round(seconds / step))

    def connections(self, count: int, interval: float, **options: Any) -> list[Connection]:
        found = [Connection(self, **options) for _ in range(count)]
        for connection in found:
            self.heart.add(connection, interval)
        return found


@pytest.fixture
def beat() -> Iterator[Beat]:
    found = Beat(pong_timeout=2)
    yield found
    found.heart.stop()
    assert found.clock.getDelayedCalls() == []


@pytest.mark.statement("CP-130")
@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 20))
def test_the_first_ping_comes_within_half_and_one_and_a_half_intervals_then_one_each(interval):
    beat = Beat()
    start = beat.clock.seconds()
    connections = beat.connections(20, interval)
    beat.wait(interval * 4, 0.02)
    for connection in connections:
        first, *others = connection.pings
        assert 0.5 * interval - 2 * TICK <= first - start <= 1.5 * interval + 2 * TICK
        assert len(others) >= 2
        for n, moment in enumerate(others, 1):
            assert abs(moment - first - n * interval) <= (n + 1) * TICK


def test_first_pings_are_spread(beat):
    connections = beat.connections(200, 3)
    beat.wait(5)
    moments = {round(connection.pings[0], 2) for connection in connections}
    assert len(moments) > 30


def test_no_interval_is_shorter_than_a_tick(beat):
    [connection] = beat.connections(1, 0.001)
    beat.wait(1)
    assert len(connection.pings) in (19, 20, 21)


def test_an_interval_beyond_the_farthest_bucket_is_kept(beat):
    interval = FARTHEST * TICK * 4.5
    [connection] = beat.connections(1, interval)
    start = beat.clock.seconds()
    beat.wait(interval * 4, 1)
    first, second, third = connection.pings[:3]
    assert 0.5 * interval - 1 <= first - start <= 1.5 * interval + 1
    assert second - first == pytest.approx(interval, abs=1)
    assert third - second == pytest.approx(interval, abs=1)


def test_nothing_is_pinged_after_it_is_gone(beat):
    gone, there = beat.connections(2, 1)
    beat.wait(2)
    gone.alive = False
    count = len(gone.pings)
    beat.wait(5)
    assert len(gone.pings) == count
    assert len(there.pings) > count + 3


@pytest.mark.parametrize("interval", [1.0, 100.0, 1e6])
def test_nothing_is_kept_of_connections_that_are_gone(beat, interval):
    for connection in beat.connections(50, interval):
        connection.alive = False
    beat.wait(FARTHEST * TICK + 1, 0.5)
    assert beat.heart._buckets == {}


def test_a_clock_that_jumps_loses_no_connection(beat):
    [connection] = beat.connections(1, 3)
    beat.wait(5)
    beat.clock.advance(60)
    count = len(connection.pings)
    beat.wait(9)
    assert len(connection.pings) - count in (2, 3, 4)


def test_nobody_is_pinged_after_the_stop(beat):
    [connection] = beat.connections(1, 1)
    beat.heart.stop()
    beat.wait(5)
    assert connection.pings == []
    beat.heart.stop()


def test_an_error_in_one_connection_stops_no_pings(beat):
    bad, good = beat.connections(2, 1)
    bad.ping = lambda: 1 / 0  # type: ignore[method-assign]
    errors: list[Any] = []
    globalLogPublisher.addObserver(errors.append)
    beat.wait(5)
    globalLogPublisher.removeObserver(errors.append)
    assert len(good.pings) >= 4
    assert "ZeroDivisionError" in str(errors[0]["log_failure"])
    assert beat.metrics.value("internal_errors_total") == len(errors) >= 4


# -- pongs


@pytest.mark.statement("CP-131")
def test_silence_is_noticed_in_time_after_the_first_ping_without_an_answer(beat):
    [connection] = beat.connections(1, 1, answers=False)
    beat.wait(10)
    [missing] = connection.missing
    assert 2 <= missing - connection.pings[0] <= 2 + EXACT


def test_any_sign_of_life_ends_the_wait(beat):
    [connection] = beat.connections(1, 1, answers=False)
    for _ in range(100):
        beat.wait(0.3)
        connection.pong_due = 0.0
    assert connection.missing == []


@pytest.mark.statement("CP-134")
def test_silence_is_cut_in_time_however_old_the_connection_is(beat):
    [connection] = beat.connections(1, 1)
    beat.wait(600, 0.05)
    connection.answers = False
    count = len(connection.pings)
    beat.wait(5)
    [missing] = connection.missing
    assert 2 <= missing - connection.pings[count] <= 2 + 2 * EXACT


def test_a_connection_that_is_gone_misses_nothing(beat):
    [connection] = beat.connections(1, 1, answers=False)
    beat.wait(1.6)
    connection.alive = False
    beat.wait(5)
    assert connection.missing == []


def test_without_a_pong_timeout_nobody_has_to_answer():
    beat = Beat(pong_timeout=0)
    [connection] = beat.connections(1, 1, answers=False)
    beat.wait(10)
    assert connection.missing == []
    assert connection.pong_due == 0


# -- the request head


def test_each_connection_hears_when_the_time_for_its_request_head_is_up(beat):
    first, second = Connection(beat), Connection(beat)
    start = beat.clock.seconds()
    beat.heart.opened(first)
    beat.wait(1)
    beat.heart.opened(second)
    beat.wait(10)
    assert first.timed_out == [pytest.approx(start + 5, abs=EXACT)]
    assert second.timed_out == [pytest.approx(start + 6, abs=EXACT)]
