"""Publications from a Redis stream: each is stored once, in order, whatever happens to nodes, Redis and broker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from anycable_tx.background import sleep
from anycable_tx.broadcasters import redisx, redisx_entries, redisx_group, redisx_leader
from anycable_tx.broadcasters.redisx import create
from anycable_tx.broadcasters.redisx_leader import Lease, lease_key
from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.redis.api import RedisUnavailable
from anycable_tx.testing.redis_servers import redis_server
from tests.pubsub.redis_support import Place, place, servers

S = "__anycable__"
G = "bx"
LEASE = lease_key(S)


class Store:
    """What several nodes store in; one id once."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.by: list[StoreNode] = []
        self.ids: set[str] = set()
        self.duplicates = 0

    def payloads(self) -> list[str]:
        return [publication.payload.decode() for publication in self.published]


class StoreNode:
    """The publishing half of INode. It can be down, slow by so many seconds, or fail on a payload."""

    def __init__(self, site: Place, store: Store | None = None) -> None:
        self.site = site
        self.store = store or Store()
        self.down = False
        self.down_for: set[str] = set()
        self.slow = 0.0
        self.bug = b""
        self.attempts = 0
        self.commands: list[RemoteCommand] = []

    def publish(self, publication: Publication) -> Deferred[Receipt]:
        self.attempts += 1
        if self.bug and publication.payload == self.bug:
            return fail(ZeroDivisionError("a bug"))
        if self.down or publication.stream in self.down_for:
            return fail(BrokerUnavailable("it is down"))
        return Deferred.fromCoroutine(self._store(publication))

    async def _store(self, publication: Publication) -> Receipt:
        if self.slow:
            await sleep(self.site.reactor, self.slow)
        duplicate = publication.id in self.store.ids
        if duplicate:
            self.store.duplicates += 1
        else:
            self.store.ids.add(publication.id)
            self.store.published.append(publication)
            self.store.by.append(self)
        return Receipt(len(self.store.published), "e", duplicate)

    def broadcast_command(self, command: RemoteCommand) -> Deferred[None]:
        self.commands.append(command)
        return succeed(None)


