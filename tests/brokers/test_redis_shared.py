"""Sessions and presence in Redis, shared by nodes that come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anycable_tx.brokers import redis_shared_scripts as scripts
from anycable_tx.brokers.redis_nodes import LEASE, NODES, RETELL
from anycable_tx.cable.messages import Member
from anycable_tx.testing.redis_servers import RedisServer, redis_server
from tests.brokers.redis_support import Brokers, Made, brokers


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with redis_server(kind=request.param) as running:
        yield running


@pytest.fixture
def bench(server: RedisServer) -> Iterator[Brokers]:
    with brokers(server) as made:
        yield made


@pytest.fixture
def pair(bench: Brokers) -> tuple[Made, Made]:
    """Two nodes that have known each other for a while."""
    pair = bench.make(), bench.make()
    bench.advance(LEASE + 3)
    return pair


@pytest.fixture
def trio(bench: Brokers) -> tuple[Made, Made, Made]:
    """Three of them."""
    trio = bench.make(), bench.make(), bench.make()
    bench.advance(LEASE + 3)
    return trio


def ended(*nodes: Made) -> list[tuple[str, bytes]]:
    return [each for node in nodes for each in node.node.ended]


def expired(*nodes: Made) -> list[tuple[str, str]]:
    return [each for node in nodes for each in node.node.expired]


# -- sessions


@pytest.mark.statement("BR-51")
def test_a_session_comes_back_on_another_node(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.release_session("a", b"last"))
    assert bench.run(other.broker.claim_session("a", "b")) == (b"last", "")
    assert bench.run(one.broker.claim_session("a", "c")) == (b"last", "b")
    bench.run(other.broker.save_session("b", "user-1", b"record of b", "a"))
    bench.advance(40)
    assert ended(*pair) == []
    assert bench.run(one.broker.claim_session("a", "d")) is None
    assert bench.run(one.broker.claim_session("b", "d")) == (b"record of b", "")


def test_one_node_is_told_of_an_end(bench: Brokers, pair: tuple[Made, Made]) -> None:
    for sid in "abc":
        bench.run(pair[0].broker.save_session(sid, "user-1", b"record"))
        assert bench.run(pair[0].broker.release_session(sid, b"last"))
    bench.advance(29)
    assert ended(*pair) == []
    bench.advance(40)
    assert sorted(ended(*pair)) == [("a", b"last"), ("b", b"last"), ("c", b"last")]
    assert bench.server.ask("KEYS", "ac:{s}:s*") == []


def test_more_ends_than_one_sweep_takes_are_all_told(bench: Brokers, pair: tuple[Made, Made]) -> None:
    for number in range(250):
        bench.run(pair[0].broker.save_session(str(number), "user-1", b""))
        bench.run(pair[0].broker.release_session(str(number), b""))
    bench.skip(31)
    assert len(set(ended(*pair))) == len(ended(*pair)) == 250


def test_what_a_node_claimed_to_tell_and_never_confirmed_another_one_tells(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    (one, other) = pair
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.release_session("a", b"last"))
    bench.run(one.broker.join("room", "b", "bob", None))
    bench.run(one.broker.release_presence("b"))
    now = round((one.redis.now() + 31) * 1000)
    for script, claimed in ((scripts.SWEEP_SESSIONS, [b"a", b"last"]), (scripts.SWEEP_PRESENCE, [b"room", b"bob"])):
        assert bench.run(one.redis.run(script, [NODES], now, "gone", now + RETELL, "")) == claimed
    assert bench.run(other.broker.claim_session("a", "b")) is None
    bench.advance(59)
    assert ended(*pair) == expired(*pair) == []
    bench.advance(4)
    assert ended(*pair) == [("a", b"last")]
    assert expired(*pair) == [("room", "bob")]
    bench.advance(70)
    assert (len(ended(*pair)), len(expired(*pair))) == (1, 1)


def test_a_confirmation_that_was_lost_leads_to_no_second_telling(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one = pair[0]
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.release_session("a", b"last"))
    lost = one.broker._sessions
    bench.reactor.pass_time(31)
    now = lost._lease.now
    ends = bench.run(one.redis.run(scripts.SWEEP_SESSIONS, [NODES], now, lost._lease.node, now + RETELL, ""))
    lost._tell_all(ends)
    bench.reactor.pass_time(RETELL / 1000 + 1)
    bench.run(lost.sweep())
    bench.advance(40)
    assert ended(*pair) == [("a", b"last")]


@pytest.mark.statement("CP-95")
def test_sessions_of_a_killed_node_end_after_their_time_and_one_node_is_told(
    bench: Brokers, trio: tuple[Made, Made, Made]
) -> None:
    one, other, third = trio
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.save_session("b", "user-1", b"record of b"))
    bench.run(other.broker.save_session("c", "user-1", b"record of c"))
    bench.kill(one)
    bench.advance(28)
    assert bench.run(other.broker.claim_session("a", "heir")) == (b"record", "")
    bench.run(other.broker.save_session("heir", "user-1", b"record of heir", "a"))
    bench.advance(LEASE + 4)
    assert ended(other, third) == [("b", b"record of b")]
    assert bench.run(other.broker.claim_session("a", "x")) is None
    assert bench.run(other.broker.claim_session("c", "x")) is not None
    assert len(bench.server.ask("ZRANGE", NODES, 0, -1)) == 2
    bench.advance(60)
    assert len(ended(other, third)) == 1


def test_sessions_of_all_killed_nodes_are_told_to_the_next_one_that_starts(bench: Brokers) -> None:
    one = bench.make()
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.kill(one)
    next_one = bench.make()
    assert bench.run(next_one.broker.claim_session("a", "b")) is not None
    bench.advance(LEASE + 33)
    assert ended(next_one) == [("a", b"record")]


def test_a_node_that_was_away_for_less_than_the_ttl_keeps_its_sessions(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one = pair[0]
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.join("room", "a", "alice", None))
    bench.advance(LEASE + 5, without=one)
    bench.advance(100)
    assert ended(*pair) == expired(*pair) == []


def test_after_an_outage_of_all_nobody_is_judged_before_there_was_time_to_be_heard_of(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one = pair[0]
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.join("room", "a", "alice", None))
    bench.reactor.pass_time(1000)
    bench.advance(LEASE - 2, without=one)
    bench.advance(100)
    assert ended(*pair) == expired(*pair) == []


def test_after_a_restart_with_old_data_nobody_is_judged_by_them() -> None:
    with redis_server() as own, brokers(own) as bench:
        pair = one, other = bench.make(), bench.make()
        bench.advance(LEASE + 3)
        bench.run(one.broker.save_session("a", "user-1", b"record"))
        bench.run(one.broker.join("room", "a", "alice", None))
        for node in own.ask("ZRANGE", NODES, 0, -1):
            own.ask("ZADD", NODES, 1, node)
        own.ask("SAVE")
        bench.advance(4)
        own.kill()
        bench.reactor.until(lambda: one.broker.problem() and other.broker.problem())
        own.start()
        bench.reactor.until(lambda: not (one.broker.problem() or other.broker.problem()))
        bench.advance(LEASE - 2, without=one)
        bench.advance(100)
        assert ended(*pair) == expired(*pair) == []
        assert bench.run(other.broker.claim_session("a", "b")) is not None


def test_a_node_that_stops_with_nothing_left_is_no_longer_known(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one = pair[0]
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(one.broker.release_session("a", b"last"))
    bench.run(one.broker.give_up_sessions())
    bench.made.remove(one)
    bench.run(one.broker.stop())
    assert len(bench.server.ask("ZRANGE", NODES, 0, -1)) == 1
    bench.advance(32)
    assert ended(*pair) == [("a", b"last")]


@pytest.mark.statement("CP-102")
def test_identifiers_are_forgotten_on_all_nodes(bench: Brokers, trio: tuple[Made, Made, Made]) -> None:
    one, other, third = trio
    for sid, node in (("a", one), ("b", one), ("c", other), ("d", third)):
        bench.run(node.broker.save_session(sid, "user-1", b"record"))
    bench.run(one.broker.release_session("a", b"last"))
    bench.kill(third)
    bench.advance(LEASE + 3)
    assert bench.run(other.broker.forget_sessions("user-1")) == 4
    assert sorted(ended(*trio)) == [("a", b"last"), ("d", b"record")]
    assert bench.run(one.broker.release_session("b", b"last")) is False
    bench.advance(100)
    assert len(ended(*trio)) == 2


def test_a_sid_that_is_saved_again_belongs_to_the_node_that_saved_it(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    bench.run(one.broker.save_session("a", "user-1", b"record"))
    bench.run(other.broker.save_session("a", "user-2", b"other"))
    bench.kill(one)
    bench.advance(60)
    assert ended(other) == []
    assert bench.run(other.broker.forget_sessions("user-1")) == 0
    assert bench.run(other.broker.claim_session("a", "b")) == (b"other", "")


def test_a_broker_sweeps_by_itself(bench: Brokers) -> None:
    made = bench.make(sweeps=True)
    bench.run(made.broker.save_session("a", "user-1", b"record"))
    bench.run(made.broker.release_session("a", b"last"))
    for _ in range(32):
        bench.reactor.pass_time(1)
        bench.run(made.redis.execute("", "PING"))
    bench.reactor.until(lambda: made.node.ended)


# -- presence


@pytest.mark.statement("BR-53")
def test_two_sessions_that_leave_on_two_nodes_are_one_leave(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    assert bench.run(one.broker.join("room", "a", "alice", {"n": 1}))
    assert not bench.run(other.broker.join("room", "b", "alice", {"n": 1}))
    assert bench.run(other.broker.members("room")) == [Member("alice", {"n": 1})]
    left = [bench.run(one.broker.leave("room", "a")), bench.run(other.broker.leave("room", "b"))]
    assert left == [None, "alice"]
    bench.advance(60)
    assert expired(*pair) == []
    assert bench.server.ask("KEYS", "ac:{s}:[pq]*") == []


@pytest.mark.statement("BR-53")
def test_who_was_on_a_killed_node_is_gone_once_within_20_seconds_after_the_ttl(
    bench: Brokers, trio: tuple[Made, Made, Made]
) -> None:
    one, other, third = trio
    bench.run(one.broker.join("room", "a", "alice", None))
    bench.run(one.broker.join("hall {1}", "a", "alice", None))
    bench.run(one.broker.join("room", "b", "bob", None))
    bench.run(other.broker.join("room", "c", "bob", None))
    bench.kill(one)
    bench.advance(10)
    assert expired(other, third) == []
    bench.advance(20)
    assert sorted(expired(other, third)) == [("hall {1}", "alice"), ("room", "alice")]
    bench.advance(60)
    assert len(expired(other, third)) == 2
    assert bench.run(third.broker.leave("room", "c")) == "bob"


def test_who_resumes_on_another_node_takes_its_presence_along(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    bench.run(one.broker.join("room", "a", "alice", None))
    bench.kill(one)
    bench.advance(15)
    assert bench.run(other.broker.move_presence("a", "b")) == {"room": "alice"}
    bench.advance(60)
    assert expired(other) == []
    assert bench.run(other.broker.leave("room", "b")) == "alice"


def test_who_joined_again_before_the_leave_was_confirmed_is_not_told_to_be_gone(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    bench.run(one.broker.join("room", "a", "alice", None))
    now = round(one.redis.now() * 1000)
    assert bench.run(one.redis.run(scripts.LEAVE, [NODES], "a", "room", now + RETELL)) == b"alice"
    assert bench.run(other.broker.join("room", "b", "alice", None))
    bench.advance(40)
    assert expired(*pair) == []


def test_a_leave_whose_answer_was_lost_is_told_later(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one = pair[0]
    bench.run(one.broker.join("room", "a", "alice", None))
    now = round(one.redis.now() * 1000)
    assert bench.run(one.redis.run(scripts.LEAVE, [NODES], "a", "room", now + RETELL)) == b"alice"
    bench.advance(33)
    assert expired(*pair) == [("room", "alice")]


@pytest.mark.parametrize(
    ("stream", "id", "info"),
    [("a b\n", "é {x}", {"é": ["\n", None, 1.5]}), ("1:2", "3 4", "0 null"), ("\x00", "%", False)],
)
def test_any_text_is_a_stream_and_an_id(bench: Brokers, stream: str, id: str, info: object) -> None:
    made = bench.make()
    assert bench.run(made.broker.join(stream, "a", id, info))
    assert not bench.run(made.broker.join(stream, "b", id, info))
    assert bench.run(made.broker.members(stream)) == [Member(id, info)]
    bench.run(made.broker.release_presence("a"))
    bench.run(made.broker.release_presence("b"))
    bench.advance(12)
    assert expired(made) == [(stream, id)]


# -- losses


def test_members_who_are_connected_are_there_again_after_a_flush_and_nobody_is_told(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    bench.run(one.broker.join("room", "a", "alice", {"n": 1}))
    bench.run(one.broker.join("room", "b", "bob", None))
    bench.run(one.broker.join("room", "c", "carol", None))
    bench.run(one.broker.join("room", "d", "dave", 4))
    bench.run(one.broker.leave("room", "b"))
    bench.run(one.broker.release_session("c", b""))
    bench.run(other.broker.move_presence("d", "e"))
    bench.run(one.broker.release_session("d", b""))
    bench.server.ask("FLUSHALL")
    bench.reactor.pass_time(31)
    bench.reactor.until(lambda: one.node.bus and other.node.bus)
    bench.skip(0.1)
    members = bench.run(other.broker.members("room"))
    assert sorted(members, key=lambda member: member.id) == [Member("alice", {"n": 1}), Member("dave", 4)]
    assert bench.run(one.broker.leave("room", "a")) == "alice"
    assert bench.run(other.broker.leave("room", "e")) == "dave"
    assert expired(one, other) == []
