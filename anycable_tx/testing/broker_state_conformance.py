"""The part of the broker conformance suite about sessions and presence."""

from __future__ import annotations

import pytest

from anycable_tx.cable.messages import Member
from anycable_tx.errors import PresenceRefused
from anycable_tx.testing.broker_bench import BrokerTests

__all__ = ["PresenceConformance", "SessionConformance"]


class SessionConformance(BrokerTests):
    """The guarantees of the session store, one test each."""

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

    def test_the_end_of_a_released_session_is_told_once_when_its_time_is_over(self) -> None:
        made = self.make()
        self.run(made.broker.save_session("a", "user-1", b"record"))
        self.advance(100)
        assert self.run(made.broker.release_session("a", b"last")) is True
        self.advance(28)
        assert made.node.ended == []
        self.advance(4)
        assert made.node.ended == [("a", b"last")]
        self.advance(60)
        assert made.node.ended == [("a", b"last")]

    def test_a_session_that_goes_on_in_its_heir_ends_with_the_heir(self) -> None:
        made = self.make()
        self.run(made.broker.save_session("a", "user-1", b"record"))
        self.run(made.broker.release_session("a", b"last"))
        self.run(made.broker.claim_session("a", "b"))
        self.run(made.broker.save_session("b", "user-1", b"record of b", "a"))
        self.advance(100)
        assert made.node.ended == []
        self.run(made.broker.release_session("b", b"last of b"))
        self.advance(32)
        assert made.node.ended == [("b", b"last of b")]

    def test_a_session_whose_heir_came_to_nothing_ends_in_its_own_time(self) -> None:
        made = self.make()
        self.run(made.broker.save_session("a", "user-1", b"record"))
        self.run(made.broker.release_session("a", b"last"))
        self.run(made.broker.claim_session("a", "b"))
        self.advance(32)
        assert made.node.ended == [("a", b"last")]

    def test_the_end_of_a_forgotten_session_is_told_to_nobody_and_it_is_not_released(self) -> None:
        made = self.make()
        self.run(made.broker.save_session("a", "user-1", b"record"))
        self.run(made.broker.release_session("a", b"last"))
        self.run(made.broker.forget_session("a"))
        assert self.run(made.broker.release_session("a", b"last")) is False
        assert self.run(made.broker.release_session("never saved", b"last")) is False
        self.advance(100)
        assert made.node.ended == []

    def test_forgetting_all_sessions_of_some_identifiers_tells_the_end_of_those_that_are_not_connected(self) -> None:
        made = self.make()
        for sid, identifiers in (("a", "user-1"), ("b", "user-1"), ("c", "user-2")):
            self.run(made.broker.save_session(sid, identifiers, b"record"))
            if sid != "b":
                self.run(made.broker.release_session(sid, b"last"))
        assert self.run(made.broker.forget_sessions("user-1")) == 2
        assert made.node.ended == [("a", b"last")]
        assert self.run(made.broker.release_session("b", b"last")) is False

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


class PresenceConformance(BrokerTests):
    """The guarantees of the presence store, one test each."""

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