@pytest.fixture(scope="module")
def running():
    with servers() as get:
        yield get


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Redis measures time itself, so waiting for it is made short."""
    monkeypatch.setattr(Lease, "LENGTH", 0.8)
    monkeypatch.setattr(Lease, "MARGIN", 0.1)
    monkeypatch.setattr(Lease, "RENEW_EACH", 0.2)
    for name, seconds in {
        "IDLE": 0.6, "HOLD_ON": 0.15, "TRUST": 0.5, "CLAIM_EACH": 0.1, "STANDBY": 0.1, "TICK": 0.05, "FINISH": 0.5,
    }.items():  # fmt: skip
        monkeypatch.setattr(redisx, name, seconds)


@pytest.fixture
def site(running):
    with place(running("redis")) as site:
        yield site


@pytest.fixture(params=["redis", "valkey"])
def each(request, running):
    with place(running(request.param)) as site:
        yield site


@pytest.fixture(params=["leader", "shared"])
def mode(request):
    return request.param


def start(site: Place, node: StoreNode | None = None, *, mode: str = "leader", **settings: Any) -> Any:
    settings = {"redisx_mode": mode, "redisx_read_block_milliseconds": 200, **settings}
    return site.start(create, node or StoreNode(site), **settings)


def add(site: Place, payload: Any, stream: str = S) -> str:
    text = payload if isinstance(payload, (str, bytes)) else json.dumps(payload)
    return site.server.ask("XADD", stream, "*", "payload", text).decode()


def publish(site: Place, *numbers: int, to: str = "a") -> None:
    for number in numbers:
        add(site, {"stream": to, "data": str(number)})


def numbers(*found: int) -> list[str]:
    return [str(number) for number in found]


def left(site: Place) -> tuple[int, int]:
    """How many entries the stream has, and how many are pending."""
    return site.server.ask("XLEN", S), site.server.ask("XPENDING", S, G)[0]


def dead(site: Place) -> list[dict[str, str]]:
    entries = site.server.ask("XRANGE", f"{S}:dead", "-", "+")
    return [
        {fields[i].decode(): fields[i + 1].decode("utf-8", "replace") for i in range(0, len(fields), 2)}
        for _, fields in entries
    ]


def consumers(site: Place) -> list[str]:
    return [record[1].decode() for record in site.server.ask("XINFO", "CONSUMERS", S, G)]


# -- the way of an entry


@pytest.mark.statement("BR-22")
def test_an_entry_is_published_acknowledged_and_deleted(each, mode):
    part = start(each, mode=mode)
    id = add(each, {"stream": "a", "data": "1", "meta": {"broadcast_type": "x"}})
    each.until(lambda: part.node.store.published)
    assert part.node.store.published == [Publication("a", b"1", "", "x", False, f"rx:{S}:{id}")]
    each.until(lambda: left(each) == (0, 0))
    assert each.metrics.value("publications_total") == 1


def test_the_elements_of_a_batch_are_published_in_order_with_ids_of_their_own(site):
    part = start(site)
    id = add(site, [{"stream": "a", "data": "1"}, {"stream": "b", "data": "2"}, {"stream": "a", "data": "3"}])
    site.until(lambda: left(site) == (0, 0) and part.node.store.published)
    assert part.node.store.payloads() == numbers(1, 2, 3)
    assert [p.id for p in part.node.store.published] == [f"rx:{S}:{id}:{k}" for k in range(3)]


def test_a_command_is_handed_on(site):
    part = start(site)
    add(site, {"command": "disconnect", "payload": {"identifier": "u"}})
    site.until(lambda: part.node.commands)
    assert part.node.commands == [RemoteCommand("disconnect", {"identifier": "u", "reconnect": False})]
    site.until(lambda: left(site) == (0, 0))


@pytest.mark.statement("BR-23")
def test_what_is_added_while_nobody_reads_is_published_in_order_once_somebody_does(each, mode):
    each.stop(start(each, mode=mode))
    assert [group[1] for group in each.server.ask("XINFO", "GROUPS", S)] == [b"bx"]
    publish(each, *range(300))
    part = start(each, mode=mode)
    each.until(lambda: left(each) == (0, 0))
    assert part.node.store.payloads() == numbers(*range(300))


def test_what_was_added_before_there_ever_was_a_group_is_not_published(site):
    publish(site, 1)
    part = start(site)
    publish(site, 2)
    site.until(lambda: part.node.store.published)
    assert part.node.store.payloads() == ["2"]


@pytest.mark.statement("BR-6", "BR-24")
def test_what_can_never_be_published_is_put_aside_and_blocks_nothing(site):
    part = start(site)
    bad = ["[null]", '[{"stream":"a","data":"x"},null]', "[" * 10000, "{", "", b"\xff" * 100]
    for text in bad:
        add(site, text)
    site.server.ask("XADD", S, "*", "other", "value")
    publish(site, 1)
    site.until(lambda: left(site) == (0, 0))
    assert part.node.store.payloads() == ["1"]
    found = dead(site)
    assert len(found) == len(bad) + 1
    assert {record["reason"] for record in found if record.get("other")} == {"missing payload field"}
    assert found[0]["payload"] == "[null]"
    assert "null" in found[0]["reason"]
    assert site.metrics.value("failed_broadcast_msg_total") == len(bad) + 1
    assert site.metrics.value("dead_entries_total") == len(bad) + 1
    assert part.problem() == ""


def test_an_entry_that_makes_the_node_fail_is_put_aside(site):
    node = StoreNode(site)
    node.bug = b"1"
    start(site, node)
    publish(site, 1, 2)
    site.until(lambda: left(site) == (0, 0))
    assert node.store.payloads() == ["2"]
    assert dead(site)[0]["reason"] == "ZeroDivisionError: a bug"
    assert site.metrics.value("internal_errors_total") == 1


def test_five_megabytes_of_garbage_are_survived(site):
    part = start(site)
    add(site, b"\x80{[" * 1_700_000)
    publish(site, 1)
    site.until(lambda: part.node.store.payloads() == ["1"])


# -- the broker away


def test_while_the_broker_is_away_everything_waits_and_nothing_overtakes(site, mode):
    part = start(site, mode=mode)
    part.node.down_for = {"a"}
    publish(site, 1, 2)
    publish(site, 3, to="b")
    site.until(lambda: part.node.store.payloads() == ["3"])
    site.reactor.pass_time(0.1)
    site.turn(0.8)  # longer than others wait before they claim
    assert part.node.store.payloads() == ["3"]
    part.node.down_for = set()
    publish(site, 4)
    site.until(lambda: left(site) == (0, 0))
    assert part.node.store.payloads() == numbers(3, 1, 2, 4)
    assert part.node.store.duplicates == 0


def test_no_more_is_read_while_too_much_is_unfinished(site):
    part = start(site)
    part.node.down = True
    publish(site, *range(1500))
    site.until(lambda: left(site)[1] > redisx.MAX_UNFINISHED)
    site.turn(0.3)
    assert left(site)[1] <= redisx.MAX_UNFINISHED + redisx.BATCH
    part.node.down = False
    site.until(lambda: left(site) == (0, 0))
    assert part.node.store.payloads() == numbers(*range(1500))
    assert dead(site) == []


def test_large_entries_are_read_few_at_a_time(site, monkeypatch):
    monkeypatch.setattr(redisx, "MAX_UNFINISHED_BYTES", 100_000)
    site.stop(start(site))
    for _ in range(20):
        add(site, {"stream": "a", "data": "x" * 20_000})
    node = StoreNode(site)
    node.down = True
    part = start(site, node)
    site.turn(0.3)
    assert 100_000 < part._tenure.size < 200_000
    part.node.down = False
    site.until(lambda: len(part.node.store.published) == 20)


# -- a stop


def test_a_stop_removes_the_consumer_and_leaves_the_lead(site, mode):
    part = start(site, mode=mode)
    publish(site, 1)
    site.until(lambda: part.node.store.published)
    assert consumers(site) == [part.consumer]
    site.stop(part)
    assert consumers(site) == []
    assert left(site) == (0, 0)
    assert site.server.ask("EXISTS", LEASE) == 0


@pytest.mark.statement("BR-27")
def test_a_stop_with_a_failing_broker_leaves_the_entries_to_the_next_node(each, mode):
    part = start(each, mode=mode)
    part.node.down = True
    publish(each, 1, 2, 3)
    each.until(lambda: left(each) == (3, 3))
    each.stop(part)
    assert consumers(each) == [part.consumer]
    other = start(each, mode=mode)
    each.until(lambda: left(each) == (0, 0))
    assert other.node.store.payloads() == numbers(1, 2, 3)
    assert part.node.store.published == []


def test_a_stop_finishes_what_is_in_hand(site):
    part = start(site)
    part.node.slow = 0.1
    publish(site, 1, 2, 3)
    site.until(lambda: left(site)[1] == 3)
    site.stop(part)
    assert part.node.store.payloads() == numbers(1, 2, 3)
    assert left(site) == (0, 0)


def test_a_stop_without_redis_ends():
    with redis_server() as server, place(server) as site:
        part = start(site)
        server.kill()
        site.stop(part)


# -- several nodes


@pytest.mark.statement("BR-25")
def test_what_a_dead_node_left_is_published_once_by_another(each, mode):
    store = Store()
    first, second = StoreNode(each, store), StoreNode(each, store)
    part = start(each, first, mode=mode)
    first.slow = 30
    publish(each, 1, 2, 3)
    each.until(lambda: left(each) == (3, 3))
    start(each, second, mode=mode)
    each.abandon(part)
    publish(each, 4)
    each.until(lambda: left(each) == (0, 0))
    assert sorted(store.payloads()) == numbers(1, 2, 3, 4)
    if mode == "leader":
        assert store.payloads() == numbers(1, 2, 3, 4)


def test_a_node_that_can_store_nothing_lets_another_try(site, mode, monkeypatch):
    monkeypatch.setattr(redisx, "STUCK", 0.3)
    monkeypatch.setattr(redisx, "AWAY", 5.0)
    store = Store()
    one, other = StoreNode(site, store), StoreNode(site, store)
    start(site, one, mode=mode)
    one.down = True
    publish(site, 1, 2, 3)
    site.until(lambda: one.attempts)
    start(site, other, mode=mode)
    site.until(lambda: len(store.published) == 3)
    assert store.payloads() == numbers(1, 2, 3)
    assert set(store.by) == {other}
    site.until(lambda: left(site) == (0, 0))


def test_what_was_published_but_not_acknowledged_is_seen_once(site):
    store = Store()
    part = start(site, StoreNode(site, store))
    part._done._redis = Broken(part._redis)
    publish(site, 1, 2)
    site.until(lambda: len(store.published) == 2)
    assert left(site) == (2, 2)
    site.abandon(part)
    start(site, StoreNode(site, store))
    site.until(lambda: left(site) == (0, 0))
    assert store.payloads() == numbers(1, 2)
    assert store.duplicates == 2


def test_an_acknowledgement_that_did_not_arrive_is_sent_again(site):
    part = start(site)
    part._done._redis = Broken(part._redis)
    publish(site, 1)
    site.until(lambda: part.node.store.published)
    site.turn()
    assert left(site) == (1, 1)
    part._done._redis = part._redis
    site.until(lambda: left(site) == (0, 0))
    assert part.node.attempts == 1


class Broken:
    """A client through which nothing comes."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis

    async def pipeline(self, *args: Any) -> Any:
        raise RedisUnavailable("broken")


