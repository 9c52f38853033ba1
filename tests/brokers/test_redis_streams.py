"""Stream logs in Redis: shared by nodes, and honest about what was lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.defer import DeferredList, ensureDeferred

from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from anycable_tx.testing.redis_servers import RedisServer, redis_server
from anycable_tx.tokens import token
from tests.brokers.redis_support import Brokers, Made, Place, brokers, place

RECORD, LOG = (f"ac:{{{token('chat')}}}:{kind}" for kind in "ml")


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with redis_server(kind=request.param) as running:
        yield running


@pytest.fixture
def bench(server: RedisServer) -> Iterator[Brokers]:
    with brokers(server) as made:
        yield made


def publish(bench: Brokers, made: Made, text: str = "{}", stream: str = "chat", **fields: Any) -> Receipt:
    receipt: Receipt = bench.run(made.broker.publish(Publication(stream, text.encode(), **fields)))
    return receipt


def fill(bench: Brokers, made: Made, count: int, stream: str = "chat") -> list[Position]:
    """The position before the first of so many messages 0, 1, ... and those of each."""
    positions = [bench.run(made.broker.tail(stream))]
    for number in range(count):
        receipt = publish(bench, made, str(number), stream)
        positions.append(Position(receipt.epoch, receipt.offset))
    return positions


def history(bench: Brokers, made: Made, position: Position | None, since: int = 0, stream: str = "chat") -> Any:
    """The texts, or the reason of the refusal."""
    try:
        found = bench.run(made.broker.history(stream, HistoryRequest(position, since)))
    except HistoryRefused as e:
        return e.reason
    return [message.payload.decode() for message in found.messages]


# -- several nodes


@pytest.mark.statement("BR-35", "BR-56")
def test_what_one_node_stores_the_others_hear_and_serve(bench: Brokers) -> None:
    one, other = bench.make(), bench.make()
    bench.listen(other, "ac:st:chat")
    start = bench.run(other.broker.tail("chat"))
    receipts = [publish(bench, each, str(n)) for n, each in enumerate((one, other, one, other))]
    bench.settle(other, 4)
    assert [(m.offset, m.epoch) for m in other.messages] == [(r.offset, r.epoch) for r in receipts]
    assert [r.offset for r in receipts] == sorted({r.offset for r in receipts})
    assert history(bench, one, start) == history(bench, other, start) == ["0", "1", "2", "3"]


def test_messages_are_stored_in_the_order_they_were_published_in_from_the_first_on(bench: Brokers) -> None:
    made = bench.make()
    start = bench.run(made.broker.tail("chat"))
    work = [ensureDeferred(made.broker.publish(Publication("chat", str(n).encode()))) for n in range(5)]
    bench.reactor.result(DeferredList(work, fireOnOneErrback=True))
    assert history(bench, made, start) == ["0", "1", "2", "3", "4"]


@pytest.mark.statement("BR-21")
def test_an_id_is_one_message_for_all_nodes(bench: Brokers) -> None:
    nodes = [bench.make() for _ in range(3)]
    work = [ensureDeferred(each.broker.publish(Publication("chat", b"1", id="p-1"))) for each in nodes]
    results = [receipt for _, receipt in bench.reactor.result(DeferredList(work, fireOnOneErrback=True))]
    assert sorted(receipt.duplicate for receipt in results) == [False, True, True]
    assert len({(receipt.offset, receipt.epoch) for receipt in results}) == 1
    assert sum(each.metrics.value("duplicate_publications_total") for each in nodes) == 2
    assert history(bench, nodes[0], Position(results[0].epoch, 0)) == ["1"]


def test_an_id_of_a_message_that_is_not_stored_is_one_message_for_all_nodes(bench: Brokers) -> None:
    one, other = bench.make(), bench.make()
    bench.listen(one, "ac:st:chat")
    assert publish(bench, one, transient=True, id="p-1") == Receipt(0, "")
    assert publish(bench, other, transient=True, id="p-1") == Receipt(0, "", duplicate=True)
    bench.skip(30)
    assert publish(bench, other, transient=True, id="p-1") == Receipt(0, "")
    bench.settle(one, 2)
    assert len(one.messages) == 2


@pytest.mark.statement("BR-62")
def test_other_limits_keep_history_and_epoch(bench: Brokers) -> None:
    positions = fill(bench, bench.make(), 5)
    more = bench.make(history_limit=8, history_ttl=600.0)
    publish(bench, more, "5")
    assert history(bench, more, positions[0]) == ["0", "1", "2", "3", "4", "5"]
    fewer = bench.make(history_limit=2)
    assert history(bench, fewer, positions[4]) == ["4", "5"]
    assert history(bench, fewer, positions[3]) == "trimmed"
    publish(bench, fewer, "6")
    assert history(bench, fewer, positions[5]) == ["5", "6"]


@pytest.mark.statement("BR-34")
def test_channels_are_named_like_streams_where_that_is_asked_for(bench: Brokers) -> None:
    made = bench.make(redis_verbatim_channels=True)
    bench.listen(made, "chat")
    publish(bench, made, "1")
    publish(bench, made, "2", transient=True)
    bench.settle(made, 2)
    assert [m.payload for m in made.messages] == [b"1", b"2"]


@pytest.mark.statement("BR-61")
@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_any_name_is_a_stream_of_its_own(kind: str) -> None:
    rng = random.Random(1)
    names = {"".join(rng.choices("{}abé \n:*", k=rng.randint(1, 12))) for _ in range(1000)}
    names |= {"{", "}", "{}", "}{", "{a}", "x" * 3000, "y" * 3000}
    with place(kind) as server, brokers(server) as bench:
        made = bench.make(idempotency_ttl=60.0)

        def together(work: list[Any]) -> list[Any]:
            return [each for _, each in bench.run(DeferredList([ensureDeferred(each) for each in work]))]

        def asked(name: str) -> Any:
            return made.broker.history(name, HistoryRequest(Position(epochs[name], 0)))

        texts = {name: str(n) for n, name in enumerate(names)}
        receipts = together([made.broker.publish(Publication(n, t.encode(), id="p-1")) for n, t in texts.items()])
        epochs = {name: receipt.epoch for name, receipt in zip(names, receipts, strict=True)}
        for name, found in zip(names, together([asked(name) for name in names]), strict=True):
            assert [message.payload.decode() for message in found.messages] == [texts[name]]
        assert all(together([made.broker.join(name, "sid " + name, "id", None) for name in names]))
        assert {len(each) for each in together([made.broker.members(name) for name in names])} == {1}
        together([made.broker.save_session(name, name, b"record") for name in names])
        assert set(together([made.broker.claim_session(name, "heir") for name in names])) == {(b"record", "")}


# -- losses


@pytest.mark.statement("BR-58")
def test_after_a_flush_nothing_old_is_confirmed_and_everything_new_is_larger(bench: Brokers) -> None:
    made, other = bench.make(), bench.make()
    positions = fill(bench, made, 3)
    bench.skip(5)
    since = int(made.redis.now()) - 4
    bench.server.ask("FLUSHALL")
    assert history(bench, made, positions[3]) == "future_offset"
    assert history(bench, other, positions[0]) == "unknown_epoch"
    receipt = publish(bench, other, '"new"')
    assert receipt.offset > positions[3].offset
    assert receipt.epoch != positions[3].epoch
    for each in (made, other):
        assert {history(bench, each, position) for position in positions} == {"unknown_epoch"}
        assert history(bench, each, None, since) == "expired"
        assert history(bench, each, Position(receipt.epoch, 0)) == ['"new"']
    bench.skip(2)
    assert history(bench, made, None, int(made.redis.now())) == []


@pytest.mark.statement("BR-58")
def test_every_node_is_told_of_a_flush_within_half_a_minute(bench: Brokers) -> None:
    one, other = bench.make(), bench.make()
    fill(bench, one, 1)
    bench.server.ask("FLUSHALL")
    publish(bench, one)
    bench.reactor.pass_time(31)
    bench.reactor.until(lambda: one.node.bus and other.node.bus)
    assert one.node.bus == other.node.bus == ["store lost", "restored"]
    bench.reactor.pass_time(31)
    bench.sweep(None)
    assert one.node.bus == ["store lost", "restored"]


def test_a_node_that_saw_nothing_of_a_flush_still_stores_in_a_new_epoch(bench: Brokers) -> None:
    made = bench.make()
    (start, first) = fill(bench, made, 1)
    bench.server.ask("FLUSHALL")
    assert publish(bench, made).epoch != first.epoch == start.epoch


@pytest.mark.statement("BR-58", "BR-60")
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_lost_what_is_confirmed_is_whole(server: RedisServer, seed: int) -> None:
    rng = random.Random(seed)
    streams = ("a", "b", "c")
    issued: dict[str, list[Position]] = {stream: [] for stream in streams}
    times: dict[str, list[int]] = {stream: [] for stream in streams}
    held: list[tuple[str, Position, int]] = []  # somebody had so many messages of the stream and this position
    confirmed = refused = 0
    with brokers(server) as bench:
        nodes = [bench.make(history_limit=8) for _ in range(2)]
        for _ in range(250):
            stream, made = rng.choice(streams), rng.choice(nodes)
            record, log = (f"ac:{{{token(stream)}}}:{kind}" for kind in "ml")
            what = rng.choices(
                ("publish", "hold", "ask", "since", "log", "record", "flush", "scripts", "time"),
                (40, 20, 40, 20, 3, 2, 1, 1, 2),
            )[0]
            if what == "publish":
                times[stream].append(int(made.redis.now()))
                receipt = publish(bench, made, str(len(issued[stream])), stream)
                position = Position(receipt.epoch, receipt.offset)
                assert position not in issued[stream]
                assert all(position.offset > each.offset for each in issued[stream])
                issued[stream].append(position)
                held.append((stream, position, len(issued[stream])))
            elif what == "hold":
                held.append((stream, bench.run(made.broker.tail(stream)), len(issued[stream])))
            elif what == "ask" and held:
                stream, position, known = rng.choice(held[-20:])
                answer = history(bench, made, position, stream=stream)
                if isinstance(answer, list):
                    confirmed += 1
                    assert answer == [str(n) for n in range(known, len(issued[stream]))]
                else:
                    refused += 1
            elif what == "since":
                since = int(made.redis.now()) - rng.choice((0, 1, 30, 59))
                answer = history(bench, made, None, since, stream)
                if isinstance(answer, list):
                    missed = [str(n) for n, time in enumerate(times[stream]) if time >= since]
                    assert answer[len(answer) - len(missed) :] == missed
                    confirmed += 1
            elif what == "log" and server.ask("EXISTS", record):  # that both were deleted leaves no trace
                server.ask("DEL", log)
            elif what == "record" and server.ask("EXISTS", log):
                server.ask("DEL", record)
            elif what == "flush":
                server.ask("FLUSHALL")
            elif what == "scripts":
                server.ask("SCRIPT", "FLUSH")
            elif what == "time":
                bench.skip(25)
    assert confirmed > 10
    assert refused


def test_a_node_that_remembers_tells_one_that_does_not_of_a_flush(bench: Brokers) -> None:
    made = bench.make()
    fill(bench, made, 1)
    bench.skip(5)
    since = int(made.redis.now()) - 6
    bench.server.ask("FLUSHALL")
    new = bench.make()
    assert history(bench, new, None, since) == []
    assert history(bench, made, None, since) == "expired"
    assert history(bench, new, None, since) == "expired"


@pytest.mark.statement("BR-60")
def test_without_its_record_a_log_proves_nothing(bench: Brokers) -> None:
    made = bench.make()
    positions = fill(bench, made, 3)
    bench.server.ask("DEL", RECORD)
    assert history(bench, made, positions[0]) == "unknown_epoch"
    assert {history(bench, made, position) for position in positions[1:]} == {"unknown_epoch", "future_offset"}
    assert history(bench, made, None, 0) == "expired"
    receipt = publish(bench, made, '"new"')
    assert receipt.epoch != positions[0].epoch
    assert receipt.offset > positions[3].offset
    assert {history(bench, made, position) for position in positions} == {"unknown_epoch"}
    assert history(bench, made, Position(receipt.epoch, 0)) == ['"new"']
    assert history(bench, made, None, int(made.redis.now()) - 10) == "expired"


@pytest.mark.statement("BR-60", "BR-47")
def test_without_its_log_a_record_still_knows_who_has_everything(bench: Brokers) -> None:
    made = bench.make()
    positions = fill(bench, made, 3)
    bench.server.ask("DEL", LOG)
    assert history(bench, made, positions[3]) == []
    assert {history(bench, made, position) for position in positions[:3]} == {"expired"}
    assert history(bench, made, None, int(made.redis.now()) - 10) == "expired"
    receipt = publish(bench, made, '"new"')
    assert receipt == (positions[3].offset + 1, positions[3].epoch, False)
    assert history(bench, made, positions[3]) == ['"new"']
    assert history(bench, made, positions[2]) == "trimmed"


@pytest.mark.statement("BR-60")
def test_a_log_with_a_hole_or_without_its_end_is_never_confirmed(bench: Brokers) -> None:
    made = bench.make()
    positions = fill(bench, made, 5)
    bench.server.ask("XDEL", LOG, f"{positions[3].offset}-0")
    assert history(bench, made, positions[2]) == "trimmed"
    assert history(bench, made, positions[3]) == ["3", "4"]
    bench.server.ask("XDEL", LOG, f"{positions[5].offset}-0")
    assert history(bench, made, positions[3]) == "expired"
    assert history(bench, made, positions[5]) == []


@pytest.mark.statement("BR-60")
def test_an_eviction_never_leads_to_an_incomplete_answer(bench: Brokers) -> None:
    made = bench.make()
    streams = [f"stream {n}" for n in range(150)]
    positions = {stream: fill(bench, made, 4, stream) for stream in streams}
    used = int(bench.server.ask("INFO", "memory").partition(b"used_memory:")[2].partition(b"\r")[0])
    start = int(made.redis.now()) - 60
    bench.server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    try:
        bench.server.ask("CONFIG", "SET", "maxmemory", used - 40_000)
        for stream in streams[::2]:
            publish(bench, made, "4", stream)
    finally:
        bench.server.ask("CONFIG", "SET", "maxmemory", 0)
        bench.server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    confirmed = 0
    for n, stream in enumerate(streams):
        count = 4 + (n % 2 == 0)
        for known, position in enumerate(positions[stream]):
            answer = history(bench, made, position, stream=stream)
            if isinstance(answer, list):
                confirmed += 1
                assert answer == [str(number) for number in range(known, count)]
        assert isinstance(history(bench, made, None, start, stream), str)
    assert 0 < confirmed < 750


@pytest.mark.statement("BR-59")
def test_a_server_that_comes_back_empty_or_with_old_data_begins_new_epochs(server: RedisServer) -> None:
    with brokers(server) as bench:
        made, other = bench.make(), bench.make()
        positions = fill(bench, made, 2)
        server.ask("SAVE")
        positions += fill(bench, made, 2)[1:]
        since = int(made.redis.now()) - 10
        for _ in range(2):
            server.kill()
            server.start()
            bench.reactor.until(lambda: not (made.broker.problem() or other.broker.problem()))
            tail = bench.run(made.broker.tail("chat"))
            assert tail.epoch != positions[-1].epoch
            assert {history(bench, made, position) for position in positions} <= {"unknown_epoch", "future_offset"}
            assert isinstance(history(bench, other, None, since), str)
            receipt = publish(bench, other, '"new"')
            assert receipt.offset > positions[-1].offset
            assert receipt.epoch == tail.epoch
            assert history(bench, made, tail) == ['"new"']
            positions.append(Position(receipt.epoch, receipt.offset))
            (server.directory / "dump.rdb").unlink(missing_ok=True)
        bench.reactor.until(lambda: made.node.bus and other.node.bus)


@pytest.mark.statement("BR-59")
def test_a_replica_that_becomes_the_master_begins_new_epochs() -> None:
    with (
        redis_server() as server,
        redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica,
        brokers(server) as bench,
    ):
        made = bench.make(redis_min_replicas=1)
        while b"master_link_status:up" not in replica.ask("INFO", "replication"):
            pass
        positions = fill(bench, made, 3)
        replica.ask("REPLICAOF", "NO", "ONE")
        with turned_by(bench, replica) as second:
            now = second.make()
            assert {history(second, now, position) for position in positions} == {"unknown_epoch"}
            assert publish(second, now).offset > positions[-1].offset


@pytest.mark.statement("BR-57")
def test_without_enough_replicas_nothing_is_acknowledged_and_a_retry_is_no_second_message(bench: Brokers) -> None:
    strict, lax = bench.make(redis_min_replicas=1), bench.make()
    start = bench.run(lax.broker.tail("chat"))
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            publish(bench, strict, id="p-1")
    assert publish(bench, lax, id="p-1").duplicate
    assert history(bench, lax, start) == ["{}"]


def test_forgotten_scripts_are_sent_again(bench: Brokers) -> None:
    for made in (bench.make(), bench.make(redis_min_replicas=0)):
        positions = fill(bench, made, 1)
        bench.server.ask("SCRIPT", "FLUSH")
        publish(bench, made, "1")
        assert history(bench, made, positions[1]) == ["1"]


def test_an_entry_that_is_no_message_refuses_the_answer(bench: Brokers) -> None:
    made = bench.make()
    (start, first) = fill(bench, made, 1)
    bench.server.ask("XADD", LOG, f"{first.offset + 1}-0", "d", "nonsense", "t", "1", "z", "1")
    bench.server.ask("HSET", RECORD, "o", first.offset + 1, "t", round(made.redis.now() * 1000))
    bench.server.ask("XADD", LOG, f"{first.offset + 2}-0", "d", "x", "t", round(made.redis.now() * 1000), "z", "1")
    bench.server.ask("HSET", RECORD, "o", first.offset + 2)
    assert history(bench, made, Position(start.epoch, first.offset + 1)) == "unavailable"


def test_without_redis_everything_is_unavailable(server: RedisServer) -> None:
    with redis_server() as gone, brokers(gone) as bench:
        made = bench.make()
        assert made.broker.problem() == ""
        gone.kill()
        broker = made.broker
        for work in (
            lambda: broker.publish(Publication("chat", b"1")),
            lambda: broker.publish(Publication("chat", b"1", transient=True)),
            lambda: broker.tail("chat"),
            lambda: broker.history("chat", HistoryRequest()),
            lambda: broker.save_session("a", "user-1", b"record"),
            lambda: broker.join("room", "a", "alice", None),
            lambda: broker.members("room"),
        ):
            with pytest.raises(BrokerUnavailable):
                bench.run(work())
        assert made.broker.problem()
        bench.run(broker._tick())
        assert made.metrics.value("broker_errors_total") >= 1
        gone.start()
        bench.reactor.until(lambda: not made.broker.problem())
        publish(bench, made)


def test_a_broker_that_is_stopped_is_unavailable(bench: Brokers) -> None:
    made = bench.make()
    bench.run(made.broker.stop())
    with pytest.raises(BrokerUnavailable):
        publish(bench, made)
    bench.run(made.broker.stop())


def test_the_announcement_says_what_is_kept_and_no_secrets(bench: Brokers) -> None:
    port = bench.server.port
    assert bench.make().broker.announcement == (
        f"Using Redis broker at 127.0.0.1:{port} (history limit: 5, history ttl: 60s, sessions ttl: 30s, "
        "presence ttl: 10s)"
    )


@contextmanager
def turned_by(bench: Brokers, server: Place) -> Iterator[Brokers]:
    """More brokers, on another server, with the reactor of *bench*."""
    made = Brokers(server, bench.reactor)
    try:
        yield made
    finally:
        made.close()
