"""Turns: who is next, who leaves the line, and how a limit follows the backend."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from anycable_tx.metrics import Metrics
from anycable_tx.rpc.permits import DISCONNECT_TURN, AdaptiveLimit, Limit, Permits
from anycable_tx.rpc.transport import CallFailed, Code
from tests.rpc.support import Begun


class Line:
    """Permits, and the names of those whose turn came, in their order."""

    def __init__(self, capacity: int = 1, size: int = 10_000, patience: float = 0.0) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.limit = Limit(capacity)
        self.permits = Permits(self.limit, self.clock, self.metrics, size=size, patience=patience)
        self.turns: list[str] = []

    def join(self, name: str, *, sid: str = "", disconnect: bool = False) -> Begun:
        async def wait() -> None:
            await self.permits.acquire(sid or name, disconnect=disconnect)
            self.turns.append(name)

        return Begun(wait())

    def finish(self, number: int = 1) -> None:
        for _ in range(number):
            self.permits.release()

    @property
    def pending(self) -> int:
        return self.metrics.value("rpc_pending_num")


def test_as_many_run_as_there_are_permits_and_the_rest_come_in_their_order() -> None:
    line = Line(capacity=2)
    for name in "abcde":
        line.join(name)
    assert (line.turns, line.pending, line.permits.running) == (["a", "b"], 3, 2)
    line.finish()
    assert (line.turns, line.pending, line.permits.running) == (["a", "b", "c"], 2, 2)
    line.finish(2)
    assert (line.turns, line.pending) == (["a", "b", "c", "d", "e"], 0)
    line.finish(2)
    assert line.permits.running == 0


@pytest.mark.statement("RA-26")
def test_disconnects_let_commands_go_first_but_have_every_eighth_turn() -> None:
    line = Line()
    line.join("first")
    for number in range(3):
        line.join(f"D{number}", disconnect=True)
    for number in range(20):
        line.join(f"c{number}")
    line.finish(23)
    assert [line.turns.index(f"D{number}") for number in range(2)] == [DISCONNECT_TURN, 2 * DISCONNECT_TURN]
    assert [turn for turn in line.turns if turn.startswith("c")] == [f"c{number}" for number in range(20)]
    assert line.turns[-1] == "D2"


@pytest.mark.statement("RA-26")
def test_disconnects_take_all_turns_that_nobody_else_wants() -> None:
    line = Line()
    for number in range(5):
        line.join(f"D{number}", disconnect=True)
    line.finish(4)
    assert line.turns == ["D0", "D1", "D2", "D3", "D4"]


@pytest.mark.statement("RA-26")
def test_the_calls_of_a_session_that_ended_leave_the_line_at_once() -> None:
    line = Line()
    line.join("a")
    gone, stays, also = line.join("b", sid="S"), line.join("c"), line.join("d", sid="S")
    line.permits.gone("S")
    assert gone.code is also.code is Code.CANCELED
    assert not gone.error.delivered
    assert (line.pending, stays.done) == (1, False)
    line.finish()
    assert line.turns == ["a", "c"]
    line.permits.gone("S")  # nothing is left of it


@pytest.mark.statement("RA-26")
def test_the_disconnect_of_a_session_that_ended_stays() -> None:
    line = Line()
    line.join("a")
    line.join("D", sid="S", disconnect=True)
    line.permits.gone("S")
    assert line.pending == 1
    line.finish()
    assert line.turns == ["a", "D"]


def test_a_call_too_many_fails_at_once() -> None:
    line = Line(size=2)
    line.join("a")
    waiting = [line.join("b"), line.join("c", disconnect=True)]
    assert line.join("d").code is Code.QUEUE_FULL
    assert line.join("e", disconnect=True).code is Code.QUEUE_FULL
    assert [call.done for call in waiting] == [False, False]
    line.finish(2)
    assert line.turns == ["a", "b", "c"]


@pytest.mark.statement("RA-26")
def test_a_call_that_waited_for_too_long_fails() -> None:
    line = Line(patience=2.0)
    line.join("a")
    first = line.join("b")
    line.clock.advance(1.5)
    second = line.join("c")
    line.clock.advance(0.5)
    assert first.code is Code.QUEUE_FULL
    assert "2 s" in str(first.error)
    assert not second.done
    line.finish()
    line.clock.advance(10)
    assert (line.turns, second.result, line.pending) == (["a", "c"], None, 0)
    assert line.clock.getDelayedCalls() == []


def test_a_cancelled_call_leaves_the_line_and_takes_no_turn() -> None:
    line = Line(patience=5.0)
    line.join("a")
    cancelled = line.join("b")
    line.join("c")
    cancelled.deferred.cancel()
    assert isinstance(cancelled.error, CancelledError)
    assert line.pending == 1
    line.finish()
    assert (line.turns, line.permits.running) == (["a", "c"], 1)
    assert line.clock.getDelayedCalls() == []


def test_nobody_overtakes_those_that_wait() -> None:
    line = Line()
    line.join("a")
    line.join("b")
    line.limit.capacity = 2  # a turn is free, and nobody was told yet
    line.join("c")
    line.finish()
    assert line.turns == ["a", "b", "c"]


def test_calls_that_end_at_once_do_not_pile_up_on_the_stack() -> None:
    line = Line()
    line.join("first")
    ended = []

    async def call(number: int) -> None:
        await line.permits.acquire(str(number))
        ended.append(number)
        line.permits.release()

    calls = [Begun(call(number)) for number in range(5000)]
    line.finish()
    assert ended == list(range(5000))
    assert all(c.result is None for c in calls)
    assert line.permits.running == 0


# -- the limit that adapts


def answers(limit: AdaptiveLimit, number: int, waiting: int = 1) -> None:
    for _ in range(number):
        limit.answered(waiting)


@pytest.mark.statement("RA-32")
def test_the_limit_grows_by_one_for_a_round_of_answers_while_calls_wait() -> None:
    limit = AdaptiveLimit(25, 5, 27)
    answers(limit, 24)
    assert limit.capacity == 25
    answers(limit, 1)
    assert limit.capacity == 26
    answers(limit, 25)
    assert limit.capacity == 26
    answers(limit, 1)
    assert limit.capacity == 27
    answers(limit, 100)
    assert limit.capacity == 27


@pytest.mark.statement("RA-32")
def test_the_limit_does_not_grow_when_nobody_waits() -> None:
    limit = AdaptiveLimit(25, 5, 100)
    answers(limit, 1000, waiting=0)
    assert limit.capacity == 25


@pytest.mark.statement("RA-32")
def test_the_limit_shrinks_once_for_all_the_calls_that_ran_under_it() -> None:
    limit = AdaptiveLimit(40, 5, 100)
    for _ in range(40):
        limit.exhausted(40)
    assert limit.capacity == 30
    limit.exhausted(30)
    assert limit.capacity == 22
    answers(limit, 29, waiting=0)
    limit.exhausted(22)
    assert limit.capacity == 16


@pytest.mark.statement("RA-32")
def test_the_limit_keeps_its_bounds() -> None:
    limit = AdaptiveLimit(200, 5, 100)
    assert limit.capacity == 100
    for _ in range(100):
        limit.exhausted(1)
    assert limit.capacity == 5
    assert AdaptiveLimit(1, 5, 100).capacity == 5


@pytest.mark.statement("RA-32")
def test_the_limit_is_a_gauge_only_where_it_adapts() -> None:
    def gauges(limit: Any) -> list[str]:
        metrics = Metrics()
        Permits(limit, Clock(), metrics, size=1)
        return [name for name, _, _ in metrics]

    assert gauges(Limit(28)) == ["rpc_pending_num"]
    assert gauges(AdaptiveLimit(25, 5, 100)) == ["rpc_capacity_num", "rpc_pending_num"]


def test_the_error_says_how_many_wait() -> None:
    line = Line(size=1)
    line.join("a")
    line.join("b")
    with pytest.raises(CallFailed, match="1 calls wait already"):
        raise line.join("c").error
