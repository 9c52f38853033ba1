"""Sentinels: who is the master is asked, listened to, and checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.redis.api import RedisUnavailable
from anycable_tx.redis.connection import REPLY_LIMIT
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.redis_servers import Sentinels, wait_for
from tests.redis.conftest import Make
from tests.redis.support import turn

pytestmark = pytest.mark.statement("BR-77")


@pytest.fixture(params=["redis"])
def group(request: pytest.FixtureRequest) -> Iterator[Sentinels]:
    with Sentinels(request.param) as group:
        yield group


@pytest.mark.statement("F46")
def test_a_failover_is_followed_with_all_subscriptions_and_another_generation(group: Sentinels, make: Make) -> None:
    it = make(group.url, redis_sentinels=group.sentinels)
    it.subscribe("a")
    old = group.master()
    first = it.client.generation("k")
    assert it.ask("SET", "k", "before") == b"OK"
    wait_for(lambda: all(each.ask("GET", "k") == b"before" for each in group.servers), "the replicas")
    old.kill()
    it.ask_until("SET", "k", "after")
    it.until(lambda: it.heard.events.count("up") == 2)
    new = group.master()
    assert new is not old
    assert new.ask("GET", "k") == b"after"
    assert it.client.generation("k") not in ("", first)
    assert [event for event in it.heard.events if event.startswith("master")] == ["master down", "master up"]
    new.ask("PUBLISH", "a", "x")
    it.until(lambda: (b"a", b"x") in it.heard.messages)


@pytest.mark.statement("F46", "F47")
def test_a_stalled_master_is_left_as_soon_as_the_sentinels_say_so(make: Make) -> None:
    with Sentinels() as group:
        _check_stalled_master(group, make)


def _check_stalled_master(group: Sentinels, make: Make) -> None:
    it = make(group.url, redis_sentinels=group.sentinels)
    it.subscribe("a")
    old = group.master()
    old.stall()
    began = it.reactor.loop.time()
    it.until(lambda: it.heard.events.count("up") == 2 and it.client.problem() == "")
    assert it.reactor.loop.time() - began < REPLY_LIMIT + 5  # nothing was due, and no keepalive was near
    new = group.master()
    assert new is not old
    assert it.ask("SET", "k", "v") == b"OK"
    # The one that slept comes back as a replica; nobody returns to it.
    old.resume()
    wait_for(lambda: old.ask("ROLE")[0] == b"slave", "the old master to learn of the new one")
    it.until(lambda: it.client.problem() == "")
    assert new.ask("GET", "k") == b"v"
    assert new.ask("PUBLISH", "a", "x") == 1


@pytest.mark.statement("F47")
def test_a_planned_failover_that_closes_no_connection_is_followed(group: Sentinels, make: Make) -> None:
    it = make(group.url, redis_sentinels=group.sentinels)
    it.subscribe("a")
    old = group.master()
    group.watchers[0].ask("SENTINEL", "FAILOVER", group.name)
    it.until(lambda: it.heard.events.count("up") == 2 and "master up" in it.heard.events)
    it.ask_until("SET", "k", "v")
    new = group.master()
    assert new is not old
    assert new.ask("GET", "k") == b"v"
    it.until(lambda: new.ask("PUBSUB", "CHANNELS", "a") == [b"a"])


def test_it_asks_from_time_to_time_as_well(make: Make) -> None:
    with Sentinels() as group:
        it = make(group.url, redis_sentinels=group.sentinels, redis_sentinel_discovery_interval=7)
        asked = _asked(group)
        it.reactor.pass_time(7)
        it.until(lambda: _asked(group) > asked)
        turn(it.reactor, 0.1)
        assert it.heard.events == []


def _asked(group: Sentinels) -> int:
    stats = group.watchers[0].ask("INFO", "stats").decode()
    return int(stats.partition("total_connections_received:")[2].split()[0])


def test_sentinels_and_servers_have_their_own_passwords(make: Make) -> None:
    with Sentinels(password="data", sentinel_password="watch") as group:
        it = make(f"{group.url}/5", redis_sentinels=(group.sentinels[0], *_bare(group.sentinels[1:])))
        assert it.ask("SET", "k", "v") == b"OK"
        assert b"db=5" in it.ask("CLIENT", "LIST")
        assert "data" not in it.client.log_name
        assert "watch" not in it.client.log_name


def _bare(sentinels: tuple[str, ...]) -> list[str]:
    return [each.rpartition("@")[2] for each in sentinels]


def test_sentinels_that_are_away_do_not_matter_while_one_knows(make: Make) -> None:
    with Sentinels() as group:
        group.watchers[0].kill()
        group.watchers[1].stall()
        hosts = (f"127.0.0.1:{free_port()}", *group.sentinels)
        it = make(group.url, redis_sentinels=hosts)
        it.until(lambda: it.client.problem() == "")
        assert it.ask("PING", "k") == b"k"
        group.watchers[1].resume()


def test_a_sentinel_can_be_named_in_the_url(make: Make) -> None:
    with Sentinels() as group:
        it = make(f"redis://{group.sentinels[0]}?master_set={group.name}")
        assert it.ask("SET", "k", "v") == b"OK"
        assert group.master().ask("GET", "k") == b"v"


def test_a_master_nobody_knows_is_a_problem(make: Make) -> None:
    with Sentinels() as group:
        it = make("redis://other", redis_sentinels=group.sentinels, started=False)
        starting = Deferred.fromCoroutine(it.client.start())
        it.until(lambda: "no sentinel knows a master 'other'" in it.client.problem())
        it.reactor.pass_time(2)
        with pytest.raises(RedisUnavailable):
            it.ask("GET", "k")
        it.reactor.result(it.client.stop())
        it.reactor.result(starting)
