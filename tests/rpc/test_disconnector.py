"""The queue of ended sessions: its pace, its bounds, its second attempts, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs

from anycable_tx.metrics import Metrics
from anycable_tx.rpc import disconnector
from anycable_tx.rpc.calls import Caller
from anycable_tx.rpc.disconnector import AGAIN_AFTER, MAX_AGAIN, Disconnector
from anycable_tx.rpc.transport import Code, RpcReply, RpcStatus
from tests.rpc.support import Attempt, Begun, Outcome, Scripted, counted, failed, ok, settings, spin


class Queue:
    """A disconnector that calls a scripted backend through a real caller."""

    def __init__(self, *outcomes: Outcome, workers: int = 14, grace: float = 0.0, **given: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.transport = Scripted(self.clock)
        self.transport.outcomes.extend(outcomes)
        options = settings(**given)
        self.caller = Caller(self.transport, options, self.clock, self.metrics)
        self.disconnector = Disconnector(
            lambda request, sid: self.caller.call("disconnect", request, sid),
            options,
            self.clock,
            self.metrics,
            workers=lambda: workers,
            hold=grace,
        )

    def ends(self, *sids: object, resumable: bool = False, **request: Any) -> None:
        for sid in sids:
            self.disconnector.enqueue(str(sid), request or {"identifiers": str(sid)}, resumable=resumable)

    def withdraw(self, sid: object) -> Begun:
        return Begun(self.disconnector.withdraw(str(sid)))

    def drain(self) -> Begun:
        return Begun(self.disconnector.drain())

    def hold_answers(self) -> list[Deferred[RpcReply]]:
        """From now on attempts wait for the answers in this list."""
        answers: list[Deferred[RpcReply]] = []

        def hold(attempt: Attempt) -> Outcome:
            answers.append(Deferred())
            return answers[-1]

        self.transport.answer = hold
        return answers

    @property
    def told(self) -> list[str]:
        return [attempt.sid for attempt in self.transport.attempts]

    @property
    def size(self) -> int:
        return self.metrics.value("disconnect_queue_size")

    @property
    def dropped(self) -> dict[str, int]:
        return counted(self.metrics, "disconnect_dropped_total")


def levels(events: list[LogEvent], level: LogLevel = LogLevel.warn) -> list[str]:
    return [event["log_format"] for event in events if event["log_level"] is level]


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    with capturedLogs() as events:
        yield events  # type: ignore[misc]


def test_an_end_is_reported_at_once_when_nothing_waits() -> None:
    queue = Queue()
    queue.ends("S", identifiers="me")
    assert queue.transport.attempts == [Attempt("disconnect", {"identifiers": "me"}, "S", 3.0, 0.0)]
    assert (queue.size, queue.clock.getDelayedCalls()) == (0, [])


# -- pace


@pytest.mark.statement("RA-37")
@pytest.mark.parametrize("rate", [0.5, 3, 100, 300, 1500])
def test_the_rate_is_exact(rate: float) -> None:
    queue = Queue(disconnect_rate=rate)
    queue.ends(*range(4000))
    spin(queue.clock, 2)
    assert len(queue.told) == pytest.approx(2 * rate + 1, abs=1)
    gaps = [b - a for a, b in pairwise(queue.transport.times)]
    assert gaps == pytest.approx([1000 / rate] * len(gaps), abs=0.002)


@pytest.mark.statement("RA-37")
@pytest.mark.parametrize("rate", [100, 300, 1500])
def test_timers_that_are_late_do_not_lower_the_rate(rate: float) -> None:
    queue = Queue(disconnect_rate=rate)
    queue.ends(*range(4000))
    queue.clock.pump([0.007] * 286)
    assert len(queue.told) == pytest.approx(2 * rate + 1, abs=0.007 * rate + 1)


@pytest.mark.statement("RA-37")
def test_an_idle_time_is_not_made_up_for() -> None:
    queue = Queue(disconnect_rate=10)
    queue.ends("a")
    queue.clock.advance(60)
    queue.ends("b", "c", "d")
    spin(queue.clock, 1)
    assert queue.transport.times == [0, 60_000, 60_100, 60_200]


@pytest.mark.statement("RA-38")
def test_a_slow_backend_gets_several_calls_at_a_time_but_not_more_than_there_are_workers() -> None:
    queue = Queue(workers=3)
    answers = queue.hold_answers()
    queue.ends(*range(10))
    spin(queue.clock, 5)
    assert queue.told == ["0", "1", "2"]
    answers[1].callback(ok())
    assert queue.told == ["0", "1", "2", "3"]
    assert queue.size == 6


@pytest.mark.statement("RA-38")
def test_there_is_always_one_worker() -> None:
    queue = Queue(workers=0)
    queue.ends("a")
    assert queue.told == ["a"]


def test_commands_go_first_where_both_wait_for_a_turn() -> None:
    queue = Queue(rpc_concurrency=1, workers=5)
    answers = queue.hold_answers()
    queue.ends("a", "b")
    spin(queue.clock, 1)
    Begun(queue.caller.call("command", {}, "S"))
    answers[0].callback(ok())
    answers[1].callback(ok())
    assert [attempt.method for attempt in queue.transport.attempts] == ["disconnect", "command", "disconnect"]


# -- bounds


@pytest.mark.statement("RA-38")
def test_when_too_many_wait_the_oldest_is_dropped(logged: list[LogEvent]) -> None:
    queue = Queue(workers=1, disconnect_backlog_size=3)
    answers = queue.hold_answers()
    queue.ends(*range(8))
    assert (queue.told, queue.size) == (["0"], 3)
    assert queue.dropped == {"disconnect_dropped_total{backlog}": 4}
    assert len(levels(logged)) == 1  # not one for each
    for number in range(4):
        spin(queue.clock, 1)
        answers[number].callback(ok())
    assert queue.told == ["0", "5", "6", "7"]
    spin(queue.clock, 1)
    queue.ends(*range(10, 15))
    assert len(levels(logged)) == 2  # once more, as it is over in between


@pytest.mark.statement("RA-38")
def test_when_too_much_waits_the_oldest_is_dropped() -> None:
    queue = Queue(workers=1, disconnect_backlog_bytes=1000)
    queue.hold_answers()
    queue.ends("0", "1", "2", identifiers="x" * 300, env={"cstate": {"k": "v" * 100}}, subscriptions=["y" * 10])
    assert (queue.size, queue.dropped) == (2, {})
    queue.ends("3", identifiers="x" * 300)
    assert (queue.size, queue.dropped) == (2, {"disconnect_dropped_total{bytes}": 1})
    queue.ends("4", identifiers="x" * 2000)
    assert (queue.size, queue.dropped) == (0, {"disconnect_dropped_total{bytes}": 4})
    queue.ends("5")
    assert queue.size == 1


def test_the_oldest_is_the_one_that_ended_first_wherever_it_waits() -> None:
    queue = Queue(workers=1, grace=60.0, disconnect_backlog_size=2)
    queue.hold_answers()
    queue.ends("running")
    queue.ends("held", resumable=True)
    queue.ends("ready", "newest")
    assert (queue.size, queue.withdraw("held").result) == (2, False)
    assert queue.dropped == {"disconnect_dropped_total{backlog}": 1}
    assert queue.size == 2


def test_a_later_report_replaces_one_that_waits() -> None:
    queue = Queue(grace=5.0)
    queue.ends("S", resumable=True, subscriptions=["a"])
    queue.ends("S", resumable=True, subscriptions=["a", "b"])
    assert queue.size == 1
    spin(queue.clock, 10)
    assert [attempt.request for attempt in queue.transport.attempts] == [{"subscriptions": ["a", "b"]}]


def test_a_later_report_takes_the_place_of_a_second_attempt() -> None:
    queue = Queue(failed(Code.UNKNOWN))
    queue.ends("S", subscriptions=["a"])
    queue.ends("S", subscriptions=["a", "b"])
    spin(queue.clock, 60)
    assert [attempt.request["subscriptions"] for attempt in queue.transport.attempts] == [["a"], ["a", "b"]]


def test_a_later_report_follows_one_that_is_under_way() -> None:
    queue = Queue()
    answers = queue.hold_answers()
    queue.ends("S", subscriptions=["a"])
    spin(queue.clock, 1)
    queue.ends("S", subscriptions=["b"])
    answers[0].errback(failed(Code.UNKNOWN))
    answers[1].callback(ok())
    spin(queue.clock, 60)
    assert len(queue.told) == 2
    assert (queue.size, queue.dropped) == (0, {})


# -- failures


@pytest.mark.statement("RA-39")
def test_a_call_that_failed_is_made_again_later() -> None:
    queue = Queue(failed(Code.TIMEOUT), RpcReply(RpcStatus.ERROR))
    queue.ends("S")
    assert (queue.told, queue.size) == (["S"], 1)
    spin(queue.clock, 60)
    assert queue.transport.times == [0, AGAIN_AFTER * 1000, AGAIN_AFTER * 2000]
    assert (queue.size, queue.dropped) == (0, {})


@pytest.mark.statement("RA-39")
def test_it_is_given_up_after_three_more() -> None:
    queue = Queue()
    queue.transport.answer = lambda attempt: failed(Code.UNKNOWN)
    queue.ends("S")
    spin(queue.clock, 120)
    assert len(queue.told) == 1 + MAX_AGAIN == 4
    assert (queue.size, queue.dropped) == (0, {"disconnect_dropped_total{failed}": 1})
    assert queue.clock.getDelayedCalls() == []


def test_a_refusal_is_an_answer() -> None:
    queue = Queue(RpcReply(RpcStatus.FAILURE))
    queue.ends("S")
    spin(queue.clock, 60)
    assert (queue.told, queue.dropped) == (["S"], {})


@pytest.mark.statement("RA-39")
def test_what_failed_does_not_keep_others_waiting() -> None:
    queue = Queue(failed(Code.UNKNOWN))
    queue.ends("a", "b")
    spin(queue.clock, 1)
    assert queue.told == ["a", "b"]


# -- sessions that come back


def test_the_end_of_a_resumable_session_is_held() -> None:
    queue = Queue(grace=10.0)
    queue.ends("plain")
    queue.ends("R", resumable=True)
    spin(queue.clock, 9.9)
    assert (queue.told, queue.size) == (["plain"], 1)
    spin(queue.clock, 0.1)
    assert queue.told == ["plain", "R"]


def test_a_session_that_comes_back_in_time_has_not_ended() -> None:
    queue = Queue(grace=10.0)
    queue.ends("R", resumable=True)
    spin(queue.clock, 9)
    assert queue.withdraw("R").result is False
    assert (queue.size, queue.clock.getDelayedCalls()) == (0, [])
    spin(queue.clock, 60)
    assert (queue.told, queue.dropped) == ([], {})


def test_a_report_under_way_ends_before_the_session_is_back() -> None:
    queue = Queue()
    answers = queue.hold_answers()
    queue.ends("R", resumable=True)
    back = queue.withdraw("R")
    assert not back.done
    answers[0].callback(ok())
    assert back.result is True


def test_a_report_that_fails_is_not_made_again_for_a_session_that_is_back() -> None:
    queue = Queue()
    answers = queue.hold_answers()
    queue.ends("R", resumable=True)
    back = queue.withdraw("R")
    answers[0].errback(failed(Code.UNKNOWN))
    assert back.result is True  # the backend may have seen it
    spin(queue.clock, 60)
    assert (queue.told, queue.size, queue.dropped) == (["R"], 0, {})


def test_a_report_that_was_tried_once_may_have_been_seen() -> None:
    queue = Queue(failed(Code.TIMEOUT, delivered=True))
    queue.ends("R", resumable=True)
    assert (queue.size, queue.withdraw("R").result) == (1, True)
    spin(queue.clock, 60)
    assert queue.told == ["R"]


def test_what_was_reported_is_known_and_what_was_not_is_not() -> None:
    queue = Queue(disconnect_rate=1)
    queue.ends("told", "waits", resumable=True)
    assert queue.withdraw("told").result is True
    assert queue.withdraw("told").result is True
    assert queue.withdraw("waits").result is False
    assert queue.withdraw("still connected, or elsewhere").result is False


def test_a_withdrawn_session_can_end_after_all() -> None:
    queue = Queue(grace=10.0)
    queue.ends("R", resumable=True)
    queue.withdraw("R")
    queue.ends("R")
    assert queue.told == ["R"]


def test_the_memory_of_what_was_reported_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnector, "MAX_REPORTED", 3)
    queue = Queue(disconnect_rate=1e6)
    queue.ends(*range(5), resumable=True)
    queue.ends(*range(5, 50))  # these cannot come back
    spin(queue.clock, 1)
    assert len(queue.told) == 50
    assert [queue.withdraw(number).result for number in range(5)] == [False, False, True, True, True]


# -- the end


@pytest.mark.statement("RA-40")
def test_a_stop_reports_all_that_wait_as_fast_as_it_can(logged: list[LogEvent]) -> None:
    queue = Queue(failed(Code.UNKNOWN), grace=60.0, disconnect_rate=1)
    queue.ends("fails first", "b", "c")
    queue.ends("held", resumable=True)
    drain = queue.drain()
    assert drain.done
    assert sorted(queue.told[1:]) == ["b", "c", "fails first", "held"]
    (line,) = [event for event in logged if event["log_level"] is LogLevel.info]
    assert (line["sent"], line["dropped"]) == (4, 0)
    assert queue.clock.getDelayedCalls() == []


@pytest.mark.statement("RA-39", "RA-40")
def test_a_stop_waits_for_the_calls_and_makes_none_again(logged: list[LogEvent]) -> None:
    queue = Queue(workers=2, disconnect_rate=1)
    answers = queue.hold_answers()
    queue.ends(*range(6))
    drain = queue.drain()
    assert len(answers) == 4  # twice as many: nobody else needs the backend
    answers[0].errback(failed(Code.UNKNOWN))
    for answer in answers[1:5]:
        answer.callback(ok())
    assert not drain.done
    answers[5].callback(ok())
    assert drain.done
    assert len(queue.told) == 6
    assert queue.dropped == {"disconnect_dropped_total{failed}": 1}
    (line,) = [event for event in logged if event["log_level"] is LogLevel.info]
    assert (line["sent"], line["dropped"]) == (5, 1)


@pytest.mark.statement("RA-40")
def test_a_stop_without_time_says_what_is_lost(logged: list[LogEvent]) -> None:
    queue = Queue(workers=1, disconnect_rate=1)
    answers = queue.hold_answers()
    queue.ends(*range(6))
    drain = queue.drain()
    answers[0].callback(ok())
    drain.deferred.cancel()
    assert isinstance(drain.error, CancelledError)
    assert (queue.size, queue.dropped) == (0, {"disconnect_dropped_total{stopped}": 5})
    (line,) = [event for event in logged if event["log_level"] is LogLevel.info]
    assert (line["sent"], line["dropped"]) == (1, 5)
    assert queue.clock.getDelayedCalls() == []


def test_an_end_after_the_stop_is_dropped() -> None:
    queue = Queue()
    assert queue.drain().done
    queue.ends("late")
    assert (queue.told, queue.dropped) == ([], {"disconnect_dropped_total{stopped}": 1})


def test_an_end_during_the_stop_is_reported() -> None:
    queue = Queue(grace=60.0)
    answers = queue.hold_answers()
    queue.ends("a")
    drain = queue.drain()
    queue.ends("b", resumable=True)
    answers[0].callback(ok())
    assert not drain.done
    answers[1].callback(ok())
    assert drain.done
    assert queue.told == ["a", "b"]


def test_thousands_of_answers_at_once_do_not_pile_up_on_the_stack() -> None:
    queue = Queue(disconnect_rate=0.001)
    queue.ends(*range(4000))
    assert queue.drain().done
    assert len(queue.told) == 4000


@pytest.mark.filterwarnings("ignore")
def test_an_error_nobody_expected_is_counted_and_the_queue_goes_on(logged: list[LogEvent]) -> None:
    queue = Queue()

    def broken(attempt: Attempt) -> Outcome:
        queue.transport.answer = lambda attempt: ok()
        raise RuntimeError("boom")

    queue.transport.answer = broken
    queue.ends("a", "b")
    spin(queue.clock, 60)
    assert queue.told == ["a", "b", "a"]
    assert queue.metrics.value("internal_errors_total") == 1
