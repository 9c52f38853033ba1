"""The node's place in a stream: what may be handed on, what is dropped, when a hole is read from the broker."""

from __future__ import annotations

import pytest

from anycable_tx.cable.messages import Position, StreamMessage
from anycable_tx.cable.positions import StreamPosition, Verdict

DELIVER, DROP, HEAL, RESET = Verdict.DELIVER, Verdict.DROP, Verdict.HEAL, Verdict.RESET


def stored(offset: int, prev: int | None = None, epoch: str = "E") -> StreamMessage:
    return StreamMessage("a", b"1", offset, offset - 1 if prev is None else prev, epoch)


def opened(last: int = 5, epoch: str = "E") -> StreamPosition:
    position = StreamPosition()
    position.open(Position(epoch, last))
    return position


def test_it_starts_at_the_tail():
    assert opened(5).position == Position("E", 5)


def test_it_starts_nowhere_without_a_log():
    position = StreamPosition()
    assert not position.open(None)
    assert position.position == Position("", 0)


def test_a_message_that_links_is_handed_on():
    position = opened(5)
    assert position.arrived(stored(6)) is DELIVER
    assert position.position == Position("E", 6)


def test_offsets_need_not_be_consecutive():
    assert opened(5).arrived(stored(9, prev=5)) is DELIVER


def test_a_transient_message_is_handed_on_and_moves_nothing():
    position = opened(5)
    assert position.arrived(StreamMessage("a", b"1")) is DELIVER
    assert position.position == Position("E", 5)


def test_the_first_message_of_a_stream_links():
    assert opened(0).arrived(stored(1, prev=0)) is DELIVER


def test_an_old_message_is_dropped():
    position = opened(5)
    assert [position.arrived(stored(n)) for n in (5, 3, 1)] == [DROP] * 3


def test_a_repeated_message_is_dropped():
    position = opened(5)
    assert position.arrived(stored(6)) is DELIVER
    assert position.arrived(stored(6)) is DROP


def test_a_hole_is_read_from_the_broker_and_the_message_with_it():
    position = opened(5)
    assert position.arrived(stored(8)) is HEAL
    assert position.position == Position("E", 5)
    assert position.arrived(stored(9)) is DROP
    assert [position.fetched(stored(n)) for n in (6, 7, 8)] == [True] * 3
    assert not position.healed(Position("E", 8)), "9 is known to exist"
    assert position.fetched(stored(9))
    assert position.healed(Position("E", 9))
    assert position.arrived(stored(10)) is DELIVER


def test_what_was_fetched_is_handed_on_once():
    position = opened(5)
    position.arrived(stored(8))
    assert position.fetched(stored(6))
    assert not position.fetched(stored(6))
    assert not position.fetched(stored(5))


def test_a_message_of_another_epoch_is_not_fetched_into_this_one():
    assert not opened(5).fetched(stored(6, epoch="F"))


def test_reordered_messages_are_all_in_the_store():
    position = opened(5)
    assert position.arrived(stored(7)) is HEAL
    assert position.arrived(stored(6)) is DROP
    assert [position.fetched(stored(n)) for n in (6, 7)] == [True, True]
    assert position.healed(Position("E", 7))


def test_a_message_before_opening_is_known_to_exist():
    position = StreamPosition()
    assert position.arrived(stored(7)) is DROP
    assert position.open(Position("E", 5)), "7 is still to be read"


def test_a_message_before_opening_that_the_tail_has_is_done():
    position = StreamPosition()
    assert position.arrived(stored(5)) is DROP
    position.open(Position("E", 5))
    assert position.healed(Position("E", 5))
    assert position.arrived(stored(6)) is DELIVER


def test_a_new_epoch_is_followed_at_once():
    position = opened(5)
    assert position.arrived(stored(1, prev=0, epoch="F")) is RESET
    assert position.position == Position("F", 1)
    assert position.arrived(stored(2, epoch="F")) is DELIVER


def test_a_new_epoch_while_healing_is_not_overlooked():
    position = opened(5)
    assert position.arrived(stored(7)) is HEAL
    assert position.arrived(stored(1, prev=0, epoch="F")) is DROP
    assert not position.healed(Position("E", 7)), "the broker may have begun a new epoch meanwhile: read again"


def test_a_straggler_of_the_epoch_before_does_not_keep_it_healing():
    position = opened(5, "F")
    assert position.arrived(stored(7, epoch="F")) is HEAL
    assert position.arrived(stored(500, epoch="E")) is DROP
    position.healed(Position("F", 7))
    assert position.healed(Position("F", 7))
    assert position.position == Position("F", 7)


def test_a_store_that_fell_back_is_looked_at():
    assert opened(5).arrived(stored(6, prev=3)) is HEAL


def test_one_suspicion_is_enough():
    position = opened(5)
    assert position.suspect() is HEAL
    assert position.suspect() is DROP
    assert position.healed(Position("E", 5))


@pytest.mark.statement("CP-82")
@pytest.mark.parametrize("tail", [Position("E", 9), Position("F", 2), Position("E", 3), None])
def test_it_goes_on_after_what_is_lost(tail):
    position = opened(5)
    position.arrived(stored(8))
    position.unhealed(tail)
    assert position.position == (tail if tail in (("E", 9), ("F", 2)) else Position("E", 8))
    last = position.last
    assert position.arrived(stored(last + 1, epoch=position.epoch)) is DELIVER
