"""The NATS broker's stream logs on a real server: what is proven, and what happens when a log is not what it was."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from time import sleep, time
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import ILogObserver, globalLogPublisher

from anycable_tx.background import sleep as pause
from anycable_tx.brokers.nats_log import READS
from anycable_tx.brokers.nats_logs import GONE
from anycable_tx.cable.messages import History, HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from anycable_tx.nats.api import NatsUnavailable, TooLarge
from anycable_tx.nats.jetstream import JetStreamError
from anycable_tx.testing.nats_servers import NatsServer
from tests.brokers.nats_support import Brokers, Made, brokers

#: What is kept only for two seconds, so that it can be waited for.
SHORT: dict[str, Any] = {"history_ttl": 0.2, "sessions_ttl": 1.0, "presence_ttl": 1.0, "idempotency_ttl": 1.0}
KEEP = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with NatsServer("max_payload: 65536") as running:
        yield running


@pytest.fixture
def nodes(server: NatsServer) -> Iterator[Brokers]:
    with brokers(server.url) as made:
        yield made


def publish(nodes: Brokers, made: Made, stream: str = "chat", text: str = "0", **fields: Any) -> Receipt:
    receipt: Receipt = nodes.run(made.broker.publish(Publication(stream, text.encode(), **fields)))
    return receipt


def fill(nodes: Brokers, made: Made, count: int, stream: str = "chat") -> list[Position]:
    """The positions of so many new messages."""
    receipts = [publish(nodes, made, stream, str(number)) for number in range(count)]
    return [Position(receipt.epoch, receipt.offset) for receipt in receipts]


def tail(nodes: Brokers, made: Made, stream: str = "chat") -> Position:
    position: Position = nodes.run(made.broker.tail(stream))
    return position


def ask(nodes: Brokers, made: Made, position: Position | None, stream: str = "chat", since: int = 0) -> History:
    history: History = nodes.run(made.broker.history(stream, HistoryRequest(position, since)))
    return history


def texts(nodes: Brokers, made: Made, position: Position | None, stream: str = "chat", since: int = 0) -> list[str]:
    return [each.payload.decode() for each in ask(nodes, made, position, stream, since).messages]


def refusal(nodes: Brokers, made: Made, position: Position | None, stream: str = "chat", since: int = 0) -> str:
    with pytest.raises(HistoryRefused) as refused:
        ask(nodes, made, position, stream, since)
    return refused.value.reason


def logs(nodes: Brokers, server: NatsServer, kind: str = "default") -> list[str]:
    """The names of the logs of a class."""
    return server.api("STREAM.NAMES", {"subject": nodes.names.all_stored(kind)}).get("streams") or []


def config(nodes: Brokers, server: NatsServer, kind: str = "default") -> dict[str, Any]:
    (name,) = logs(nodes, server, kind)
    found: dict[str, Any] = server.api(f"STREAM.INFO.{name}")["config"]
    return found


def check(nodes: Brokers, made: Made) -> None:
    """What is done every 30 seconds."""
    made.broker._checked = float("-inf")
    nodes.run(made.broker.check())


# -- the log itself


def test_a_log_is_configured_so_that_it_only_forgets_the_oldest(nodes: Brokers, server: NatsServer) -> None:
    nodes.make(history_limit=100, history_ttl=300.0, sessions_ttl=300.0, idempotency_ttl=120.0)
    found = config(nodes, server)
    wanted = {
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "max_msgs_per_subject": 101,
        "max_age": 3_000_000_000_000,
        "duplicate_window": 120_000_000_000,
        "max_msgs": -1,
        "max_bytes": -1,
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
        "num_replicas": 1,
        "subjects": [nodes.names.all_stored("default")],
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["republish"] == {"src": nodes.names.all_stored("default"), "dest": nodes.names.all_live("default")}


def test_nodes_that_start_at_once_share_one_log(server: NatsServer) -> None:
    # A single server of today may make two logs when it is asked twice at once.
    for _ in range(8):
        with brokers(server.url) as nodes:
            made = [nodes.make(start=False) for _ in range(5)]
            nodes.run(gatherResults([Deferred.fromCoroutine(each.broker.start()) for each in made]))
            receipts = [publish(nodes, each) for each in made]
            assert len(logs(nodes, server)) == 1
            assert len({receipt.epoch for receipt in receipts}) == 1
            offsets = [receipt.offset for receipt in receipts]
            assert offsets == sorted(set(offsets))
            first = Position(receipts[0].epoch, receipts[0].offset)
            assert len(texts(nodes, made[0], first)) == len(made) - 1


@pytest.mark.statement("BR-63", "F53")
def test_ten_thousand_streams_are_one_log_without_consumers(nodes: Brokers, server: NatsServer) -> None:
    made = nodes.make()
    before = server.api("INFO")

    async def publish_all(streams: range) -> None:
        for number in streams:
            await made.broker.publish(Publication(f"stream/{number}", b"1"))

    lanes = [Deferred.fromCoroutine(publish_all(range(lane, 10_000, 100))) for lane in range(100)]
    nodes.run(gatherResults(lanes), 60)
    for number in (0, 4_321, 9_999):
        assert texts(nodes, made, None, f"stream/{number}", int(time()) - 60) == ["1"]
    after = server.api("INFO")
    assert after["streams"] == before["streams"]
    assert after["consumers"] == 0
    assert logs(nodes, server) == [f"{nodes.prefix.upper()}_H_default_{tail(nodes, made).epoch}"]


@pytest.mark.statement("BR-70")
def test_classes_have_logs_of_their_own(nodes: Brokers, server: NatsServer) -> None:
    rules = (
        {"match": "chat/*", "class": "big", "history_limit": 50},
        {"match": "typing:*", "class": "typing", "history_limit": 0},
    )
    made = nodes.make(broker_rules=rules)
    assert config(nodes, server, "big")["max_msgs_per_subject"] == 51
    assert config(nodes, server)["max_msgs_per_subject"] == 6
    assert logs(nodes, server, "typing") == []
    positions = fill(nodes, made, 60, "chat/1")
    assert len(texts(nodes, made, positions[9], "chat/1")) == 50
    assert refusal(nodes, made, positions[8], "chat/1") == "trimmed"
    assert positions[0].epoch != tail(nodes, made, "chat").epoch
    assert publish(nodes, made, "typing:1") == Receipt(0, "")


def test_rules_of_one_class_keep_their_own_limits(nodes: Brokers, server: NatsServer) -> None:
    made = nodes.make(broker_rules=({"match": "little/*", "class": "default", "history_limit": 2},))
    assert config(nodes, server)["max_msgs_per_subject"] == 6
    positions = fill(nodes, made, 4, "little/1")
    assert texts(nodes, made, positions[1], "little/1") == ["2", "3"]
    assert refusal(nodes, made, positions[0], "little/1") == "trimmed"
    assert refusal(nodes, made, None, "little/1", int(time()) - 5) == "trimmed"


def test_a_log_of_somebody_else_is_a_problem_that_is_told(nodes: Brokers, server: NatsServer) -> None:
    server.api("STREAM.CREATE.THEIRS", {"name": "THEIRS", "subjects": [f"{nodes.prefix}.>"]})
    made = nodes.make()
    assert "THEIRS" in made.broker.problem()
    with pytest.raises(BrokerUnavailable, match="THEIRS"):
        publish(nodes, made)
    server.api("STREAM.DELETE.THEIRS")
    check(nodes, made)
    assert publish(nodes, made).offset == 1


# -- publishing


@pytest.mark.statement("F34")
@pytest.mark.parametrize("id", ["", "p 1/ü"])
def test_a_lost_answer_does_not_store_twice(nodes: Brokers, monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    made = nodes.make()
    nodes.listen(made, "chat")
    js = made.broker._js
    store, attempts = js.publish, []

    async def lossy(*args: Any, **options: Any) -> Any:
        attempts.append(await store(*args, **options))
        if len(attempts) == 1:
            raise NatsUnavailable("no answer")
        return attempts[-1]

    monkeypatch.setattr(js, "publish", lossy)
    receipt = publish(nodes, made, id=id)
    assert (receipt.offset, len(attempts)) == (1, 2)
    assert publish(nodes, made, text='"next"').offset == 2
    nodes.settle(made, 2)
    assert [each.offset for each in made.messages] == [1, 2]


@pytest.mark.statement("BR-21", "F36")
def test_an_id_on_two_nodes_at_once_is_stored_once(nodes: Brokers) -> None:
    made = [nodes.make(), nodes.make()]
    work = [
        Deferred.fromCoroutine(each.broker.publish(Publication("chat", b"1", id="same")))
        for _ in range(20)
        for each in made
    ]
    receipts = nodes.run(gatherResults(work))
    assert len({(receipt.epoch, receipt.offset) for receipt in receipts}) == 1
    assert [receipt.duplicate for receipt in receipts].count(False) == 1
    assert len(texts(nodes, made[0], None, since=int(time()) - 5)) == 1


@pytest.mark.statement("BR-56")
def test_all_nodes_see_one_order(nodes: Brokers) -> None:
    made = [nodes.make(history_limit=50), nodes.make(history_limit=50)]
    for each in made:
        nodes.listen(each, "chat")
    for number in range(20):
        publish(nodes, made[number % 2], text=str(number))
    for each in made:
        nodes.settle(each, 20)
        assert [int(message.payload) for message in each.messages] == list(range(20))
        assert all(a.offset == b.prev < b.offset for a, b in pairwise(each.messages))


@pytest.mark.statement("BR-57")
def test_what_a_node_stored_is_there_when_it_is_gone_at_once(nodes: Brokers) -> None:
    one, two = nodes.make(), nodes.make()
    nodes.listen(two, "chat")
    receipt = publish(nodes, one, text='"kept"')
    nodes.kill(one)
    nodes.settle(two, 1)
    assert (two.messages[0].offset, two.messages[0].epoch) == (receipt.offset, receipt.epoch)
    assert texts(nodes, two, Position(receipt.epoch, 0)) == ['"kept"']


def test_what_no_server_takes_is_not_tried_again(nodes: Brokers) -> None:
    made = nodes.make()
    began = time()
    with pytest.raises(TooLarge):
        publish(nodes, made, text='"' + "x" * 70_000 + '"')
    assert time() - began < 0.5
    assert made.broker.problem() == ""


@pytest.mark.statement("F42")
def test_a_full_store_refuses_loudly_and_readiness_tells() -> None:
    limits = "accounts { A { jetstream { max_file: 65536 }, users: [{user: u, password: p}] } }"
    with NatsServer(limits, credentials="u:p") as server, brokers(server.url) as nodes:
        made = nodes.make()
        stored: list[Receipt] = []

        def fill_up(size: int) -> None:
            while True:
                stored.append(publish(nodes, made, f"s{len(stored)}", '"' + "x" * size + '"'))

        for size in (2000, 10):
            with pytest.raises(JetStreamError):
                fill_up(size)
        nodes.run(made.broker._check())
        assert made.broker.problem() != ""
        assert texts(nodes, made, Position(stored[-1].epoch, stored[-1].offset), f"s{len(stored) - 1}") == []


@pytest.mark.statement("F56", "BR-69")
def test_before_jetstream_is_ready_nothing_is_accepted_and_then_everything_works() -> None:
    server = NatsServer(jetstream=False)
    with server, brokers(server.url) as nodes:
        made = nodes.make(sweeps=True)
        assert "JS.API" in made.broker.problem()
        refused = Deferred.fromCoroutine(made.broker.publish(Publication("chat", b"1")))
        for _ in range(20):
            nodes.reactor.pass_time(0.5)
            nodes.run(pause(nodes.reactor, 0.0))
        with pytest.raises(BrokerUnavailable):
            nodes.run(refused)
        with pytest.raises(BrokerUnavailable):
            tail(nodes, made)
        with pytest.raises(BrokerUnavailable):
            ask(nodes, made, Position("e", 0))
        waiting = Deferred.fromCoroutine(made.broker.publish(Publication("chat", b"1")))
        server.stop()
        server.jetstream = True
        server.configure()
        server.start()
        assert nodes.run(waiting).offset == 1
        nodes.reactor.until(lambda: not made.broker.problem())
        assert texts(nodes, made, None, since=int(time()) - 60) == ["1"]


def test_without_a_server_a_start_ends_and_goes_on_trying() -> None:
    server = NatsServer()
    try:
        with brokers(server.url) as nodes:
            made = nodes.make(start=False)
            starting = Deferred.fromCoroutine(made.broker.start())
            nodes.reactor.pass_time(5.0)
            nodes.run(starting)
            assert made.broker.problem() != ""
            with pytest.raises(BrokerUnavailable):
                tail(nodes, made)
            server.start()
            nodes.reactor.until(lambda: not made.broker.problem(), 20)
            assert publish(nodes, made).offset == 1
    finally:
        server.close()


# -- positions


def test_a_quiet_stream_stays_provable_however_busy_others_are(nodes: Brokers) -> None:
    one, two = nodes.make(), nodes.make()
    fresh = tail(nodes, one, "quiet")
    fill(nodes, one, 30, "busy")
    check(nodes, one)
    marked = tail(nodes, one, "quiet")
    assert marked.offset == 31
    fill(nodes, one, 30, "busy")
    for made in (one, two):  # the other one did not see the mark being made
        for position in (fresh, marked):
            assert texts(nodes, made, position, "quiet") == []
    publish(nodes, one, "quiet", '"first"')
    for made in (one, two):
        for position in (fresh, marked):
            assert texts(nodes, made, position, "quiet") == ['"first"']


def test_an_offset_of_another_stream_is_no_position(nodes: Brokers) -> None:
    made = nodes.make()
    positions = fill(nodes, made, 3, "other")
    fill(nodes, made, 1)
    later = fill(nodes, made, 2, "other")
    assert refusal(nodes, made, positions[1]) == "future_offset"
    assert refusal(nodes, made, later[0]) == "future_offset"
    assert refusal(nodes, made, later[0], "nothing there") == "future_offset"


def test_positions_outlive_what_is_kept_as_long_as_nothing_can_have_been_missed(nodes: Brokers) -> None:
    made, other = nodes.make(**SHORT), nodes.make(**SHORT)
    (old,) = fill(nodes, made, 1)
    ends = [old]
    for _ in range(10):  # longer than anything is kept
        sleep(KEEP / 6)
        publish(nodes, made, "busy")
        check(nodes, made)
        ends.append(tail(nodes, made))
        for each in (made, other):
            history = ask(nodes, each, ends[-2])
            assert history.messages == []
            assert history.top >= ends[-2]
    assert ends == sorted(ends)
    assert ends[-1] > old
    assert refusal(nodes, made, old) == "expired"
    publish(nodes, made, text='"new"')
    for each in (made, other):
        assert texts(nodes, each, ends[-1]) == ['"new"']
        assert refusal(nodes, each, old) == "expired"


def test_what_nobody_knows_any_more_is_not_confirmed(nodes: Brokers) -> None:
    made = nodes.make(**SHORT)
    begin = tail(nodes, made)
    start = int(time())
    publish(nodes, made)
    for _ in range(4):
        sleep(KEEP / 3)
        publish(nodes, made, "busy")
    assert refusal(nodes, made, begin) == "expired"
    assert refusal(nodes, made, None, since=start) == "expired"
    assert texts(nodes, made, None, since=int(time())) == []


def test_whoever_has_the_newest_message_of_an_old_and_empty_log_has_everything(nodes: Brokers) -> None:
    made = nodes.make(**SHORT)
    position = fill(nodes, made, 2)[-1]
    sleep(KEEP + 0.4)
    assert texts(nodes, made, position) == []


@pytest.mark.statement("P4", "F37", "F38")
def test_answers_are_whole_or_refused_whatever_was_published(nodes: Brokers) -> None:
    """Every position that anybody was told is asked for again and again, on both nodes."""
    made = [nodes.make(**SHORT, history_limit=3), nodes.make(**SHORT, history_limit=3)]
    chance = random.Random(7)
    truth: dict[str, list[tuple[int, str, float]]] = {name: [] for name in "abc"}
    told: dict[str, list[tuple[Position, float]]] = {name: [] for name in "abc"}
    served = refused = 0
    end = time() + 5
    number = 0
    while time() < end:
        stream = chance.choice("aaabbc" if time() < end - 3 else "aaa")
        node = chance.choice(made)
        what = chance.random()
        if what < 0.3:
            number += 1
            receipt = publish(nodes, node, stream, str(number))
            truth[stream].append((receipt.offset, str(number), time()))
            told[stream].append((Position(receipt.epoch, receipt.offset), time()))
        elif what < 0.4:
            told[stream].append((tail(nodes, node, stream), time()))
        elif what < 0.45:
            check(nodes, node)
        elif what < 0.5:
            sleep(0.1)
        elif told[stream]:
            position, when = chance.choice(told[stream][-12:])
            missed = [text for offset, text, _ in truth[stream] if offset > position.offset]
            try:
                history = ask(nodes, node, position, stream)
            except HistoryRefused:
                refused += 1
                fresh = all(stored > time() - 0.15 for offset, _, stored in truth[stream] if offset > position.offset)
                assert not (len(missed) <= 3 and fresh and time() - when < KEEP / 2), (position, missed)
            else:
                served += 1
                assert [each.payload.decode() for each in history.messages] == missed
                assert history.top >= position
    assert served > 50
    assert refused > 5


def test_a_stranger_s_message_is_left_out(nodes: Brokers, server: NatsServer) -> None:
    made = nodes.make()
    (position,) = fill(nodes, made, 1)
    server.publish(nodes.names.stored("default", "chat"), b"no json")
    publish(nodes, made, text='"good"')
    history = ask(nodes, made, position)
    assert [(each.payload, each.offset, each.prev) for each in history.messages] == [(b'"good"', 3, 1)]


def test_a_replica_that_lags_behind_is_made_up_for(nodes: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nodes.make()
    positions = fill(nodes, made, 5)
    js = made.broker._js
    read = js.read

    async def lagging(*args: Any) -> Any:
        return [each for each in await read(*args) if each.offset < 4]

    monkeypatch.setattr(js, "read", lagging)
    for number, position in enumerate(positions):
        assert texts(nodes, made, position) == [str(n) for n in range(number + 1, 5)]
    assert texts(nodes, made, None, since=int(time()) - 5) == ["0", "1", "2", "3", "4"]


@pytest.mark.statement("BR-65", "F52")
def test_without_a_leader_only_what_is_anchored_is_served(nodes: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nodes.make()
    positions = fill(nodes, made, 3)
    fresh = tail(nodes, made, "fresh")

    async def gone(*args: Any) -> Any:
        raise NatsUnavailable("no leader")

    monkeypatch.setattr(made.broker._js, "last", gone)
    monkeypatch.setattr(made.broker._js, "next", gone)
    assert texts(nodes, made, positions[0]) == ["1", "2"]
    assert texts(nodes, made, positions[2]) == []
    with pytest.raises(BrokerUnavailable):
        ask(nodes, made, fresh, "fresh")
    with pytest.raises(BrokerUnavailable):
        tail(nodes, made)


def test_only_so_many_histories_are_read_at_a_time(nodes: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nodes.make()
    (position,) = fill(nodes, made, 1)
    js = made.broker._js
    last, under_way, most = js.last, 0, 0

    async def counted(*args: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        found = await last(*args)
        under_way -= 1
        return found

    monkeypatch.setattr(js, "last", counted)
    work = [Deferred.fromCoroutine(made.broker.history("chat", HistoryRequest(position))) for _ in range(200)]
    assert all(history.messages == [] for history in nodes.run(gatherResults(work)))
    assert 1 < most <= READS


# -- a log that is not what it was


@pytest.mark.statement("BR-67", "F54", "BR-43")
def test_a_log_that_an_operator_deleted_is_made_anew_by_the_next_publish(nodes: Brokers, server: NatsServer) -> None:
    made, other = nodes.make(), nodes.make()
    position = fill(nodes, made, 3)[-1]
    start = int(time())
    server.api(f"STREAM.DELETE.{logs(nodes, server)[0]}")
    sleep(1.1)
    receipt = publish(nodes, made, text='"new"')
    assert receipt.epoch != position.epoch
    assert made.node.bus == ["restored"]
    for each in (made, other):
        assert refusal(nodes, each, position) == "unknown_epoch"
        assert refusal(nodes, each, None, since=start) == "expired"
        assert texts(nodes, each, Position(receipt.epoch, 0)) == ['"new"']
        assert each.node.bus == ["restored"]
    assert len(logs(nodes, server)) == 1


@pytest.mark.statement("BR-67", "F54", "F40")
@pytest.mark.parametrize("how", ["check", "tail", "history", "since"])
def test_a_deleted_log_is_noticed_by_whatever_is_done_next(nodes: Brokers, server: NatsServer, how: str) -> None:
    made = nodes.make()
    position = fill(nodes, made, 3)[-1]
    server.api(f"STREAM.DELETE.{logs(nodes, server)[0]}")
    if how == "check":
        check(nodes, made)
    elif how == "tail":
        assert tail(nodes, made).epoch != position.epoch
    elif how == "history":
        assert refusal(nodes, made, position) == "unknown_epoch"
    else:
        assert refusal(nodes, made, None, since=int(time()) - 2) == "expired"
    assert made.node.bus == ["restored"]
    assert tail(nodes, made).epoch != position.epoch


def test_a_node_that_knew_better_puts_right_what_one_that_did_not_know_has_made(
    nodes: Brokers, server: NatsServer
) -> None:
    made = nodes.make()
    fill(nodes, made, 3)
    start = int(time())
    server.api(f"STREAM.DELETE.{logs(nodes, server)[0]}")
    ignorant = nodes.make()
    assert texts(nodes, ignorant, None, since=start - 5) == []
    sleep(1.1)
    check(nodes, made)
    assert made.node.bus == ["restored"]
    assert refusal(nodes, ignorant, None, since=start) == "expired"


@pytest.mark.statement("F41", "F55")
@pytest.mark.parametrize("how", ["publish", "check"])
def test_a_log_that_was_put_back_to_an_older_state_is_replaced(how: str) -> None:
    with NatsServer() as server, brokers(server.url) as nodes:
        made = nodes.make()
        nodes.listen(made, "chat")
        fill(nodes, made, 3)
        server.stop()
        shutil.copytree(server.directory / "jetstream", server.directory / "older")
        server.start()
        nodes.reactor.until(lambda: not made.nats.problem())
        lost = fill(nodes, made, 3)
        server.stop()
        shutil.rmtree(server.directory / "jetstream")
        shutil.copytree(server.directory / "older", server.directory / "jetstream")
        made.node.bus.clear()
        if how == "publish":
            made.broker._serving = False  # it does not look by itself when it is back
        server.start()
        nodes.reactor.until(lambda: not made.nats.problem())
        made.broker._serving = True
        if how == "publish":
            receipt = publish(nodes, made, text='"after"')
        else:
            nodes.reactor.until(lambda: made.node.bus)
            receipt = publish(nodes, made, text='"after"')
        assert receipt.epoch != lost[0].epoch
        assert made.node.bus == ["restored"]
        for position in lost:
            assert refusal(nodes, made, position) == "unknown_epoch"
        assert texts(nodes, made, Position(receipt.epoch, 0)) == ['"after"']
        assert refusal(nodes, made, None, since=int(time()) - 60) == "expired"
        nodes.reactor.until(lambda: made.messages and made.messages[-1].epoch == receipt.epoch)


@pytest.mark.statement("F55")
def test_a_store_that_is_gone_is_a_new_epoch() -> None:
    with NatsServer() as server, brokers(server.url) as nodes:
        made = nodes.make()
        position = fill(nodes, made, 3)[-1]
        server.kill()
        shutil.rmtree(server.directory / "jetstream")
        server.start()
        nodes.reactor.until(lambda: "restored" in made.node.bus)
        assert refusal(nodes, made, position) == "unknown_epoch"
        assert publish(nodes, made).epoch != position.epoch


def test_the_word_of_a_leader_that_is_behind_is_no_proof(
    nodes: Brokers, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = nodes.make()
    position = fill(nodes, made, 3)[-1]
    facts = made.broker._logs.facts

    async def behind(log: Any) -> Any:
        return (await facts(log))._replace(last=1)

    monkeypatch.setattr(made.broker._logs, "facts", behind)
    check(nodes, made)
    assert made.node.bus == []
    assert texts(nodes, made, position) == []


# -- other settings


@pytest.mark.statement("BR-62")
def test_other_limits_are_applied_to_the_log_there_is(nodes: Brokers, server: NatsServer) -> None:
    made = nodes.make(history_limit=5)
    positions = fill(nodes, made, 6)
    changed = nodes.make(history_limit=8, history_ttl=90.0)
    assert config(nodes, server)["max_msgs_per_subject"] == 9
    assert config(nodes, server)["max_age"] == 900_000_000_000
    assert texts(nodes, changed, positions[0]) == ["1", "2", "3", "4", "5"]
    more = fill(nodes, changed, 3)
    assert more[0].epoch == positions[0].epoch
    assert len(texts(nodes, changed, positions[0])) == 8
    assert changed.node.bus == made.node.bus == []


@pytest.mark.statement("BR-62", "P4")
def test_what_made_room_under_a_lower_limit_is_still_missed_under_a_higher_one(nodes: Brokers) -> None:
    made = nodes.make(history_limit=3)
    begin = tail(nodes, made)
    start = int(time()) - 1
    fill(nodes, made, 6)
    changed = nodes.make(history_limit=50)
    assert refusal(nodes, changed, begin) == "trimmed"
    assert refusal(nodes, changed, None, since=start) == "trimmed"
    fill(nodes, changed, 1, "another")
    assert texts(nodes, changed, begin, "another") == ["0"]
    assert texts(nodes, changed, None, "another", since=start) == ["0"]


@pytest.mark.statement("BR-62", "P4")
def test_what_grew_too_old_under_a_shorter_time_is_still_missed_under_a_longer_one(nodes: Brokers) -> None:
    made = nodes.make(**SHORT)
    begin, start = tail(nodes, made), int(time())
    fill(nodes, made, 1)
    sleep(KEEP + 0.7)
    fill(nodes, made, 1, "another")
    changed = nodes.make(history_ttl=60.0)
    assert refusal(nodes, changed, None, since=start) == "expired"
    assert refusal(nodes, changed, begin) == "expired"


def test_of_a_log_with_an_operator_s_own_words_nothing_is_taken_for_granted(
    nodes: Brokers, server: NatsServer
) -> None:
    made = nodes.make()
    position = fill(nodes, made, 2)[0]
    changed = {**config(nodes, server), "description": "ours"}
    server.api(f"STREAM.UPDATE.{changed['name']}", changed)
    assert texts(nodes, made, position) == ["1"]
    assert refusal(nodes, made, None, since=int(time()) - 1) in ("expired", "trimmed")


def test_a_log_that_is_deleted_while_it_is_read_is_read_again(
    nodes: Brokers, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = nodes.make()
    position = fill(nodes, made, 2)[0]
    js = made.broker._js
    last = js.last
    deleted: list[Any] = []

    async def deletes(*args: Any) -> Any:
        if not deleted:
            deleted.append(server.api(f"STREAM.DELETE.{logs(nodes, server)[0]}"))
            raise JetStreamError(404, GONE, "stream not found")
        return await last(*args)

    monkeypatch.setattr(js, "last", deletes)
    assert refusal(nodes, made, position) == "unknown_epoch"


# -- what people see


def test_it_says_where_it_keeps_what_and_no_secrets() -> None:
    settings: dict[str, Any] = {
        "history_limit": 100,
        "history_ttl": 300.0,
        "sessions_ttl": 300.0,
        "presence_ttl": 15.0,
    }
    with brokers("nats://user:secret@127.0.0.1:1") as nodes:
        made = nodes.make(start=False, **settings)
        assert made.broker.announcement == (
            "Using NATS broker: 127.0.0.1:1 "
            "(history limit: 100, history ttl: 300s, sessions ttl: 300s, presence ttl: 15s)"
        )
        with pytest.raises(BrokerUnavailable, match="not started"):
            publish(nodes, made)


def test_it_says_when_it_is_ready_and_in_which_epoch(nodes: Brokers) -> None:
    records: list[Any] = []
    observer = cast(ILogObserver, records.append)
    globalLogPublisher.addObserver(observer)
    try:
        made = nodes.make()
    finally:
        globalLogPublisher.removeObserver(observer)
    (ready,) = [each for each in records if each["log_format"] == "NATS broker is ready"]
    assert ready["attrs"] == {"context": "broker", "epoch": tail(nodes, made).epoch}
