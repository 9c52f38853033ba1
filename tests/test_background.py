"""Waiting for what may take too long."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from anycable_tx.background import done_within


@pytest.fixture
def clock():
    return Clock()


def answers(waiting: Deferred[bool]) -> list[bool]:
    found: list[bool] = []
    waiting.addCallback(found.append)
    return found


def test_what_is_done_in_time_is_waited_for(clock):
    work: Deferred[int] = Deferred()
    found = answers(Deferred.fromCoroutine(done_within(clock, 5, work)))
    clock.advance(4.9)
    assert found == []
    work.callback(7)
    assert found == [True]
    assert work.result == 7
    assert clock.getDelayedCalls() == []


def test_what_takes_longer_goes_on(clock):
    work: Deferred[int] = Deferred()
    found = answers(Deferred.fromCoroutine(done_within(clock, 5, work)))
    clock.advance(5)
    assert found == [False]
    work.callback(7)
    assert work.result == 7


def test_several_may_wait_for_the_same(clock):
    work: Deferred[int] = Deferred()
    found = [answers(Deferred.fromCoroutine(done_within(clock, 5, work))) for _ in range(2)]
    work.callback(7)
    assert found == [[True], [True]]


def test_a_failure_is_an_end_and_stays_with_the_work(clock):
    work: Deferred[int] = Deferred()
    found = answers(Deferred.fromCoroutine(done_within(clock, 5, work)))
    work.errback(ZeroDivisionError())
    assert found == [True]
    work.addErrback(lambda failure: failure.trap(ZeroDivisionError))


def test_who_waits_no_more_leaves_nothing_and_the_work_goes_on(clock):
    work: Deferred[int] = Deferred()
    waiting = Deferred.fromCoroutine(done_within(clock, 5, work))
    waiting.cancel()
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    assert clock.getDelayedCalls() == []
    work.callback(7)
    assert work.result == 7
