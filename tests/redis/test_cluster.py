"""A cluster: commands find their slots, also while these move and while nodes come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.redis.api import RedisUnavailable, Script
from anycable_tx.redis.slots import slot_of
from anycable_tx.testing.redis_servers import Cluster, RedisServer, wait_for
from tests.redis.conftest import Make
from tests.redis.support import Kept, turn

pytestmark = pytest.mark.statement("F48")

#: Of the first, second and third master.
KEYS = ("b", "c", "a")
BOTH = Script("redis.call('SET', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[1]) return ARGV[1]")


@pytest.fixture(params=["valkey"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        yield cluster


@pytest.fixture
def failing_over() -> Iterator[Cluster]:
    with Cluster(replicas=1) as cluster:
        yield cluster


def seeds(cluster: Cluster) -> str:
    return ",".join(f"127.0.0.1:{each.port}" for each in cluster.masters)


def start(work: Any) -> Deferred[Any]:
    """*work*, begun; its end is waited for later."""
    return Deferred.fromCoroutine(work)


def begin_move(cluster: Cluster, slot: int) -> tuple[RedisServer, RedisServer]:
    """Have *slot* on its way from its master to another one."""
    source = next(each for each in cluster.masters if _has(each, slot))
    target = next(each for each in cluster.masters if each is not source)
    target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", cluster.id_of(source))
    source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", cluster.id_of(target))
    return source, target


def end_move(cluster: Cluster, slot: int, target: RedisServer) -> None:
    """*slot* is at *target* now."""
    for each in (target, *cluster.masters):
        each.ask("CLUSTER", "SETSLOT", str(slot), "NODE", cluster.id_of(target))


def move_key(source: RedisServer, target: RedisServer, key: str) -> None:
    source.ask("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")


def _has(server: RedisServer, slot: int) -> bool:
    own = server.ask("CLUSTER", "MYID")
    return any(
        first <= slot <= last and master[2] == own for first, last, master, *_ in server.ask("CLUSTER", "SLOTS")
    )


class TestRouting:
    def test_each_command_goes_to_the_master_of_its_key(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        for key, master in zip(KEYS, cluster.masters, strict=True):
            assert it.ask("SET", key, "v") == b"OK"
            assert master.ask("GET", key) == b"v"
            assert it.pipeline(key, ("GET", key), ("SET", f"{{{key}}}:2", 2)) == [b"v", b"OK"]
            assert it.run(BOTH, [f"{{{key}}}:3", f"{{{key}}}:4"], "x") == b"x"
        assert len({it.client.generation(key) for key in KEYS}) == 3
        assert it.metrics.value("redis_redirects_total") == 0

    @pytest.mark.statement("BR-75")
    def test_one_node_is_enough_to_find_out_that_it_is_a_cluster(self, cluster: Cluster, make: Make) -> None:
        it = make(cluster.masters[1].url)
        assert it.client.problem() == ""
        assert [it.ask("SET", key, "v") for key in KEYS] == 3 * [b"OK"]
        assert it.heard.events == []

    @pytest.mark.statement("BR-75")
    def test_seeds_that_are_no_cluster_are_a_problem(self, make: Make) -> None:
        with RedisServer() as one, RedisServer() as two:
            it = make(f"127.0.0.1:{one.port},127.0.0.1:{two.port}", started=False)
            starting = start(it.client.start())
            it.until(lambda: "cluster support disabled" in it.client.problem())
            it.reactor.pass_time(5)
            it.reactor.result(starting)
            with pytest.raises(RedisUnavailable, match="cluster support disabled"):
                it.ask("GET", "k")
            it.reactor.result(it.client.stop())

    def test_subscriptions_hear_what_any_node_is_told(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        it.subscribe("a")
        for n, master in enumerate(cluster.masters):
            master.ask("PUBLISH", "a", n)
        it.ask("PUBLISH", "a", "3", key="any")
        it.until(lambda: len(it.heard.messages) == 4)
        assert sorted(it.heard.messages) == [(b"a", b"%d" % n) for n in range(4)]

    def test_links_go_to_the_master_of_their_key(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        for key, master in zip(KEYS, cluster.masters, strict=True):
            link = it.reactor.result(it.client.link(key))
            assert it.reactor.result(link.command("CONFIG", "GET", "port"))[1] == b"%d" % master.port
            link.close()


class TestMoves:
    def test_a_slot_that_moved_is_followed_and_remembered(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        slot = slot_of("k")
        before = it.client.generation("k")
        _, target = begin_move(cluster, slot)
        end_move(cluster, slot, target)
        assert it.ask("SET", "k", "v") == b"OK"
        assert target.ask("GET", "k") == b"v"
        assert it.client.generation("k") not in ("", before)
        redirected = it.metrics.value("redis_redirects_total", "moved")
        assert redirected == 1
        assert it.ask("GET", "k") == b"v"
        assert it.metrics.value("redis_redirects_total", "moved") == redirected
        assert it.heard.events == []

    def test_while_a_slot_moves_commands_go_where_their_keys_are(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        slot = slot_of("k")
        it.ask("SET", "{k}:moved", "1")
        it.ask("SET", "{k}:left", "2")
        source, target = begin_move(cluster, slot)
        move_key(source, target, "{k}:moved")
        assert it.ask("INCR", "{k}:moved") == 2
        assert it.ask("INCR", "{k}:left") == 3
        assert it.ask("INCR", "{k}:new") == 1
        assert it.pipeline("k", ("INCR", "{k}:left"), ("INCR", "{k}:moved"), ("INCR", "{k}:new")) == [4, 3, 2]
        assert it.metrics.value("redis_redirects_total", "ask") == 4
        assert it.metrics.value("redis_redirects_total", "moved") == 0

    def test_a_script_whose_keys_are_apart_waits_until_they_are_together(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        slot = slot_of("k")
        it.ask("SET", "{k}:1", "a")
        it.ask("SET", "{k}:2", "a")
        source, target = begin_move(cluster, slot)
        move_key(source, target, "{k}:1")
        running = start(it.client.run(BOTH, ["{k}:1", "{k}:2"], "b"))
        it.until(lambda: it.metrics.value("redis_redirects_total", "tryagain") > 1)
        assert not running.called
        move_key(source, target, "{k}:2")
        end_move(cluster, slot, target)
        assert it.reactor.result(running) == b"b"
        assert [target.ask("GET", key) for key in ("{k}:1", "{k}:2")] == [b"b", b"b"]

    def test_one_whose_keys_stay_apart_fails_in_the_end(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        it.ask("SET", "{k}:1", "a")
        it.ask("SET", "{k}:2", "a")
        source, target = begin_move(cluster, slot_of("k"))
        move_key(source, target, "{k}:1")
        running = start(it.client.run(BOTH, ["{k}:1", "{k}:2"], "b"))
        it.until(lambda: it.metrics.value("redis_redirects_total", "tryagain"))
        it.reactor.pass_time(2)
        with pytest.raises(RedisUnavailable, match="TRYAGAIN"):
            it.reactor.result(running)

    def test_what_is_asked_in_order_is_done_in_order_while_the_slot_moves(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        slot = slot_of("k")
        asked = []
        for n in range(300):
            asked.append(start(it.client.execute("k", "RPUSH", "k", n)))
            if n == 100:
                it.until(lambda: asked[0].called)
                source, target = begin_move(cluster, slot)
            if n == 200:
                turn(it.reactor, 0.01)
                move_key(source, target, "k")
                end_move(cluster, slot, target)
        it.until(lambda: all(each.called for each in asked))
        assert it.ask("LRANGE", "k", 0, -1) == [b"%d" % n for n in range(300)]
        assert it.metrics.value("redis_redirects_total", "moved") > 0

    def test_a_node_that_came_later_is_found(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        slot = slot_of("k")
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        with RedisServer(*options, kind="redis" if _is_redis(cluster) else "valkey") as late:
            cluster.masters.append(late)
            late.ask("CLUSTER", "MEET", "127.0.0.1", str(cluster.masters[0].port))
            wait_for(lambda: all(_nodes(each) == 4 for each in cluster.masters), "the nodes to meet")
            source = next(each for each in cluster.masters if _has(each, slot))
            it.ask("SET", "k", "1")
            late.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", cluster.id_of(source))
            source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", cluster.id_of(late))
            assert it.ask("INCR", "{k}:new") == 1  # it has no slot yet, and is asked all the same
            it.reactor.pass_time(20)
            turn(it.reactor, 0.1)
            assert it.ask("INCR", "{k}:new") == 2
            move_key(source, late, "k")
            move_key(source, late, "{k}:new")
            end_move(cluster, slot, late)
            assert it.ask("INCR", "k") == 2
            assert it.client.generation("k") in late.ask("INFO", "server").decode()


def _nodes(server: RedisServer) -> int:
    return len(server.ask("CLUSTER", "NODES").splitlines())


def _is_redis(cluster: Cluster) -> bool:
    return b"valkey_version" not in cluster.masters[0].ask("INFO", "server")


class TestLosses:
    def test_a_lost_shard_takes_only_its_own_slots_along(self, cluster: Cluster, make: Make) -> None:
        it = make(seeds(cluster))
        cluster.masters[1].kill()
        it.until(lambda: it.heard.events == ["master down"])
        assert str(cluster.masters[1].port) in it.client.problem()
        assert it.ask("SET", KEYS[0], "v") == b"OK"
        assert it.ask("SET", KEYS[2], "v") == b"OK"
        it.reactor.pass_time(1)
        with pytest.raises(RedisUnavailable):
            it.ask("SET", KEYS[1], "v")
        assert it.client.generation(KEYS[1]) == ""
        cluster.masters[1].start()
        it.until(lambda: it.heard.events == ["master down", "master up"])
        assert it.ask_until("SET", KEYS[1], "v") == b"OK"

    def test_a_failover_is_followed(self, failing_over: Cluster, make: Make) -> None:
        it = make(seeds(failing_over))
        lost, heir = failing_over.masters[0], failing_over.replicas[0]
        first = it.client.generation(KEYS[0])
        it.ask("SET", KEYS[0], "before")
        wait_for(lambda: heir.ask("DBSIZE") == 1, "the replica")
        lost.kill()
        assert it.ask_until("SET", KEYS[0], "after") == b"OK"
        it.until(lambda: it.heard.events == ["master down", "master up"])
        assert heir.ask("GET", KEYS[0]) == b"after"
        assert it.client.generation(KEYS[0]) not in ("", first)

    @pytest.mark.statement("F47")
    def test_a_planned_failover_loses_nothing(self, make: Make) -> None:
        with Cluster("valkey", replicas=1) as cluster:
            it = make(seeds(cluster))
            heir = cluster.replicas[0]
            for n in range(300):
                assert it.ask("RPUSH", KEYS[0], n) == n + 1
                if n == 50:
                    heir.ask("CLUSTER", "FAILOVER")
                if n == 100:
                    wait_for(lambda: heir.ask("ROLE")[0] == b"master", "the failover")
            assert heir.ask("LRANGE", KEYS[0], "0", "-1") == [b"%d" % n for n in range(300)]

    @pytest.mark.statement("F47")
    def test_a_write_that_the_old_master_held_back_is_not_stuck_there(
        self, failing_over: Cluster, make: Make
    ) -> None:
        it = make(seeds(failing_over))
        heir = failing_over.replicas[0]
        heir.ask("CLUSTER", "FAILOVER")  # for that, the master holds writes back, and some go on doing so
        asked = start(it.client.execute(KEYS[0], "SET", KEYS[0], "v"))
        wait_for(lambda: all(not _has(each, slot_of(KEYS[0])) for each in failing_over.masters), "the failover")
        it.ask("GET", KEYS[0])  # is redirected, if nothing was before, and so the nodes are asked
        began = it.reactor.loop.time()
        with suppress(RedisUnavailable):
            it.reactor.result(asked)
        assert it.reactor.loop.time() - began < 2
        assert it.ask("SET", KEYS[0], "v") == b"OK"

    def test_subscriptions_move_when_their_node_dies(self, failing_over: Cluster, make: Make) -> None:
        it = make(seeds(failing_over))
        it.subscribe("a")
        next(each for each in failing_over.servers if each.ask("PUBSUB", "CHANNELS", "a")).kill()
        it.until(lambda: it.heard.events.count("up") == 2)
        failing_over.replicas[2].ask("PUBLISH", "a", "x")
        it.until(lambda: it.heard.messages)

    def test_and_when_their_node_has_left_the_cluster(self, failing_over: Cluster, make: Make) -> None:
        it = make(seeds(failing_over))
        it.subscribe("a")
        node = next(each for each in failing_over.masters if each.ask("PUBSUB", "CHANNELS", "a"))
        heir = failing_over.replicas[failing_over.masters.index(node)]
        heir.ask("CLUSTER", "FAILOVER")
        wait_for(lambda: heir.ask("ROLE")[0] == b"master", "the failover")
        name = failing_over.id_of(node)
        rest = [each for each in failing_over.servers if each is not node]
        wait_for(lambda: _forgotten(rest, name), "the others to forget it")
        it.reactor.pass_time(15)
        it.until(lambda: it.heard.events.count("up") == 2)
        assert node.ask("PUBSUB", "CHANNELS", "a") == []

    def test_all_seeds_may_be_gone_once_the_nodes_are_known(self, failing_over: Cluster, make: Make) -> None:
        it = make(failing_over.masters[0].url)
        failing_over.masters[0].kill()
        assert it.ask_until("SET", KEYS[0], "v") == b"OK"
        it.until(lambda: it.client.problem() == "")


def _forgotten(servers: list[RedisServer], name: str) -> bool:
    for each in servers:
        if name.encode() in each.ask("CLUSTER", "NODES"):
            each.ask("CLUSTER", "FORGET", name)
    return not any(name in repr(each.ask("CLUSTER", "SLOTS")) for each in servers)


def test_it_asks_for_the_slots_now_and_then(cluster: Cluster, make: Make) -> None:
    it: Kept = make(seeds(cluster))
    slot = slot_of("k")
    _, target = begin_move(cluster, slot)
    end_move(cluster, slot, target)
    it.reactor.pass_time(15)
    before = it.client.generation("k")
    it.until(lambda: it.client.generation("k") != before)
    assert it.metrics.value("redis_redirects_total") == 0


def test_a_node_that_knows_little_yet_is_not_believed(make: Make) -> None:
    with Cluster() as cluster:
        it: Kept = make(seeds(cluster))
        # One of the nodes forgets what the others told it: only its own slots are left.
        last = cluster.masters[-1]
        for each in cluster.masters[:-1]:
            last.ask("CLUSTER", "FORGET", cluster.id_of(each))
        for _ in range(8):
            it.reactor.pass_time(15)
            turn(it.reactor, 0.05)
            assert it.client.problem() == ""
