"""The deadline queue hands out what is due, and nothing else costs anything."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.cable.expiry import DeadlineQueue


def test_a_key_comes_once_its_deadline_has_passed_and_only_once():
    queue = DeadlineQueue()
    queue.add("a", 10.5)
    assert list(queue.due(10)) == []
    assert list(queue.due(10.9)) == []
    assert list(queue.due(11)) == ["a"]
    assert list(queue.due(12)) == []


def test_a_key_on_a_whole_second_comes_in_that_second():
    queue = DeadlineQueue()
    queue.add("a", 10)
    assert list(queue.due(9.999)) == []
    assert list(queue.due(10)) == ["a"]


def test_keys_come_second_by_second():
    queue = DeadlineQueue()
    for deadline in (7, 3, 5):
        queue.add(deadline, deadline)
    assert list(queue.due(100)) == [3, 5, 7]


def test_a_key_added_again_during_a_walk_waits_for_the_next():
    queue = DeadlineQueue()
    queue.add("a", 1)
    walked = []
    for key in queue.due(5):
        walked.append(key)
        queue.add(key, 1)
    assert walked == ["a"]
    assert list(queue.due(5.9)) == []
    assert list(queue.due(6)) == ["a"]


def test_a_walk_that_is_broken_off_loses_nothing():
    queue = DeadlineQueue()
    for key in "abc":
        queue.add(key, 1)
    first = next(queue.due(5))
    assert sorted([first, *queue.due(5)]) == ["a", "b", "c"]
    assert len(queue) == 0


def test_a_long_pause_is_not_walked_second_by_second():
    queue = DeadlineQueue()
    queue.add("a", 10**15)
    queue.add("b", 5)
    assert list(queue.due(10**14)) == ["b"]
    assert len(queue) == 1


def test_an_entry_takes_about_nine_bytes():
    keys = [str(n) for n in range(20_000)]
    tracemalloc.start()
    queue = DeadlineQueue()
    for number, key in enumerate(keys):
        queue.add(key, number % 300)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / len(keys) < 16


@given(st.lists(st.floats(0, 50), max_size=30), st.lists(st.floats(0, 10), max_size=10))
def test_nothing_comes_early_or_more_than_a_second_late(deadlines, steps):
    queue = DeadlineQueue()
    for key, deadline in enumerate(deadlines):
        queue.add(key, deadline)
    now, waiting = 0.0, dict(enumerate(deadlines))
    for step in steps:
        now += step
        for key in queue.due(now):
            assert waiting.pop(key) <= now
        assert all(deadline > now - 1 for deadline in waiting.values())