@pytest.mark.statement("BR-26")
def test_slow_handling_with_a_second_node_duplicates_nothing(site, mode):
    store = Store()
    nodes = [StoreNode(site, store), StoreNode(site, store)]
    for node in nodes:
        node.slow = 0.01
        start(site, node, mode=mode)
    publish(site, *range(200))
    site.until(lambda: left(site) == (0, 0), 15)
    assert sorted(store.payloads(), key=int) == numbers(*range(200))
    assert store.duplicates == 0
    assert nodes[0].attempts + nodes[1].attempts == 200


@pytest.mark.statement("BR-30")
def test_three_nodes_publish_in_the_order_of_the_stream_though_the_leader_is_lost_half_way(each):
    store = Store()
    parts = [start(each, StoreNode(each, store)) for _ in range(3)]
    publish(each, *range(500))
    each.until(lambda: len(store.published) > 100)
    (leader,) = {store.by[0]}
    (part,) = [part for part in parts if part.node is leader]
    leader.slow = 30
    publish(each, *range(500, 600))
    each.abandon(part)
    publish(each, *range(600, 1000))
    each.until(lambda: left(each) == (0, 0), 20)
    assert store.payloads() == numbers(*range(1000))
    assert len(set(store.by)) == 2


def test_in_shared_mode_all_read(site):
    store = Store()
    nodes = [StoreNode(site, store), StoreNode(site, store)]
    for node in nodes:
        start(site, node, mode="shared")
    for number in range(400):
        publish(site, number)
        site.turn(0.001)
    site.until(lambda: left(site) == (0, 0))
    assert sorted(store.payloads(), key=int) == numbers(*range(400))
    assert set(store.by) == set(nodes)


