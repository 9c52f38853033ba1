"""Sessions in NATS, shared by nodes that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.brokers.nats_nodes import AUDIT, LEASE
from anycable_tx.brokers.nats_sessions import Sessions
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.nats.api import NatsUnavailable
from anycable_tx.testing.nats_servers import NatsServer
from tests.brokers.nats_support import Brokers, Made, on_all_servers


def ended(*nodes: Made) -> list[tuple[str, bytes]]:
    return [each for node in nodes for each in node.node.ended]


def sessions(made: Made) -> Sessions:
    return made.broker._sessions


def keys(bench: Brokers, made: Made) -> list[str]:
    """Everything in the bucket of sessions, what is left of deleted keys too."""
    page, _ = bench.run(sessions(made)._bucket.page(">", 1))
    return [key for key, _ in page]


def node_keys(bench: Brokers, made: Made) -> set[str]:
    return set(bench.run(made.broker._nodes.bucket.entries(">")))


def save(bench: Brokers, made: Made, sid: str, record: bytes = b"record", previous: str = "") -> None:
    bench.run(made.broker.save_session(sid, "user-1", record, previous))


def release(bench: Brokers, made: Made, sid: str, record: bytes = b"last") -> bool:
    kept: bool = bench.run(made.broker.release_session(sid, record))
    return kept


def begin(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


# -- claims


@pytest.mark.statement("BR-51")
def test_a_session_comes_back_on_another_node(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    save(bench, one, "a")
    release(bench, one, "a")
    assert bench.run(other.broker.claim_session("a", "b")) == (b"last", "")
    assert bench.run(one.broker.claim_session("a", "c")) == (b"last", "b")
    save(bench, other, "b", b"record of b", "a")
    bench.advance(40)
    assert ended(*pair) == []
    assert bench.run(one.broker.claim_session("a", "d")) is None
    assert bench.run(one.broker.claim_session("b", "d")) == (b"record of b", "")


@on_all_servers
@pytest.mark.statement("CP-104")
def test_claims_of_one_session_on_two_nodes_at_once_are_in_one_order(bench: Brokers, pair: tuple[Made, Made]) -> None:
    save(bench, pair[0], "a")
    claims = [begin(pair[n % 2].broker.claim_session("a", f"heir{n}")) for n in range(10)]
    rivals = [bench.run(claim).rival for claim in claims]
    # Each heir but the last is the rival of one other, so following them from the last leads through all.
    before = {f"heir{n}": rival for n, rival in enumerate(rivals)}
    (last,) = before.keys() - set(rivals)
    order = [last]
    while before[order[-1]]:
        order.append(before[order[-1]])
    assert len(order) == len(set(order)) == 10


@on_all_servers
def test_a_claim_whose_answer_was_lost_may_be_repeated(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    save(bench, one, "a")
    bench.run(one.broker.claim_session("a", "b"))
    with monkeypatch.context() as patch:
        _lose_answers(other, patch, 100)
        with pytest.raises(BrokerUnavailable):
            bench.run(other.broker.claim_session("a", "c"))
    assert bench.run(other.broker.claim_session("a", "c")) == (b"record", "b")
    assert bench.run(one.broker.claim_session("a", "d")) == (b"record", "c")


@pytest.mark.parametrize("sid", ["", "a.b", "*", ">", "a b", "é", "x" * 65, "a\n"])
def test_what_is_no_sid_is_the_sid_of_nobody(bench: Brokers, sid: str) -> None:
    made = bench.make()
    save(bench, made, "a")
    save(bench, made, sid)
    assert not release(bench, made, sid)
    assert bench.run(made.broker.claim_session(sid, "b")) is None
    bench.run(made.broker.forget_session(sid))
    save(bench, made, "c", previous=sid)
    assert len(keys(bench, made)) == 4


@pytest.mark.statement("CP-94", "BR-51")
def test_with_a_ttl_of_0_nothing_is_written(bench: Brokers) -> None:
    made = bench.make(sessions_ttl=0.0)
    save(bench, made, "a")
    assert not release(bench, made, "a")
    assert bench.run(made.broker.forget_sessions("user-1")) == 0
    bench.advance(3)
    assert bench.run(made.broker._js.api("STREAM.NAMES", {"subject": f"$KV.{bench.prefix}_sessions.>"}))["total"] == 0


# -- ends


@on_all_servers
def test_one_node_is_told_of_an_end_and_nothing_is_left(bench: Brokers, pair: tuple[Made, Made]) -> None:
    for sid in "abc":
        save(bench, pair[0], sid)
        assert release(bench, pair[0], sid)
    bench.advance(29)
    assert ended(*pair) == []
    bench.advance(40)
    assert sorted(ended(*pair)) == [("a", b"last"), ("b", b"last"), ("c", b"last")]
    assert keys(bench, pair[0]) == []
    own = sessions(pair[0])
    for left in (own._own, own._alike, own._told, own._agenda, own._removable, own._turns._locks):
        assert len(left) == 0


@on_all_servers
def test_many_ends_at_once_are_all_told(bench: Brokers) -> None:
    made = bench.make()
    for number in range(150):
        save(bench, made, str(number))
        release(bench, made, str(number))
    bench.skip(31)
    bench.advance(3)
    assert len(set(ended(made))) == len(ended(made)) == 150
    assert keys(bench, made) == []


@on_all_servers
def test_claims_that_race_with_the_end_change_nothing_of_it(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    sids = [str(number) for number in range(30)]
    for sid in sids:
        save(bench, one, sid)
        release(bench, one, sid)
    bench.skip(28.9)
    bench.reactor.pass_time(2)  # the other's clock is late
    other.broker._nodes._offset -= 2
    work = begin(one.broker.sweep())
    claims = [bench.run(claim) for claim in [begin(other.broker.claim_session(sid, "heir")) for sid in sids]]
    bench.run(work)
    while len(sessions(one)._agenda):  # a sweep takes about a second and leaves the rest to the next one
        bench.run(one.broker.sweep())
    assert [bench.run(other.broker.claim_session(sid, "next")) for sid in sids] == [None] * 30
    bench.advance(5)
    assert sorted(ended(*pair)) == sorted((sid, b"last") for sid in sids)
    assert all(claim is None or claim.record == b"last" for claim in claims)


def test_an_heir_that_is_saved_while_the_end_comes_is_not_told_of_before(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the heir's own key and the mark at the one before it, the heir's node ends."""
    one, other = pair
    save(bench, one, "a")
    release(bench, one, "a")
    assert bench.run(other.broker.claim_session("a", "b")) is not None
    monkeypatch.setattr(sessions(other), "_mark", _nothing)
    save(bench, other, "b", b"record of b", "a")
    bench.kill(other)
    bench.advance(32)
    assert ended(*pair) == []
    bench.advance(40)
    assert ended(*pair) == [("b", b"record of b")]


