"""What every broker must do, as tests that any broker can run against itself.

Mix ``BrokerConformance`` into a pytest class and supply ``make`` and ``advance``::

    class TestMine(BrokerConformance):
        def make(self, **settings): ...
        def advance(self, seconds): ...

Offsets are only expected to grow; they need not be contiguous. The marker ``statement(*ids)`` names the numbered
statements that a test shows; declare it in the ``markers`` of your own pytest settings.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import pytest

from anycable_tx.cable.messages import (
    History,
    HistoryRequest,
    Member,
    Position,
    Publication,
    Receipt,
    StreamMessage,
)
from anycable_tx.errors import HistoryRefused, PresenceRefused
from anycable_tx.testing.fakes import RecordingNode
from anycable_tx.testing.sync import result_of

__all__ = ["SETTINGS", "Bench", "BrokerConformance"]

T = TypeVar("T")

#: What ``make`` is to configure, unless a test asks for something else. Times are in seconds.
SETTINGS: dict[str, Any] = {
    "history_limit": 5,
    "history_ttl": 60.0,
    "history_since_slack": 0.0,
    "sessions_ttl": 30.0,
    "presence_ttl": 10.0,
    "idempotency_ttl": 20.0,
    "broker_rules": (),
    "broker_snapshot": "",
}


class Bench(NamedTuple):
    """A started broker (IBroker), the node it was given, and the messages it handed to the bus so far."""

    broker: Any
    node: RecordingNode
    messages: list[StreamMessage]


class BrokerConformance:
    """The guarantees of ``IBroker``, one test each."""

    def make(self, **settings: Any) -> Bench:
        """A new, empty, started broker with ``SETTINGS`` changed by *settings*."""
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        """Let time pass, and the broker do what it does meanwhile."""
        raise NotImplementedError

    def run(self, awaitable: Awaitable[T]) -> T:
        """The result of *awaitable*; override it for a broker that needs a reactor."""
        return result_of(awaitable)

    def wall(self) -> float:
        """The Unix time messages are stamped with."""
        return time.time()

    # -- words the tests are written in

    def publish(self, bench: Bench, stream: str = "chat", text: str = "{}", **fields: Any) -> Receipt:
        """Publish one message."""
        receipt: Receipt = self.run(bench.broker.publish(Publication(stream, text.encode(), **fields)))
        return receipt

    def fill(self, bench: Bench, count: int, stream: str = "chat") -> list[Position]:
        """Publish *count* messages 0, 1, ...; answers the position before the first and those of each."""
        positions = [self.tail(bench, stream)]
        for number in range(count):
            receipt = self.publish(bench, stream, str(number))
            positions.append(Position(receipt.epoch, receipt.offset))
        return positions

    def tail(self, bench: Bench, stream: str = "chat") -> Position:
        """The newest position of *stream*."""
        tail = self.run(bench.broker.tail(stream))
        assert isinstance(tail, Position)
        return tail

    def history(self, bench: Bench, position: Position | None, since: int = 0, stream: str = "chat") -> list[str]:
        """The texts a client with *position*, or with *since*, gets. Checks order and ``top`` by the way."""
        history: History = self.run(bench.broker.history(stream, HistoryRequest(position, since)))
        offsets = [message.offset for message in history.messages]
        assert offsets == sorted(set(offsets))
        assert history.top == self.tail(bench, stream)
        assert all(message.epoch == history.top.epoch for message in history.messages)
        return [message.payload.decode() for message in history.messages]

    def refusal(self, bench: Bench, position: Position | None, since: int = 0, stream: str = "chat") -> str:
        """Why the history is refused."""
        with pytest.raises(HistoryRefused) as refused:
            self.history(bench, position, since, stream)
        return refused.value.reason

    def join(self, bench: Bench, sid: str, id: str, info: Any = None, stream: str = "room") -> bool:
        """Join a presence stream."""
        changed: bool = self.run(bench.broker.join(stream, sid, id, info))
        return changed

    def ids(self, bench: Bench, stream: str = "room") -> list[str]:
        """The ids present on *stream*."""
        return sorted(member.id for member in self.run(bench.broker.members(stream)))

    # -- the stream log

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

    # -- the session store

    @pytest.mark.statement("CP-95")
    def test_a_connected_session_stays_claimable(self) -> None:
        broker = self.make().broker
        self.run(broker.save_session("a", "user-1", b"record"))
        self.advance(300)
        assert self.run(broker.claim_session("a", "b")) == (b"record", "")

    def test_the_newest_record_is_claimed(self) -> None:
        broker = self.make().broker
        self.run(broker.save_session("a", "user-1", b"old"))
        self.run(broker.save_session("a", "user-1", b"new"))
        claim = self.run(broker.claim_session("a", "b"))
        assert claim is not None
        assert claim.record == b"new"
        self.run(broker.release_session("a", b"last"))
        claim = self.run(broker.claim_session("a", "c"))
        assert claim is not None
        assert claim.record == b"last"

    @pytest.mark.statement("CP-93", "CP-95", "BR-51")
    def test_a_released_session_is_claimable_for_its_time_and_not_longer(self) -> None:
        broker = self.make().broker
        self.run(broker.save_session("a", "user-1", b"record"))
        self.advance(100)
        self.run(broker.release_session("a", b"last"))
        self.advance(28)
        assert self.run(broker.claim_session("a", "b")) is not None
        self.advance(4)
        assert self.run(broker.claim_session("a", "c")) is None

    @pytest.mark.statement("CP-104")
    def test_each_claim_names_the_heir_before_it(self) -> None:
        broker = self.make().broker
        self.run(broker.save_session("a", "user-1", b"record"))
        rivals = [self.run(broker.claim_session("a", heir)).rival for heir in ("b", "c", "d")]
        assert rivals == ["", "b", "c"]

    @pytest.mark.statement("CP-106")
    def test_heirs_can_be_claimed_in_their_turn(self) -> None:
        broker = self.make().broker
        for sid, heir in (("a", "b"), ("b", "c"), ("c", "d")):
            self.run(broker.save_session(sid, "user-1", sid.encode()))
            self.run(broker.release_session(sid, sid.encode()))
            assert self.run(broker.claim_session(sid, heir)) == (sid.encode(), "")

    @pytest.mark.statement("CP-93")
    def test_an_unknown_session_cannot_be_claimed(self) -> None:
        broker = self.make().broker
        assert self.run(broker.claim_session("nobody", "b")) is None
        assert self.run(broker.claim_session("", "b")) is None

    def test_a_forgotten_session_cannot_be_claimed_nor_brought_back_by_its_end(self) -> None:
        broker = self.make().broker
        self.run(broker.save_session("a", "user-1", b"record"))
        self.run(broker.forget_session("a"))
        assert self.run(broker.claim_session("a", "b")) is None
        self.run(broker.release_session("a", b"last"))
        assert self.run(broker.claim_session("a", "b")) is None
        self.run(broker.forget_session("a"))

    @pytest.mark.statement("CP-102")
    def test_all_sessions_of_some_identifiers_are_forgotten(self) -> None:
        broker = self.make().broker
        for sid, identifiers in (("a", "user-1"), ("b", "user-1"), ("c", "user-1"), ("d", "user-2")):
            self.run(broker.save_session(sid, identifiers, b"record"))
        self.run(broker.release_session("b", b"record"))
        assert self.run(broker.forget_sessions("user-1")) == 3
        assert self.run(broker.forget_sessions("user-1")) == 0
        for sid in "abc":
            assert self.run(broker.claim_session(sid, "e")) is None
        assert self.run(broker.claim_session("d", "e")) is not None

    @pytest.mark.statement("CP-94", "BR-51")
    def test_with_a_ttl_of_0_no_session_is_kept(self) -> None:
        broker = self.make(sessions_ttl=0.0).broker
        self.run(broker.save_session("a", "user-1", b"record"))
        assert self.run(broker.claim_session("a", "b")) is None
        self.run(broker.release_session("a", b"record"))
        assert self.run(broker.claim_session("a", "b")) is None

    # -- presence

    @pytest.mark.statement("CP-111", "BR-52")
    def test_the_first_session_of_an_id_changes_the_list_and_the_second_does_not(self) -> None:
        bench = self.make()
        assert self.join(bench, "a", "alice", {"n": 1})
        assert not self.join(bench, "b", "alice", {"n": 1})
        assert not self.join(bench, "a", "alice", {"n": 1})
        assert self.run(bench.broker.members("room")) == [Member("alice", {"n": 1})]

    def test_other_info_changes_the_list(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice", {"n": 1})
        assert self.join(bench, "a", "alice", {"n": 2})
        assert self.join(bench, "b", "alice", {"n": 3})
        assert self.run(bench.broker.members("room")) == [Member("alice", {"n": 3})]

    @pytest.mark.statement("CP-119", "BR-52")
    def test_a_second_id_for_one_session_is_refused_and_the_first_stays(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        with pytest.raises(PresenceRefused):
            self.join(bench, "a", "bob")
        assert self.ids(bench) == ["alice"]
        assert self.join(bench, "a", "bob", stream="another room")

    @pytest.mark.statement("CP-111", "BR-52")
    def test_the_last_session_to_leave_is_told(self) -> None:
        bench = self.make()
        for sid in "abc":
            self.join(bench, sid, "alice")
        left = [self.run(bench.broker.leave("room", sid)) for sid in ("a", "b", "b", "nobody", "c")]
        assert left == [None, None, None, None, "alice"]
        assert self.ids(bench) == []

    @pytest.mark.statement("CP-117", "BR-54")
    def test_a_connected_session_stays_present(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.advance(100)
        assert self.ids(bench) == ["alice"]
        assert bench.node.expired == []

    @pytest.mark.statement("CP-112", "BR-52")
    def test_a_released_session_is_gone_after_its_time_and_that_is_told_once(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.join(bench, "a", "alice", stream="hall")
        self.run(bench.broker.release_presence("a"))
        self.advance(8)
        assert self.ids(bench) == ["alice"]
        assert bench.node.expired == []
        self.advance(4)
        assert self.ids(bench) == []
        assert sorted(bench.node.expired) == [("hall", "alice"), ("room", "alice")]
        self.advance(30)
        assert len(bench.node.expired) == 2

    def test_only_the_last_session_of_an_id_is_told_to_be_gone(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.join(bench, "b", "alice")
        self.run(bench.broker.release_presence("a"))
        self.advance(20)
        assert bench.node.expired == []
        assert self.run(bench.broker.leave("room", "b")) == "alice"

    @pytest.mark.statement("CP-113", "BR-52")
    def test_who_joins_again_in_time_was_never_gone(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.run(bench.broker.release_presence("a"))
        self.advance(8)
        assert not self.join(bench, "b", "alice")
        self.advance(60)
        assert self.ids(bench) == ["alice"]
        assert bench.node.expired == []

    def test_the_same_session_that_joins_again_in_time_stays(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.run(bench.broker.release_presence("a"))
        self.advance(8)
        assert not self.join(bench, "a", "alice")
        self.advance(60)
        assert self.ids(bench) == ["alice"]
        assert bench.node.expired == []

    @pytest.mark.statement("CP-113", "CP-118")
    def test_a_resumed_session_takes_its_presence_along_without_an_event(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.join(bench, "a", "alice", stream="hall")
        self.run(bench.broker.release_presence("a"))
        self.advance(8)
        assert self.run(bench.broker.move_presence("a", "b")) == {"room": "alice", "hall": "alice"}
        self.advance(60)
        assert self.ids(bench) == ["alice"]
        assert bench.node.expired == []
        assert self.run(bench.broker.leave("room", "a")) is None
        assert self.run(bench.broker.leave("room", "b")) == "alice"

    def test_a_move_onto_the_same_id_leaves_one_session(self) -> None:
        bench = self.make()
        self.join(bench, "a", "alice")
        self.join(bench, "b", "alice")
        assert self.run(bench.broker.move_presence("a", "b")) == {"room": "alice"}
        assert self.run(bench.broker.leave("room", "b")) == "alice"

    def test_whoever_was_not_present_moves_nothing(self) -> None:
        assert self.run(self.make().broker.move_presence("a", "b")) == {}

    def test_nobody_is_present_on_an_unknown_stream(self) -> None:
        assert self.ids(self.make()) == []