def test_one_that_lost_the_lead_unawares_reads_and_publishes_nothing_more(site):
    store = Store()
    part = start(site, StoreNode(site, store))
    part.node.slow = 0.05
    publish(site, *range(10))
    site.until(lambda: len(store.published) == 1)
    site.server.ask("SET", LEASE, "another", "PX", 60000)
    site.until(lambda: part._tenure.ended)
    site.turn(0.2)
    count = len(store.published)
    publish(site, 10)
    site.turn(0.5)
    assert len(store.published) == count < 10
    assert part.problem() == ""
    site.server.ask("DEL", LEASE)
    site.until(lambda: left(site) == (0, 0))
    assert store.payloads() == numbers(*range(11))
    assert store.duplicates <= 1


def test_one_that_does_not_know_that_it_lost_the_lead_takes_nothing(site, monkeypatch):
    monkeypatch.setattr(Lease, "RENEW_EACH", 60)
    monkeypatch.setattr(Lease, "LENGTH", 60)
    part = start(site)
    publish(site, 1)
    site.until(lambda: part.node.store.published)
    site.server.ask("SET", LEASE, "another", "PX", 60000)
    assert not part._tenure.ended
    publish(site, 2)
    site.until(lambda: part._tenure.ended)
    assert left(site) == (1, 0)
    site.server.ask("DEL", LEASE)
    site.until(lambda: part.node.store.payloads() == numbers(1, 2))


