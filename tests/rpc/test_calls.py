"""Calls to the backend: when they are made, when they are made again, and what is counted."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from anycable_tx.metrics import Metrics
from anycable_tx.rpc.calls import Caller
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply, RpcStatus
from tests.rpc.support import Attempt, Begun, Outcome, Scripted, counted, failed, ok, settings, spin

NEVER_AGAIN = [code for code in Code if code not in (Code.UNAVAILABLE, Code.EXHAUSTED, Code.CANCELED)]


class Backend:
    """A caller, and the scripted transport it uses. Pauses are the plain ones unless *jitter* says otherwise."""

    def __init__(self, *outcomes: Outcome, jitter: float = 0.5, **given: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.transport = Scripted(self.clock)
        self.transport.outcomes.extend(outcomes)
        self.caller = Caller(self.transport, settings(**given), self.clock, self.metrics, jitter=lambda: jitter)

    def call(self, method: str = "command", sid: str = "S", *, again: bool = True, **request: Any) -> Begun:
        return Begun(self.caller.call(method, request, sid, again=again))

    def always(self, code: Code, **more: Any) -> None:
        self.transport.answer = lambda attempt: failed(code, **more)

    def counted(self) -> dict[str, int]:
        return counted(self.metrics, "rpc_")


def test_a_call_is_made_once_and_counted() -> None:
    backend = Backend(ok(identifiers="me"))
    call = backend.call("connect", "S", env={})
    assert call.result == ok(identifiers="me")
    assert backend.transport.attempts == [Attempt("connect", {"env": {}}, "S", 3.0, 0.0)]
    assert backend.counted() == {"rpc_call_total": 1}


# -- attempts


@pytest.mark.statement("RA-25")
def test_an_unavailable_backend_is_tried_again_with_growing_pauses_until_the_time_is_over() -> None:
    backend = Backend()
    backend.always(Code.UNAVAILABLE)
    call = backend.call()
    spin(backend.clock, 3.5)
    assert backend.transport.times == [0, 100, 300, 700, 1500, 2500]
    assert call.code is Code.UNAVAILABLE


@pytest.mark.statement("RA-25")
def test_an_exhausted_backend_is_tried_again_sooner() -> None:
    backend = Backend()
    backend.always(Code.EXHAUSTED)
    call = backend.call()
    spin(backend.clock, 3.5)
    assert backend.transport.times == [0, 10, 30, 70, 150, 310, 630, 1270, 2270]
    assert call.code is Code.EXHAUSTED


def test_the_pauses_start_anew_when_the_backend_fails_in_another_way() -> None:
    backend = Backend(*map(failed, [Code.UNAVAILABLE] * 2 + [Code.EXHAUSTED] * 2 + [Code.UNAVAILABLE]))
    call = backend.call()
    spin(backend.clock, 1)
    assert backend.transport.times == [0, 100, 300, 310, 330, 430]
    assert call.result == ok()
    assert backend.counted() == {"rpc_call_total": 1, "rpc_retries_total": 5}


@pytest.mark.statement("RA-25")
@pytest.mark.parametrize(("jitter", "times"), [(0.0, [0, 80, 240, 560, 1200]), (1.0, [0, 120, 360, 840, 1800])])
def test_pauses_vary_by_a_fifth(jitter: float, times: list[float]) -> None:
    backend = Backend(*[failed(Code.UNAVAILABLE)] * 4, jitter=jitter)
    backend.call()
    spin(backend.clock, 2.5)
    assert backend.transport.times == times


@pytest.mark.statement("RA-25")
def test_no_pause_is_longer_than_a_second() -> None:
    backend = Backend(jitter=1.0, rpc_command_timeout=0)
    backend.always(Code.UNAVAILABLE)
    call = backend.call()
    spin(backend.clock, 1200)
    times = backend.transport.times
    assert max(later - earlier for earlier, later in pairwise(times)) == 1000
    assert len(times) > 1100
    assert not call.done
    call.deferred.cancel()


@pytest.mark.parametrize("code", NEVER_AGAIN)
@pytest.mark.parametrize("method", ["connect", "command", "disconnect", "restore"])
def test_other_failures_are_final(code: Code, method: str) -> None:
    backend = Backend(failed(code))
    assert backend.call(method).code is code
    assert len(backend.transport.attempts) == 1
    assert backend.clock.getDelayedCalls() == []
    assert "rpc_retries_total" not in backend.counted()


@pytest.mark.statement("RA-21")
@pytest.mark.parametrize("delivered", [False, True])
def test_what_is_too_large_is_not_asked_for_again(delivered: bool) -> None:
    backend = Backend(failed(Code.TOO_LARGE, delivered=delivered))
    call = backend.call()
    spin(backend.clock, 3)
    assert (call.code, len(backend.transport.attempts)) == (Code.TOO_LARGE, 1)


@pytest.mark.statement("RA-22")
@pytest.mark.parametrize(
    ("code", "delivered", "repeats", "attempts"),
    [
        (Code.UNAVAILABLE, True, False, 1),
        (Code.UNAVAILABLE, False, False, 2),
        (Code.EXHAUSTED, True, False, 2),
        (Code.EXHAUSTED, False, False, 2),
        (Code.UNAVAILABLE, True, True, 2),
        (Code.TIMEOUT, True, True, 1),
    ],
)
def test_a_message_is_sent_again_only_if_the_first_cannot_have_counted(
    code: Code, delivered: bool, repeats: bool, attempts: int
) -> None:
    backend = Backend(failed(code, delivered=delivered), rpc_retry_messages=repeats)
    call = backend.call(again=False)
    backend.clock.advance(1)
    assert len(backend.transport.attempts) == attempts
    assert call.result == ok() if attempts == 2 else call.code is code


@pytest.mark.statement("RA-22")
def test_what_may_be_repeated_is_even_if_it_was_delivered() -> None:
    backend = Backend(failed(Code.UNAVAILABLE, delivered=True))
    call = backend.call("connect")
    backend.clock.advance(1)
    assert call.result == ok()


@pytest.mark.statement("RA-16")
def test_a_failure_says_whether_any_attempt_may_have_been_carried_out() -> None:
    for first in (False, True):
        backend = Backend(failed(Code.UNAVAILABLE, delivered=first), failed(Code.UNKNOWN))
        call = backend.call()
        backend.clock.advance(1)
        assert (call.code, call.error.delivered) == (Code.UNKNOWN, first)


@pytest.mark.statement("RA-22")
def test_what_an_exhausted_backend_refused_does_not_keep_a_message_from_being_sent() -> None:
    refused = failed(Code.EXHAUSTED, delivered=True)
    backend = Backend(refused, failed(Code.UNAVAILABLE))
    call = backend.call(again=False)
    spin(backend.clock, 1)
    assert (call.result, len(backend.transport.attempts)) == (ok(), 3)


# -- time


@pytest.mark.statement("RA-29")
def test_a_backend_that_asks_for_patience_gets_it() -> None:
    backend = Backend(failed(Code.EXHAUSTED, retry_after=2.0), failed(Code.UNAVAILABLE, retry_after=0.001))
    call = backend.call()
    spin(backend.clock, 2.5)
    assert backend.transport.times == [0, 2000, 2100]
    assert call.result == ok()


@pytest.mark.statement("RA-28", "RA-29")
def test_nobody_waits_for_an_attempt_that_would_come_too_late() -> None:
    backend = Backend(failed(Code.EXHAUSTED, retry_after=3.0))
    call = backend.call()
    assert call.code is Code.EXHAUSTED
    assert backend.counted() == {
        "rpc_call_total": 1,
        "rpc_error_total{resource_exhausted}": 1,
        "rpc_timeout_total": 1,
    }


def test_an_attempt_has_its_own_time_and_what_is_left_of_the_calls() -> None:
    backend = Backend(*[failed(Code.UNAVAILABLE)] * 5, rpc_request_timeout=2000)
    backend.call()
    spin(backend.clock, 3)
    within = [round(attempt.within or 0, 6) for attempt in backend.transport.attempts]
    assert within == [2.0, 2.0, 2.0, 2.0, 1.5, 0.5]


@pytest.mark.parametrize(
    ("request_timeout", "command_timeout", "within"), [(0, 0, None), (0, 500, 0.5), (700, 0, 0.7), (700, 500, 0.5)]
)
def test_times_are_milliseconds_and_0_is_no_limit(
    request_timeout: float, command_timeout: float, within: float | None
) -> None:
    backend = Backend(rpc_request_timeout=request_timeout, rpc_command_timeout=command_timeout)
    backend.call()
    assert backend.transport.attempts[0].within == within


def test_the_time_begins_with_the_turn() -> None:
    first: Deferred[RpcReply] = Deferred()
    backend = Backend(first, rpc_concurrency=1)
    backend.call()
    backend.call()
    backend.clock.advance(60)
    first.callback(ok())
    assert backend.transport.attempts[1].within == 3.0


def test_a_call_keeps_its_turn_while_it_pauses() -> None:
    backend = Backend(failed(Code.UNAVAILABLE), rpc_concurrency=1)
    first, second = backend.call(sid="1"), backend.call(sid="2")
    assert [attempt.sid for attempt in backend.transport.attempts] == ["1"]
    assert backend.metrics.value("rpc_pending_num") == 1
    backend.clock.advance(0.1)
    assert [attempt.sid for attempt in backend.transport.attempts] == ["1", "1", "2"]
    assert (first.result, second.result) == (ok(), ok())
    assert backend.metrics.value("rpc_pending_num") == 0


# -- what is counted


@pytest.mark.statement("RA-28")
@pytest.mark.parametrize("status", [RpcStatus.ERROR, 7])
def test_an_answer_that_is_an_error_is_counted_as_one(status: int) -> None:
    backend = Backend(RpcReply(status, error_msg="oops"))
    assert backend.call().result.error_msg == "oops"
    assert backend.counted() == {"rpc_call_total": 1, "rpc_error_total{error}": 1}


def test_a_refusal_is_no_error() -> None:
    backend = Backend(RpcReply(RpcStatus.FAILURE))
    backend.call()
    assert backend.counted() == {"rpc_call_total": 1}


@pytest.mark.statement("RA-28")
@pytest.mark.parametrize("code", NEVER_AGAIN)
def test_every_failure_is_counted_by_its_reason(code: Code) -> None:
    backend = Backend(failed(code))
    backend.call()
    expected = {"rpc_call_total": 1, f"rpc_error_total{{{code.value}}}": 1}
    if code is Code.TIMEOUT:
        expected["rpc_timeout_total"] = 1
    if code is Code.QUEUE_FULL:
        del expected["rpc_call_total"]  # it was not made
    assert backend.counted() == expected


def test_a_backend_without_restore_is_no_error() -> None:
    backend = Backend(failed(Code.UNIMPLEMENTED))
    assert backend.call("restore").code is Code.UNIMPLEMENTED
    assert backend.counted() == {"rpc_call_total": 1}


@pytest.mark.statement("RA-26", "RA-28")
def test_a_full_line_fails_calls_without_making_them() -> None:
    backend = Backend(Deferred(), rpc_concurrency=1, rpc_queue_size=1)
    backend.call()
    backend.call()
    assert backend.call().code is Code.QUEUE_FULL
    assert backend.counted() == {"rpc_error_total{queue_full}": 1}


@pytest.mark.statement("RA-26")
def test_the_longest_wait_is_in_milliseconds() -> None:
    backend = Backend(Deferred(), rpc_concurrency=1, rpc_queue_timeout=250)
    backend.call()
    waiting = backend.call()
    backend.clock.advance(0.249)
    assert not waiting.done
    backend.clock.advance(0.001)
    assert waiting.code is Code.QUEUE_FULL


@pytest.mark.statement("RA-28")
def test_a_cancelled_call_is_counted_as_nothing_else() -> None:
    backend = Backend(Deferred(), rpc_concurrency=1)
    running, waiting = backend.call(), backend.call()
    waiting.deferred.cancel()
    running.deferred.cancel()
    assert isinstance(running.error, CancelledError)
    assert isinstance(waiting.error, CancelledError)
    assert backend.counted() == {"rpc_canceled_total": 2}
    assert backend.call().result == ok()  # the turn is free again


def test_a_call_can_be_cancelled_in_a_pause() -> None:
    backend = Backend(failed(Code.UNAVAILABLE), rpc_concurrency=1)
    call = backend.call()
    call.deferred.cancel()
    assert backend.clock.getDelayedCalls() == []
    assert backend.counted() == {"rpc_canceled_total": 1, "rpc_retries_total": 1}
    assert backend.call().result == ok()


# -- sessions and servers that end


@pytest.mark.statement("RA-16", "RA-26")
def test_when_a_session_ends_its_waiting_calls_fail_and_its_running_one_goes_on() -> None:
    answer: Deferred[RpcReply] = Deferred()
    backend = Backend(answer, rpc_concurrency=1)
    running, waiting, goodbye = backend.call(), backend.call(), backend.call("disconnect")
    backend.caller.gone("S")
    assert waiting.code is Code.CANCELED
    assert not running.done
    assert not goodbye.done
    assert backend.counted() == {"rpc_canceled_total": 1}
    answer.callback(ok(streams=["a"]))
    assert running.result.streams == ["a"]
    assert [attempt.method for attempt in backend.transport.attempts] == ["command", "disconnect"]


@pytest.mark.statement("RA-27")
def test_a_stop_waits_for_the_calls_there_are_and_takes_no_more() -> None:
    answers: list[Deferred[RpcReply]] = [Deferred(), Deferred()]
    backend = Backend(*answers, rpc_concurrency=1)
    calls = [backend.call(), backend.call()]
    stop = Begun(backend.caller.stop())
    late = backend.call()
    assert (late.code, late.error.delivered) == (Code.CANCELED, False)
    answers[0].callback(ok())
    assert not stop.done
    answers[1].callback(ok())
    assert stop.done
    assert [call.result for call in calls] == [ok(), ok()]
    assert len(backend.transport.attempts) == 2


def test_a_stop_with_nothing_under_way_is_done_at_once() -> None:
    backend = Backend()
    backend.call()
    assert Begun(backend.caller.stop()).done


@pytest.mark.statement("RA-27")
def test_a_stop_that_is_cancelled_cancels_the_calls() -> None:
    backend = Backend(Deferred(), Deferred(), rpc_concurrency=2)
    calls = [backend.call(), backend.call(), backend.call()]
    stop = Begun(backend.caller.stop())
    stop.deferred.cancel()
    assert all(isinstance(call.error, CancelledError) for call in calls)
    assert isinstance(stop.error, CancelledError)
    assert backend.counted() == {"rpc_canceled_total": 3}
    assert len(backend.transport.attempts) == 2  # none had the turn of another


# -- the limit that adapts


@pytest.mark.statement("RA-32")
def test_with_concurrency_0_the_limit_follows_the_backend() -> None:
    backend = Backend(rpc_concurrency=0, rpc_concurrency_initial=10, rpc_concurrency_min=2, rpc_concurrency_max=20)
    waiting: list[Deferred[RpcReply]] = []

    def hold(attempt: Attempt) -> Outcome:
        waiting.append(Deferred())
        return waiting[-1]

    backend.transport.answer = hold
    for number in range(200):
        backend.call(sid=str(number))
    assert len(waiting) == backend.metrics.value("rpc_capacity_num") == backend.caller.concurrency == 10
    for answer in waiting[:10]:
        answer.callback(ok())
    assert backend.metrics.value("rpc_capacity_num") == 11
    waiting[10].errback(failed(Code.EXHAUSTED))
    assert backend.metrics.value("rpc_capacity_num") == 8


# -- all at once


@pytest.mark.statement("RA-22", "RA-26")
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_commands_are_limited_in_order_and_neither_lost_nor_repeated(seed: int) -> None:
    """200 sessions send 50 messages each, one after another, to a backend with delays and faults of every kind."""
    chance = random.Random(seed)
    clock, metrics = Clock(), Metrics()
    transport = Scripted(clock)
    caller = Caller(transport, settings(rpc_command_timeout=500), clock, metrics, jitter=chance.random)
    flying = most = 0
    carried_out: dict[str, list[int]] = defaultdict(list)
    turns: dict[str, list[int]] = defaultdict(list)

    def attempt_at(attempt: Attempt) -> Outcome:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        number = attempt.request["number"]
        if turns[attempt.sid][-1:] != [number]:
            turns[attempt.sid].append(number)
        answer: Deferred[RpcReply] = Deferred()
        clock.callLater(chance.choice([0.0, 0.002, 0.02]), finish, attempt, answer)
        return answer

    def finish(attempt: Attempt, answer: Deferred[RpcReply]) -> None:
        nonlocal flying
        flying -= 1
        fate = chance.random()
        if fate < 0.75:
            carried_out[attempt.sid].append(attempt.request["number"])
            answer.callback(ok(identifiers=f"{attempt.sid}:{attempt.request['number']}"))
        elif fate < 0.85:
            answer.errback(failed(Code.EXHAUSTED, delivered=True))
        elif fate < 0.92:
            answer.errback(failed(Code.UNAVAILABLE, delivered=False))
        else:  # carried out or not: nobody knows
            if fate < 0.96:
                carried_out[attempt.sid].append(attempt.request["number"])
            code = chance.choice([Code.UNAVAILABLE, Code.TIMEOUT, Code.UNKNOWN])
            answer.errback(failed(code, delivered=True))

    transport.answer = attempt_at
    outcomes: dict[str, list[str]] = defaultdict(list)

    async def session(sid: str) -> None:
        for number in range(50):
            try:
                reply = await caller.call("command", {"number": number}, sid, again=False)
            except CallFailed as e:
                outcomes[sid].append(e.reason.value)
            else:
                assert reply.identifiers == f"{sid}:{number}"
                outcomes[sid].append("")

    sessions = [Begun(session(str(number))) for number in range(200)]
    while not all(work.done for work in sessions):
        clock.advance(0.002)
    assert [work.result for work in sessions] == [None] * 200
    assert most == 28
    for sid, ends in outcomes.items():
        assert turns[sid] == list(range(50))  # every command was made, in the order of the session
        assert carried_out[sid] == sorted(set(carried_out[sid]))  # none twice, none out of order
        answered = {number for number, end in enumerate(ends) if not end}
        assert answered <= set(carried_out[sid])
    ends = [end for sid in outcomes for end in outcomes[sid]]
    assert len(ends) == metrics.value("rpc_call_total") == 10_000
    assert metrics.value("rpc_error_total") == sum(1 for end in ends if end)
    assert metrics.value("rpc_retries_total") == len(transport.attempts) - 10_000
    assert (metrics.value("rpc_pending_num"), flying, clock.getDelayedCalls()) == (0, 0, [])
