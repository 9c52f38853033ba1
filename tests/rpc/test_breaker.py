"""When calls are held back, and when they are tried again."""

from __future__ import annotations

import pytest

from anycable_tx.rpc.breaker import Breaker

pytestmark = pytest.mark.statement("RA-29")


def spend(breaker: Breaker, results: str, now: float = 0.0) -> bool:
    """Calls one after the other, ``+`` answered and ``-`` not; says whether the last one opened the breaker."""
    opened = False
    for result in results:
        admitted = breaker.admit(now)
        assert admitted is not None
        if result == "+":
            breaker.succeeded(admitted, now)
        else:
            opened = breaker.failed(admitted, now)
    return opened


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert spend(breaker, "-" * 10, now)
    return breaker


def test_it_opens_at_ten_results_of_which_eight_failed():
    breaker = Breaker()
    assert not spend(breaker, "++-------")
    assert spend(breaker, "-")
    assert breaker.admit(0.0) is None
    assert breaker.open_for(1.0) == 4.0


def test_nine_failures_are_not_enough():
    breaker = Breaker()
    assert not spend(breaker, "-" * 9)
    assert breaker.open_for(0.0) == 0


def test_more_than_a_fifth_of_successes_keeps_it_closed():
    breaker = Breaker()
    assert not spend(breaker, "+++---------")
    assert breaker.admit(0.0) is not None


def test_each_ten_seconds_are_counted_for_themselves():
    breaker = Breaker()
    spend(breaker, "-" * 9, 0.0)
    assert not spend(breaker, "-" * 9, 10.0)
    assert spend(breaker, "-", 19.9)


def test_a_result_counts_only_in_the_period_of_its_call():
    breaker = Breaker()
    late = breaker.admit(0.0)
    assert late is not None
    spend(breaker, "-" * 9, 10.0)
    assert not breaker.failed(late, 10.0)
    assert breaker.open_for(10.0) == 0


def test_after_five_seconds_five_calls_are_tried():
    breaker = opened()
    assert breaker.admit(4.9) is None
    assert None not in [breaker.admit(5.0) for _ in range(5)]
    assert breaker.admit(5.0) is None
    assert breaker.open_for(5.0) == 0


def test_five_answers_in_a_row_close_it():
    breaker = opened()
    assert not spend(breaker, "+++++", 5.0)
    assert not spend(breaker, "-" * 9, 5.0)
    assert spend(breaker, "-", 5.0)


def test_one_failure_on_trial_opens_it_again():
    breaker = opened()
    assert spend(breaker, "++++-", 6.0)
    assert breaker.open_for(6.0) == 5.0


def test_what_began_before_it_opened_says_nothing_about_the_trials():
    breaker = Breaker()
    early = [breaker.admit(0.0) for _ in range(6)]
    spend(breaker, "-" * 10)
    trial = breaker.admit(5.0)
    assert trial is not None
    for admitted in early:
        assert admitted is not None
        assert not breaker.failed(admitted, 5.0)
    assert spend(breaker, "++++", 5.0) is False
    breaker.succeeded(trial, 5.0)
    assert None not in [breaker.admit(5.0) for _ in range(6)]


def test_a_trial_that_was_given_up_makes_room_for_another():
    breaker = opened()
    trials = [breaker.admit(5.0) for _ in range(5)]
    assert breaker.admit(5.0) is None
    assert trials[0] is not None
    breaker.dropped(trials[0])
    assert breaker.admit(5.0) is not None