def test_a_node_that_stood_still_longer_than_its_lease_begins_nothing(site):
    part = start(site)
    part.node.slow = 0.05
    publish(site, 1, 2, 3)
    site.until(lambda: part.node.attempts == 1)
    site.server.ask("SET", LEASE, "another", "PX", 60000)
    site.reactor.pass_time(10)
    site.turn(0.3)
    assert part.node.attempts == 1
    site.server.ask("DEL", LEASE)


def test_consumers_that_are_gone_for_long_are_removed(site, monkeypatch):
    monkeypatch.setattr(redisx, "STALE", 0.05)
    site.server.ask("XGROUP", "CREATE", S, G, "$", "MKSTREAM")
    publish(site, 1)
    for name in ("old", "busy"):
        site.server.ask("XREADGROUP", "GROUP", G, name, "COUNT", 1, "STREAMS", S, ">")
    site.server.ask("XREADGROUP", "GROUP", G, "idle", "COUNT", 1, "STREAMS", S, ">")
    site.turn(0.1)
    part = start(site, mode="shared")
    site.until(lambda: "idle" not in consumers(site))
    site.until(lambda: part.node.store.payloads() == ["1"])


# -- Redis away, or changed under way


@pytest.mark.statement("BR-28")
def test_after_a_flush_reading_goes_on_and_loses_nothing_that_came_after(each, mode):
    part = start(each, mode=mode)
    publish(each, 1)
    each.until(lambda: part.node.store.published)
    each.server.ask("FLUSHALL")
    publish(each, 2, 3)
    each.until(lambda: part.node.store.payloads() == numbers(1, 2, 3), 5)
    each.until(lambda: left(each) == (0, 0))


def test_after_a_flush_with_entries_in_hand_these_are_published_too(site):
    part = start(site)
    part.node.down = True
    publish(site, 1)
    site.until(lambda: left(site) == (1, 1))
    site.server.ask("FLUSHALL")
    publish(site, 2)
    part.node.down = False
    site.until(lambda: "2" in part.node.store.payloads())


def test_a_group_that_was_deleted_is_made_again_and_skips_nothing(each, mode):
    part = start(each, mode=mode)
    part.node.down = True
    publish(each, 1, 2)
    each.until(lambda: left(each) == (2, 2))
    each.server.ask("XGROUP", "DESTROY", S, G)
    publish(each, 3)
    each.turn(0.4)
    part.node.down = False
    each.until(lambda: left(each) == (0, 0))
    assert part.node.store.payloads() == numbers(1, 2, 3)
    assert part.node.store.duplicates == 0


@pytest.mark.statement("BR-29")
def test_an_outage_is_a_problem_until_reading_goes_on(mode):
    with redis_server() as server, place(server) as site:
        part = start(site, mode=mode)
        publish(site, 1)
        site.until(lambda: part.node.store.published)
        server.kill()
        site.until(lambda: part._error is not None)
        assert part.problem() == ""
        for _ in range(20):
            site.reactor.pass_time(30)
            site.turn(0.02)
        assert "__anycable__" in part.problem()
        server.start()
        site.reactor.pass_time(10)
        publish(site, 2)
        site.until(lambda: part.node.store.payloads() in (numbers(1, 2), numbers(1)) and part.problem() == "")
        publish(site, 3)
        site.until(lambda: "3" in part.node.store.payloads())


