"""Slots of keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anycable_tx.redis.slots import slot_of
from anycable_tx.testing.redis_servers import RedisServer

KEYS = ["", "123456789", "foo", "{foo}bar", "a{foo}b{c}", "{}foo", "{foo", "}foo{", "foo{{bar}}", "é", "ac:{x/y}:m"]


@pytest.mark.parametrize("key", KEYS)
def test_slots_are_those_of_the_server(own_cluster_node: RedisServer, key: str) -> None:
    assert slot_of(key) == own_cluster_node.ask("CLUSTER", "KEYSLOT", key)


@pytest.fixture(scope="module")
def own_cluster_node() -> Iterator[RedisServer]:
    with RedisServer("--cluster-enabled", "yes") as server:
        yield server