@on_all_servers
def test_what_a_node_was_about_to_tell_when_it_died_another_one_tells(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    save(bench, one, "a")
    release(bench, one, "a")
    monkeypatch.setattr(sessions(one), "_tell", lambda sid, record: None)
    bench.skip(31)
    assert bench.run(other.broker.claim_session("a", "b")) is None
    bench.kill(one)
    bench.advance(LEASE - 4)
    assert ended(other) == []
    bench.advance(8)
    assert ended(other) == [("a", b"last")]
    bench.advance(60)
    assert len(ended(other)) == 1
    assert keys(bench, other) == []


def test_an_end_that_was_written_and_not_answered_is_told_once(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pair[0]
    save(bench, one, "a")
    release(bench, one, "a")
    bench.skip(29)
    with monkeypatch.context() as patch:
        _lose_answers(one, patch, 100)
        bench.reactor.pass_time(2.5)
        with pytest.raises(BrokerUnavailable):
            bench.run(sessions(one).sweep())
    assert ended(*pair) == []
    bench.advance(40)
    assert ended(*pair) == [("a", b"last")]


# -- nodes that are gone


@on_all_servers
@pytest.mark.statement("CP-95")
def test_sessions_of_a_killed_node_end_after_their_time_and_one_node_is_told(bench: Brokers) -> None:
    one, other, third = (bench.make() for _ in range(3))
    bench.advance(LEASE)
    save(bench, one, "a")
    save(bench, one, "b", b"record of b")
    save(bench, one, "r", b"record of r")
    save(bench, other, "c", b"record of c")
    release(bench, one, "r", b"last of r")
    bench.kill(one)
    bench.advance(28)
    assert bench.run(other.broker.claim_session("a", "heir")) == (b"record", "")
    save(bench, other, "heir", b"record of heir", "a")
    assert ended(other, third) == []
    bench.advance(LEASE + 4)
    assert sorted(ended(other, third)) == [("b", b"record of b"), ("r", b"last of r")]
    assert bench.run(other.broker.claim_session("a", "x")) is None
    assert bench.run(other.broker.claim_session("c", "x")) is not None
    bench.advance(60)
    assert len(ended(other, third)) == 2
    assert node_keys(bench, other) == {other.broker._nodes.node, third.broker._nodes.node}
    assert len(keys(bench, other)) == 4


@on_all_servers
def test_sessions_of_all_killed_nodes_are_told_to_the_next_one_that_starts(bench: Brokers) -> None:
    one = bench.make()
    save(bench, one, "a")
    bench.kill(one)
    next_one = bench.make()
    assert bench.run(next_one.broker.claim_session("a", "b")) is not None
    bench.advance(LEASE + 33)
    assert ended(next_one) == [("a", b"record")]


def test_when_the_node_that_sweeps_dies_too_the_next_one_does(bench: Brokers) -> None:
    one, other, third = (bench.make() for _ in range(3))
    bench.advance(LEASE)
    save(bench, other, "a")
    bench.kill(other)
    bench.advance(20)
    bench.kill(one)
    bench.advance(20)
    assert ended(third) == [("a", b"record")]


def test_a_node_that_stops_leaves_its_sessions_to_others_at_once(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one = pair[0]
    save(bench, one, "a")
    release(bench, one, "a")
    bench.made.remove(one)
    bench.run(one.broker.give_up_sessions())
    bench.run(one.broker.stop())
    bench.advance(29)
    assert ended(*pair) == []
    bench.advance(4)
    assert ended(*pair) == [("a", b"last")]


def test_a_node_that_was_away_for_less_than_the_ttl_keeps_its_sessions(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one = pair[0]
    save(bench, one, "a")
    bench.advance(LEASE + 5, without=one)
    bench.advance(100)
    assert ended(*pair) == []
    assert one.node.bus == []


@pytest.mark.statement("CP-95")
def test_a_node_that_was_away_for_too_long_is_told_and_saves_its_sessions_anew(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    save(bench, one, "a")
    bench.advance(50, without=one)
    assert ended(*pair) == [("a", b"record")]
    assert bench.run(other.broker.claim_session("a", "b")) is None
    bench.advance(1)
    assert one.node.bus == ["store lost"]
    save(bench, one, "a", b"again")
    assert bench.run(other.broker.claim_session("a", "b")) == (b"again", "")
    assert bench.run(other.broker.forget_sessions("user-1")) == 1


def test_a_node_that_may_be_taken_to_be_gone_tells_nothing_that_another_one_may_tell(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    """It writes that it tells, and is stopped before it does."""
    one = pair[0]
    save(bench, one, "a")
    release(bench, one, "a")
    bench.advance(29)
    put = sessions(one)._bucket.put

    async def stopped(*args: Any, **options: Any) -> int:
        revision = await put(*args, **options)
        bench.reactor.pass_time(LEASE)
        return revision

    sessions(one)._bucket.put = stopped  # type: ignore[method-assign]
    bench.reactor.pass_time(2.5)
    bench.run(sessions(one).sweep())
    sessions(one)._bucket.put = put  # type: ignore[method-assign]
    assert ended(*pair) == []
    bench.advance(LEASE + 5, without=one)
    assert ended(*pair) == [("a", b"last")]
    bench.advance(30)
    assert ended(*pair) == [("a", b"last")]


def test_after_an_outage_of_all_nobody_is_judged_before_there_was_time_to_be_heard_of(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one = pair[0]
    save(bench, one, "a")
    bench.skips.skip(1000)
    bench.reactor.pass_time(1000)
    bench.advance(LEASE - 3, without=one)
    bench.advance(100)
    assert ended(*pair) == []


def test_sessions_of_a_node_that_nobody_knows_are_found_in_time(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    save(bench, one, "a")
    bench.kill(one)
    nodes = other.broker._nodes.bucket
    bench.run(nodes.delete(one.broker._nodes.node, bench.run(nodes.get(one.broker._nodes.node)).revision))
    bench.advance(10)
    bench.skip(AUDIT)
    bench.advance(45)
    assert ended(other) == [("a", b"record")]
    assert keys(bench, other) == []


# -- identifiers


@on_all_servers
@pytest.mark.statement("CP-102")
def test_identifiers_are_forgotten_on_all_nodes(bench: Brokers) -> None:
    one, other, third = trio = tuple(bench.make() for _ in range(3))
    bench.advance(LEASE)
    for sid, node in (("a", one), ("b", one), ("c", other), ("d", third)):
        save(bench, node, sid)
    release(bench, one, "a")
    bench.kill(third)
    bench.advance(LEASE + 4)
    assert bench.run(other.broker.forget_sessions("user-1")) == 4
    assert sorted(ended(*trio)) == [("a", b"last"), ("d", b"record")]
    assert release(bench, one, "b") is False
    bench.advance(100)
    assert len(ended(*trio)) == 2
    assert keys(bench, one) == []


@on_all_servers
@pytest.mark.statement("CP-102")
def test_identifiers_that_are_forgotten_on_all_nodes_at_once_end_each_session_once(
    bench: Brokers, pair: tuple[Made, Made]
) -> None:
    for number in range(40):
        save(bench, pair[number % 2], f"s{number}")
        release(bench, pair[number % 2], f"s{number}")
    counts = [bench.run(work) for work in [begin(made.broker.forget_sessions("user-1")) for made in pair]]
    assert sum(counts) == 40
    assert sorted(sid for sid, _ in ended(*pair)) == sorted(f"s{number}" for number in range(40))
    bench.advance(40)
    assert len(ended(*pair)) == 40
    assert keys(bench, pair[0]) == []


def test_a_session_that_has_other_identifiers_now_is_found_by_those(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    save(bench, one, "a")
    bench.run(one.broker.save_session("a", "user-2", b"renamed"))
    assert bench.run(other.broker.forget_sessions("user-1")) == 0
    assert bench.run(other.broker.claim_session("a", "b")) == (b"renamed", "")
    bench.advance(3)
    assert len(keys(bench, one)) == 2
    assert bench.run(other.broker.forget_sessions("user-2")) == 1


def test_a_sid_that_is_saved_again_belongs_to_the_node_that_saved_it(bench: Brokers, pair: tuple[Made, Made]) -> None:
    one, other = pair
    save(bench, one, "a")
    bench.run(other.broker.save_session("a", "user-2", b"other"))
    bench.kill(one)
    bench.advance(60)
    assert ended(other) == []
    assert bench.run(other.broker.forget_sessions("user-1")) == 0
    assert bench.run(other.broker.claim_session("a", "b")) == (b"other", "")


def test_a_key_that_leads_to_no_session_is_removed_in_time(bench: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.make()
    save(bench, made, "a")
    put = sessions(made)._bucket.put

    async def dies(key: str, *args: Any, **options: Any) -> int:
        if "." in key:
            return await put(key, *args, **options)
        raise NatsUnavailable("it is dead")

    with monkeypatch.context() as patch:
        patch.setattr(sessions(made)._bucket, "put", dies)
        with pytest.raises(BrokerUnavailable):
            save(bench, made, "b")
    assert len(keys(bench, made)) == 3
    bench.skip(AUDIT + 1)
    bench.advance(3)
    assert len(keys(bench, made)) == 2


# -- JetStream is away


def test_what_is_released_while_jetstream_is_away_is_kept_and_its_end_told_once(
    server: NatsServer, bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    for sid in "abc":
        save(bench, one, sid)
    release(bench, one, "c")
    server.kill()
    bench.reactor.until(lambda: one.broker.problem() and other.broker.problem())
    assert release(bench, one, "a", b"last of a") is True
    assert release(bench, one, "b", b"last of b") is True
    with pytest.raises(BrokerUnavailable):
        release(bench, one, "never-saved")
    with pytest.raises(BrokerUnavailable):
        bench.run(other.broker.claim_session("a", "heir"))
    bench.skips.skip(20)
    bench.reactor.pass_time(20)
    server.start()
    bench.reactor.until(lambda: not (one.nats.problem() or other.nats.problem()))
    bench.advance(2)
    assert bench.run(other.broker.claim_session("a", "heir")) == (b"last of a", "")
    assert ended(*pair) == []
    bench.advance(12)
    assert sorted(ended(*pair)) == [("a", b"last of a"), ("b", b"last of b"), ("c", b"last")]
    bench.advance(60)
    assert len(ended(*pair)) == 3
    assert keys(bench, one) == []


def test_an_end_that_was_reported_because_nothing_could_be_stored_is_not_told_again(
    bench: Brokers, pair: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a session is kept could not be told, nor could it be released; so its node has reported its end."""
    one, other = pair
    save(bench, one, "a")
    sessions(one)._drop_own("a")
    with monkeypatch.context() as patch:
        _lose_answers(one, patch, 100)
        with pytest.raises(BrokerUnavailable):
            save(bench, one, "a")
        with pytest.raises(BrokerUnavailable):
            release(bench, one, "a")
    assert bench.run(other.broker.claim_session("a", "b")) is not None
    bench.advance(1)
    assert bench.run(other.broker.claim_session("a", "c")) is None
    bench.advance(100)
    assert ended(*pair) == []
    assert "a" not in keys(bench, one)


def test_a_bucket_that_is_gone_is_made_again_and_the_node_saves_what_is_connected(
    server: NatsServer, bench: Brokers, pair: tuple[Made, Made]
) -> None:
    one, other = pair
    save(bench, one, "a")
    save(bench, one, "b")
    assert server.api(f"STREAM.DELETE.KV_{bench.prefix}_sessions")["success"]
    assert bench.run(other.broker.claim_session("a", "x")) is None
    bench.advance(31)
    assert one.node.bus == ["store lost"]
    save(bench, one, "a", b"new")
    assert bench.run(other.broker.claim_session("a", "x")) == (b"new", "")
    assert release(bench, one, "b") is False
    assert bench.run(other.broker.forget_sessions("user-1")) == 1


# -- helpers


def _lose_answers(made: Made, patch: pytest.MonkeyPatch, number: int) -> None:
    """What *made* stores in the bucket of sessions is stored, but that is not answered, *number* times."""
    js = sessions(made)._bucket._js
    publish, left = js.publish, [number]

    async def lossy(subject: str, *args: Any, **options: Any) -> Any:
        ack = await publish(subject, *args, **options)
        if "_sessions." in subject and left[0]:
            left[0] -= 1
            raise NatsUnavailable("no answer")
        return ack

    async def no_last(*args: Any, **options: Any) -> Any:
        raise NatsUnavailable("no answer")

    patch.setattr(js, "publish", lossy)
    last = js.last

    async def last_if_answered(log: str, *args: Any, **options: Any) -> Any:
        # Who cannot hear that something was stored cannot look it up either.
        return await (no_last if left[0] < number and "_sessions" in log else last)(log, *args, **options)

    patch.setattr(js, "last", last_if_answered)


async def _nothing(*args: Any) -> None:
    return None


async def _unavailable(*args: Any) -> None:
    raise NatsUnavailable("no answer")


# -- what others do


@pytest.mark.parametrize("value", [b"", b"mine", b"[1]", b'{"further":1}'])
def test_what_nobody_here_wrote_into_the_buckets_stops_nothing(
    bench: Brokers, server: NatsServer, pair: tuple[Made, Made], value: bytes
) -> None:
    one, other = pair
    headers = b"NATS/1.0\r\nAc-Meta: " + value + b"\r\n\r\n"
    for bucket in ("sessions", "presence", "nodes"):
        for key in ("mine", "bY2hhdA.bYQ", "x.y.z"):
            server.publish(f"$KV.{bench.names.bucket(bucket)}.{key}", value, headers)
    bench.run(one.broker.join("chat", "s", "a", None))
    assert [member.id for member in bench.run(other.broker.members("chat"))] == ["a"]
    save(bench, one, "mine")
    save(bench, one, "s")
    bench.kill(one)
    bench.advance(LEASE + 40)
    assert sorted(sid for sid, _ in ended(other)) == ["mine", "s"]
    assert other.node.expired == [("chat", "a")]
    assert other.broker.problem() == ""
