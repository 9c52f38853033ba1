"""Presence in NATS, shared by nodes that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.brokers.nats_nodes import LEASE
from anycable_tx.brokers.nats_presence import Presence
from anycable_tx.cable.messages import Member
from anycable_tx.errors import BrokerUnavailable, PresenceRefused
from anycable_tx.nats.api import NatsUnavailable
from anycable_tx.testing.nats_servers import NatsServer
from tests.brokers.nats_support import Brokers, Made, on_all_servers


def expired(*nodes: Made) -> list[tuple[str, str]]:
    return [each for node in nodes for each in node.node.expired]


def presence(made: Made) -> Presence:
    return made.broker._presence


def keys(bench: Brokers, made: Made) -> list[str]:
    """Everything in the bucket, what is left of deleted keys too."""
    page, _ = bench.run(presence(made)._bucket.page(">", 1))
    return [key for key, _ in page]


def join(bench: Brokers, made: Made, sid: str, id: str, info: Any = None, stream: str = "room") -> bool:
    changed: bool = bench.run(made.broker.join(stream, sid, id, info))
    return changed


def leave(bench: Brokers, made: Made, sid: str, stream: str = "room") -> str | None:
    left: str | None = bench.run(made.broker.leave(stream, sid))
    return left


def ids(bench: Brokers, made: Made) -> list[str]:
    return sorted(member.id for member in bench.run(made.broker.members("room")))


def begin(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


# -- joins and leaves


@on_all_servers
@pytest.mark.statement("BR-53", "BR-54")
def test_two_sessions_that_leave_on_two_nodes_are_one_leave(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    assert join(bench, one, "a", "alice", {"n": 1})
    assert not join(bench, other, "b", "alice", {"n": 1})
    assert bench.run(other.broker.members("room")) == [Member("alice", {"n": 1})]
    assert [leave(bench, one, "a"), leave(bench, other, "b")] == [None, "alice"]
    bench.advance(60)
    assert expired(*pair) == []
    assert keys(bench, one) == []


@on_all_servers
@pytest.mark.statement("BR-52", "BR-53")
def test_sessions_that_come_and_go_at_once_on_two_nodes_are_one_join_and_one_leave(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    joins = [begin(pair[n % 2].broker.join("room", f"s{n}", "alice", None)) for n in range(16)]
    assert sum(map(bench.run, joins)) == 1
    leaves = [begin(pair[n % 2].broker.leave("room", f"s{n}")) for n in range(16)]
    assert [left for left in map(bench.run, leaves) if left is not None] == ["alice"]
    bench.advance(3)
    assert keys(bench, pair[0]) == []


@on_all_servers
def test_members_that_come_and_go_leave_nothing_behind(bench: Brokers, pair: tuple[Made, Made]) -> None:
    changes = 0
    for n in range(120):
        made = pair[n % 2]
        changes += join(bench, made, f"s{n}", f"id{n % 7}", stream=f"room{n % 3}")
        if n % 5 == 0:
            bench.run(made.broker.release_presence(f"s{n}"))
        elif n % 5 == 1:
            moved = bench.run(pair[1 - n % 2].broker.move_presence(f"s{n}", f"h{n}"))
            bench.run(made.broker.release_session(f"s{n}", b""))  # so it hears that it has an heir
            changes -= len(moved) and leave(bench, pair[1 - n % 2], f"h{n}", f"room{n % 3}") is not None
        else:
            changes -= leave(bench, made, f"s{n}", f"room{n % 3}") is not None
    bench.advance(15)
    assert changes == len(expired(*pair))
    assert keys(bench, pair[0]) == []
    for made in pair:
        own = presence(made)
        for left in (own._own, own._agenda, own._late, own._members, own._unsure, own._turns._locks):
            assert len(left) == 0


def test_a_session_is_present_under_one_id(bench: Brokers) -> None:
    made = bench.make()
    join(bench, made, "a", "alice")
    with pytest.raises(PresenceRefused, match="alice"):
        join(bench, made, "a", "bob")
    with pytest.raises(PresenceRefused):
        join(bench, made, "no sid", "bob")


@pytest.mark.parametrize(
    ("stream", "id", "info"),
    [
        ("a b\n", "é {x}", {"é": ["\n", None, 1.5]}),
        ("1:2", "3 4", "0 null"),
        ("\x00", "%", False),
        ("s" * 500, "i" * 500, None),
        ("a.*", ">", 1),
    ],
)
def test_any_text_is_a_stream_and_an_id(bench: Brokers, stream: str, id: str, info: object) -> None:
    made = bench.make()
    assert join(bench, made, "a", id, info, stream)
    assert not join(bench, made, "b", id, info, stream)
    assert bench.run(made.broker.members(stream)) == [Member(id, info)]
    bench.run(made.broker.release_presence("a"))
    bench.run(made.broker.release_presence("b"))
    bench.advance(12)
    assert expired(made) == [(stream, id)]


def test_who_joined_again_before_the_leave_was_confirmed_stays(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    join(bench, one, "a", "alice")
    assert leave(bench, one, "a") == "alice"
    assert ids(bench, one) == []
    assert join(bench, other, "b", "alice")
    bench.advance(40)
    assert expired(*pair) == []
    assert ids(bench, one) == ["alice"]


# -- nodes that are gone


@on_all_servers
@pytest.mark.statement("BR-53")
def test_who_was_on_a_killed_node_is_gone_once_within_20_seconds_after_the_ttl(bench: Brokers) -> None:
    one, other, third = (bench.make() for _ in range(3))
    bench.advance(LEASE)
    join(bench, one, "a", "alice")
    join(bench, one, "a", "alice", stream="hall {1}")
    join(bench, one, "b", "bob")
    join(bench, other, "c", "bob")
    bench.kill(one)
    bench.advance(10)
    assert expired(other, third) == []
    bench.advance(20)
    assert sorted(expired(other, third)) == [("hall {1}", "alice"), ("room", "alice")]
    bench.advance(60)
    assert len(expired(other, third)) == 2
    assert leave(bench, other, "c") == "bob"
    bench.advance(3)
    assert keys(bench, other) == []


def test_who_resumes_on_another_node_takes_its_presence_along(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    join(bench, one, "a", "alice")
    bench.kill(one)
    bench.advance(8)
    assert bench.run(other.broker.move_presence("a", "b")) == {"room": "alice"}
    bench.advance(60)
    assert expired(other) == []
    assert leave(bench, other, "b") == "alice"


def test_a_takeover_while_both_nodes_live_is_no_event(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    join(bench, one, "a", "alice", {"n": 1})
    assert bench.run(other.broker.move_presence("a", "b")) == {"room": "alice"}
    bench.run(one.broker.release_presence("a"))  # its socket is closed then
    bench.advance(40)
    assert expired(*pair) == []
    assert bench.run(one.broker.members("room")) == [Member("alice", {"n": 1})]
    assert leave(bench, other, "b") == "alice"


@on_all_servers
@pytest.mark.statement("CP-113")
def test_of_two_heirs_at_once_one_takes_each_presence(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    for n in range(6):
        join(bench, one, "a", "alice", stream=f"room{n}")
    moves = [begin(one.broker.move_presence("a", "b")), begin(other.broker.move_presence("a", "c"))]
    moved = [bench.run(work) for work in moves]
    assert sorted([*moved[0], *moved[1]]) == [f"room{n}" for n in range(6)]
    for made, sid, streams in ((one, "b", moved[0]), (other, "c", moved[1])):
        for stream in streams:
            assert leave(bench, made, sid, stream) == "alice"
    bench.advance(12)
    assert expired(*pair) == []
    assert keys(bench, one) == []


@on_all_servers
def test_who_resumes_while_the_time_is_over_is_there_or_gone_and_never_both(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    for n in range(20):
        join(bench, one, f"s{n}", f"id{n}")
        bench.run(one.broker.release_presence(f"s{n}"))
    bench.skip(9)
    bench.reactor.pass_time(3)
    sweep = begin(one.broker.sweep())
    moves = [bench.run(work) for work in [begin(other.broker.move_presence(f"s{n}", f"h{n}")) for n in range(20)]]
    bench.run(sweep)
    bench.advance(5)
    there = ids(bench, other)
    assert there == sorted(f"id{n}" for n in range(20) if moves[n])
    assert sorted(id for _, id in expired(*pair)) == sorted(f"id{n}" for n in range(20) if not moves[n])


@on_all_servers
def test_a_leave_that_was_written_and_not_told_another_node_tells(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    join(bench, one, "a", "alice")
    bench.run(one.broker.release_presence("a"))
    monkeypatch.setattr(presence(one), "_tell", lambda *_: None)
    bench.skip(11)
    bench.kill(one)
    bench.advance(LEASE + 8)
    assert expired(other) == [("room", "alice")]
    bench.advance(30)
    assert expired(other) == [("room", "alice")]
    assert keys(bench, other) == []


def test_a_node_that_was_away_for_less_than_the_ttl_keeps_its_members(bench: Brokers) -> None:
    one, other = pair = bench.make(presence_ttl=40.0), bench.make(presence_ttl=40.0)
    bench.advance(4)
    join(bench, one, "a", "alice")
    bench.advance(LEASE + 8, without=one)
    bench.advance(100)
    assert expired(*pair) == []
    assert ids(bench, other) == ["alice"]


@pytest.mark.statement("BR-53")
def test_members_of_a_node_that_was_away_for_too_long_come_again_and_that_is_told(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    came: list[tuple[str, str, Any]] = []
    presence(one)._came = lambda *who: came.append(who)
    join(bench, one, "a", "alice", {"n": 1})
    join(bench, one, "a", "alice", None, "hall")
    join(bench, one, "b", "bob")
    join(bench, other, "c", "bob")
    bench.advance(40, without=one)
    assert sorted(expired(*pair)) == [("hall", "alice"), ("room", "alice")]
    bench.advance(3)
    assert sorted(came) == [("hall", "alice", None), ("room", "alice", {"n": 1})]
    assert ids(bench, other) == ["alice", "bob"]
    assert leave(bench, other, "c") is None
    assert [leave(bench, one, "a"), leave(bench, one, "b")] == ["alice", "bob"]
    assert leave(bench, one, "a", "hall") == "alice"
    bench.advance(30)
    assert len(expired(*pair)) == 2
    assert keys(bench, one) == []


# -- JetStream is away, or lost everything


@pytest.mark.statement("CP-112")
def test_who_leaves_while_jetstream_is_away_has_left_afterwards_and_that_is_told_once(
    server: NatsServer, bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    for sid, id in (("a", "alice"), ("b", "bob"), ("c", "carol")):
        join(bench, one, sid, id)
    server.kill()
    bench.reactor.until(lambda: one.broker.problem() and other.broker.problem())
    assert leave(bench, one, "a") is None
    bench.run(one.broker.release_presence("b"))
    with pytest.raises(BrokerUnavailable):
        join(bench, one, "d", "dave")
    server.start()
    bench.reactor.until(lambda: not (one.nats.problem() or other.nats.problem()))
    bench.advance(2)
    assert expired(*pair) == [("room", "alice")]
    assert ids(bench, other) == ["bob", "carol"]
    bench.advance(12)
    assert expired(*pair) == [("room", "alice"), ("room", "bob")]
    assert ids(bench, other) == ["carol"]
    assert len(keys(bench, other)) == 2


def test_a_join_whose_answer_was_lost_is_told_by_the_next_one(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    with monkeypatch.context() as patch:
        _lose_answers(one, patch)
        with pytest.raises(BrokerUnavailable):
            join(bench, one, "a", "alice")
        with pytest.raises(BrokerUnavailable):
            join(bench, one, "b", "bob")
    assert ids(bench, other) == ["alice", "bob"]
    assert join(bench, one, "a", "alice")
    assert not join(bench, one, "a", "alice")
    assert leave(bench, one, "a") == "alice"
    bench.run(one.broker.release_presence("b"))  # nobody was told of it
    bench.advance(15)
    assert expired(*pair) == []
    assert keys(bench, one) == []


def test_members_who_are_connected_are_there_again_after_a_loss_and_nobody_is_told(
    server: NatsServer, bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    join(bench, one, "a", "alice", {"n": 1})
    join(bench, one, "b", "bob")
    join(bench, one, "c", "carol")
    join(bench, one, "d", "dave", 4)
    leave(bench, one, "b")
    bench.run(one.broker.release_presence("c"))
    bench.run(other.broker.move_presence("d", "e"))
    presence(one).moved_on("d")
    assert server.api(f"STREAM.DELETE.KV_{bench.prefix}_presence")["success"]
    bench.advance(33)
    members = bench.run(other.broker.members("room"))
    assert sorted(members, key=lambda member: member.id) == [Member("alice", {"n": 1}), Member("dave", 4)]
    assert leave(bench, one, "a") == "alice"
    assert leave(bench, other, "e") == "dave"
    assert expired(one, other) == []


def _lose_answers(made: Made, patch: pytest.MonkeyPatch) -> None:
    """What *made* stores of members is stored, but that is not answered."""
    bucket = presence(made)._bucket
    put = bucket.put

    async def lossy(key: str, *args: Any, **options: Any) -> int:
        revision = await put(key, *args, **options)
        if "." in key:
            raise NatsUnavailable("no answer")
        return revision

    patch.setattr(bucket, "put", lossy)