def test_redis_absent_at_the_start_is_waited_for():
    with redis_server() as server, place(server) as site:
        server.kill()
        part = site.make(create, StoreNode(site), redisx_mode="leader")
        starting = Deferred.fromCoroutine(part.start())
        site.turn()
        site.reactor.pass_time(6)
        site.result(starting)
        server.start()
        site.until(lambda: server.ask("EXISTS", S))
        publish(site, 1)
        site.until(lambda: part.node.store.payloads() == ["1"])


def test_a_server_that_stands_still_is_waited_for(site, mode):
    part = start(site, mode=mode)
    publish(site, 1)
    site.until(lambda: part.node.store.published)
    site.server.stall()
    for _ in range(4):
        site.reactor.pass_time(5)
        site.turn()
    site.server.resume()
    publish(site, 2)
    site.until(lambda: part.node.store.payloads() == numbers(1, 2), 15)
    site.until(lambda: left(site) == (0, 0))


def test_connections_cut_again_and_again_lose_repeat_and_reorder_nothing(each, mode):
    store = Store()
    for _ in range(2):
        start(each, StoreNode(each, store), mode=mode)
    sent = 0
    for _ in range(12):
        publish(each, *range(sent, sent + 25))
        sent += 25
        each.turn(0.05)
        for kind in ("normal", "pubsub"):
            each.server.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    each.until(lambda: left(each) == (0, 0), 30)
    assert sorted(store.payloads(), key=int) == numbers(*range(sent))
    if mode == "leader":
        assert store.payloads() == numbers(*range(sent))


def test_what_was_read_by_a_call_without_an_answer_comes_first(site, mode):
    part = start(site, mode=mode)
    publish(site, 0)
    site.until(lambda: left(site) == (0, 0) and part.node.store.published)
    run = part._redis.run
    lost = []

    async def losing(script: Any, keys: Any, *args: Any) -> Any:
        answer = await run(script, keys, *args)
        if script is redisx_group.TAKE and not lost and answer and answer[1]:
            lost.append(answer)
            raise RedisUnavailable("the answer was lost")
        return answer

    part._redis.run = losing
    publish(site, 1, 2, 3)
    site.until(lambda: lost)
    publish(site, 4, 5)
    site.until(lambda: left(site) == (0, 0))
    assert part.node.store.payloads() == numbers(0, 1, 2, 3, 4, 5)


def test_pending_entries_that_were_deleted_are_acknowledged(each):
    each.server.ask("XGROUP", "CREATE", S, G, "$", "MKSTREAM")
    gone = add(each, {"stream": "a", "data": "1"})
    publish(each, 2)
    each.server.ask("XREADGROUP", "GROUP", G, "other", "STREAMS", S, ">")
    each.server.ask("XDEL", S, gone)
    part = start(each)
    each.until(lambda: left(each) == (0, 0))
    assert part.node.store.payloads() == ["2"]


def test_a_key_of_another_type_is_a_problem_that_passes(site):
    site.server.ask("SET", S, "a text")
    part = start(site)
    site.until(lambda: part._error is not None)
    site.reactor.pass_time(redisx.DEAF_AFTER)
    assert "WRONGTYPE" in part.problem()
    site.server.ask("DEL", S)
    site.reactor.pass_time(5)
    site.until(lambda: part.problem() == "" and site.server.ask("EXISTS", S))
    publish(site, 1)
    site.until(lambda: part.node.store.payloads() == ["1"])


@pytest.mark.parametrize("stream", ["s", "{tag}s", "a{b}c", "{}x"])
def test_the_lease_is_in_the_slot_of_its_stream(stream):
    def tag(key: str) -> str:
        begin = key.find("{")
        end = key.find("}", begin + 1)
        return key[begin + 1 : end] if begin >= 0 and end > begin + 1 else key

    if stream != "{}x":
        assert tag(lease_key(stream)) == tag(stream)
    assert lease_key(stream) != lease_key("other")


def test_long_names_of_streams_make_short_ids(site):
    name = "s" * 200
    part = start(site, redisx_stream=name)
    add(site, [{"stream": "a", "data": "1"}], name)
    site.until(lambda: part.node.store.published)
    assert len(part.node.store.published[0].id) < 128
    assert redisx_entries.MAX_ID_LENGTH == 128
    assert redisx_leader.Lease.LENGTH == 0.8
