"""What every broker must do, as tests that any broker can run against itself.

Mix ``BrokerConformance`` into a pytest class and supply ``make`` and ``advance``::

    class TestMine(BrokerConformance):
        def make(self, **settings): ...
        def advance(self, seconds): ...

Offsets are only expected to grow; they need not be contiguous. The marker ``statement(*ids)`` names the numbered
statements that a test shows; declare it in the ``markers`` of your own pytest settings.
"""

from __future__ import annotations

import pytest

from anycable_tx.cable.messages import HistoryRequest, Position, Receipt
from anycable_tx.testing.broker_bench import SETTINGS, Bench, BrokerTests
from anycable_tx.testing.broker_state_conformance import PresenceConformance, SessionConformance

__all__ = ["SETTINGS", "Bench", "BrokerConformance"]


class LogConformance(BrokerTests):
    """The guarantees of the stream log, one test each."""

    def test_offsets_grow_within_one_epoch(self) -> None:
        positions = self.fill(self.make(), 8)
        offsets = [position.offset for position in positions]
        assert offsets == sorted(set(offsets))
        assert len({position.epoch for position in positions}) == 1

    def test_the_first_position_of_a_stream_has_offset_0(self) -> None:
        assert self.tail(self.make()).offset == 0

    def test_the_tail_is_the_newest_receipt(self) -> None:
        bench = self.make()
        assert self.fill(bench, 3)[-1] == self.tail(bench)

    def test_the_bus_gets_every_stored_message_linked_to_the_one_before(self) -> None:
        bench = self.make()
        positions = self.fill(bench, 3)
        assert [Position(m.epoch, m.offset) for m in bench.messages] == positions[1:]
        assert [m.prev for m in bench.messages] == [p.offset for p in positions[:-1]]
        assert [m.payload for m in bench.messages] == [b"0", b"1", b"2"]

    def test_what_is_acknowledged_is_in_the_history(self) -> None:
        bench = self.make()
        position = self.tail(bench)
        self.publish(bench, text='"stored"')
        assert self.history(bench, position) == ['"stored"']

    @pytest.mark.statement("BR-50")
    def test_the_history_keeps_what_the_publisher_asked_for(self) -> None:
        bench = self.make()
        position = self.tail(bench)
        self.publish(bench, exclude_socket="sid-1", broadcast_type="typing", id="p-1")
        (message,) = self.run(bench.broker.history("chat", HistoryRequest(position))).messages
        assert (message.exclude_socket, message.broadcast_type, message.id) == ("sid-1", "typing", "p-1")
        assert (bench.messages[0].exclude_socket, bench.messages[0].broadcast_type) == ("sid-1", "typing")

    @pytest.mark.statement("CP-60", "CP-61", "CP-67", "BR-43")
    def test_every_position_within_the_limit_gets_what_follows_it(self) -> None:
        bench = self.make()
        for number, position in enumerate(self.fill(bench, 5)):
            assert self.history(bench, position) == [str(n) for n in range(number, 5)]

    @pytest.mark.statement("CP-64", "CP-65", "CP-81", "BR-45", "BR-46")
    def test_who_missed_exactly_the_limit_is_served_and_one_more_is_refused(self) -> None:
        bench = self.make()
        positions = self.fill(bench, 9)
        assert self.history(bench, positions[4]) == ["4", "5", "6", "7", "8"]
        assert self.refusal(bench, positions[3]) == "trimmed"

    @pytest.mark.statement("CP-62", "BR-43")
    def test_an_unknown_epoch_is_refused(self) -> None:
        bench = self.make()
        position = self.fill(bench, 2)[-1]
        assert self.refusal(bench, Position("another", position.offset)) == "unknown_epoch"
        assert self.refusal(bench, Position("another", 0)) == "unknown_epoch"

    @pytest.mark.statement("CP-63", "BR-43")
    def test_an_offset_that_was_never_issued_is_refused(self) -> None:
        bench = self.make()
        epoch, offset = self.fill(bench, 2)[-1]
        assert self.refusal(bench, Position(epoch, offset + 1)) == "future_offset"
        assert self.refusal(bench, Position(epoch, 2**63)) == "future_offset"
        assert self.refusal(bench, Position(epoch, 1), stream="unpublished") == "future_offset"

    @pytest.mark.statement("CP-67", "CP-71", "BR-44")
    def test_a_stream_nobody_published_to_is_whole(self) -> None:
        bench = self.make()
        assert self.history(bench, self.tail(bench)) == []
        assert self.history(bench, None, int(self.wall()) - 1000) == []

    @pytest.mark.statement("CP-66", "CP-81", "BR-45")
    def test_messages_that_are_too_old_are_not_served_and_their_absence_is_told(self) -> None:
        bench = self.make()
        positions = self.fill(bench, 2)
        self.advance(50)
        positions += self.fill(bench, 1)[1:]
        self.advance(20)
        assert self.refusal(bench, positions[0]) == "expired"
        assert self.refusal(bench, positions[1]) == "expired"
        assert self.history(bench, positions[2]) == ["0"]

    @pytest.mark.statement("CP-66", "BR-47")
    def test_who_has_everything_is_whole_however_long_the_stream_was_idle(self) -> None:
        bench = self.make()
        positions = self.fill(bench, 3)
        for idle in (61, 200, 400, 2000):
            self.advance(idle)
            assert self.history(bench, positions[-1]) == []
            assert self.refusal(bench, positions[0]) in ("expired", "trimmed")

    @pytest.mark.statement("CP-79")
    def test_offsets_go_on_after_any_idle_time(self) -> None:
        bench = self.make()
        position = self.fill(bench, 3)[-1]
        self.advance(5000)
        receipt = self.publish(bench, text='"later"')
        assert receipt.epoch != position.epoch or receipt.offset > position.offset
        if receipt.epoch == position.epoch:
            assert self.history(bench, position) == ['"later"']

    @pytest.mark.statement("CP-70", "BR-44")
    def test_since_is_inclusive_and_in_whole_seconds(self) -> None:
        bench = self.make()
        times = []
        for text in ("0", "1", "2"):
            times.append(int(self.wall()))
            self.publish(bench, text=text)
            self.advance(2)
        assert self.history(bench, None, times[0]) == ["0", "1", "2"]
        assert self.history(bench, None, times[1]) == ["1", "2"]
        assert self.history(bench, None, times[1] + 1) == ["2"]

    @pytest.mark.statement("CP-72")
    def test_since_is_refused_when_something_newer_was_discarded(self) -> None:
        bench = self.make()
        start = int(self.wall())
        self.publish(bench, text='"gone"')
        self.advance(2)
        self.fill(bench, 5)
        assert self.refusal(bench, None, start) == "trimmed"
        assert self.history(bench, None, start + 1) == ["0", "1", "2", "3", "4"]
        self.advance(65)
        assert self.refusal(bench, None, start + 2) == "expired"
        assert self.history(bench, None, start + 30) == []

    @pytest.mark.statement("CP-71")
    def test_since_in_the_future_replays_nothing_that_is_older_than_now(self) -> None:
        bench = self.make()
        self.publish(bench)
        self.advance(2)
        assert self.history(bench, None, int(self.wall()) + 3600) == []

    @pytest.mark.statement("CP-78")
    def test_a_transient_message_goes_to_the_bus_only(self) -> None:
        bench = self.make()
        position = self.tail(bench)
        assert self.publish(bench, transient=True).offset == 0
        assert [m.offset for m in bench.messages] == [0]
        assert self.tail(bench) == position
        assert self.history(bench, position) == []

    @pytest.mark.statement("CP-80", "BR-48")
    def test_with_a_limit_of_0_every_message_goes_to_the_bus_only(self) -> None:
        bench = self.make(history_limit=0)
        assert self.publish(bench).offset == 0
        assert [m.offset for m in bench.messages] == [0]
        assert self.history(bench, None, int(self.wall()) - 1) == []

    @pytest.mark.statement("BR-70")
    def test_rules_give_streams_their_own_limits(self) -> None:
        bench = self.make(
            broker_rules=(
                {"match": "room/*", "class": "room", "history_limit": 8},
                {"match": "typing:*", "class": "default", "history_limit": 0},
            )
        )
        for stream, served in (("room/1", 8), ("room/1/2", 5), ("chat", 5)):
            positions = self.fill(bench, 10, stream)
            assert len(self.history(bench, positions[-1 - served], stream=stream)) == served
            assert self.refusal(bench, positions[-2 - served], stream=stream) == "trimmed"
        assert self.publish(bench, "typing:1").offset == 0

    def test_streams_do_not_see_each_other(self) -> None:
        bench = self.make()
        one = self.tail(bench, "one")
        self.fill(bench, 4, "two")
        assert self.history(bench, one, stream="one") == []

    # -- publications' ids

    def test_an_id_stores_and_delivers_once(self) -> None:
        bench = self.make()
        position = self.tail(bench)
        first = self.publish(bench, id="p-1")
        self.publish(bench)
        again = self.publish(bench, id="p-1")
        assert not first.duplicate
        assert again == Receipt(first.offset, first.epoch, duplicate=True)
        assert len(bench.messages) == 2
        assert len(self.history(bench, position)) == 2

    def test_an_id_belongs_to_its_stream(self) -> None:
        bench = self.make()
        self.publish(bench, "one", id="p-1")
        assert not self.publish(bench, "two", id="p-1").duplicate

    @pytest.mark.statement("F57")
    def test_an_id_is_remembered_for_its_time_only(self) -> None:
        bench = self.make()
        first = self.publish(bench, id="p-1")
        self.advance(18)
        assert self.publish(bench, id="p-1").duplicate
        self.advance(4)
        later = self.publish(bench, id="p-1")
        assert not later.duplicate
        assert later.offset > first.offset

    def test_messages_without_an_id_are_never_duplicates(self) -> None:
        bench = self.make()
        assert not any(self.publish(bench).duplicate for _ in range(3))


class BrokerConformance(LogConformance, SessionConformance, PresenceConformance):
    """All guarantees of ``IBroker``."""
