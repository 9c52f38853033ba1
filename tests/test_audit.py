"""The audit: a message lost on the bus before a silence is found without a later one."""

from __future__ import annotations

import pytest

from anycable_tx.audit import MAX_UNDER_WAY, ROUND, STEP
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.sync import result_of
from tests.cable.support import A, World, pubsub


def audited(**settings) -> World:
    return World(bus=True, **settings)


def lose_last(world: World) -> None:
    world.bus.holding = True
    world.publish("a")
    world.bus.lose()


@pytest.mark.statement("BR-41")
@pytest.mark.parametrize("wait", [0, 3, 29, 31, 44, 61])
def test_a_lost_last_message_is_delivered_in_time(wait):
    world = audited()
    client = world.subscribed(A)
    world.publish("a")
    world.advance(wait)
    lose_last(world)
    assert client.heard() == [1]
    world.advance(90)
    assert client.heard() == [2]
    assert world.metrics.value("gaps_total") == world.metrics.value("gaps_healed_total") == 1


def test_a_quiet_stream_is_compared_once_in_two_rounds():
    world = audited()
    world.subscribed(A)
    world.advance(2 * ROUND)
    world.broker.calls.clear()
    world.advance(20 * ROUND)
    assert 9 <= world.broker.calls.count("tail") <= 11


def test_a_busy_stream_is_not_compared():
    world = audited()
    world.subscribed(A)
    world.broker.calls.clear()
    for _ in range(20):
        world.publish("a")
        world.advance(ROUND / 2)
    assert "tail" not in world.broker.calls


def test_the_looks_are_spread_over_the_round():
    world = audited()
    client = world.subscribed(A)
    for number in range(120):
        client.subscribe(pubsub(f"s{number}"))
    world.advance(2 * ROUND)
    world.broker.calls.clear()
    most = 0
    for _ in range(round(2 * ROUND / STEP) + 1):
        before = len(world.broker.calls)
        world.advance(STEP)
        most = max(most, len(world.broker.calls) - before)
    assert world.broker.calls.count("tail") >= 120
    assert most <= 4


def test_a_slow_broker_is_asked_little_at_a_time():
    world = audited()
    client = world.subscribed(A)
    for number in range(200):
        client.subscribe(pubsub(f"s{number}"))
    world.broker.slow = {"tail"}
    world.advance(4 * ROUND)
    assert len(world.broker.waiting) == MAX_UNDER_WAY
    assert world.broker.calls.count("tail") == 201 + MAX_UNDER_WAY


def test_a_broker_that_cannot_answer_is_asked_again():
    world = audited()
    client = world.subscribed(A)
    lose_last(world)
    world.broker.failing = {"tail": BrokerUnavailable("down")}
    world.advance(2 * ROUND)
    assert world.metrics.value("broker_errors_total") >= 1
    world.broker.failing = {}
    world.advance(3 * ROUND)
    assert client.heard() == [1]


def test_a_message_that_comes_while_the_broker_answers_is_no_hole():
    world = audited()
    client = world.subscribed(A)
    world.advance(ROUND - 1)
    world.broker.slow = {"tail"}
    world.broker.asking = True
    world.advance(2 * ROUND)
    assert world.broker.waiting
    world.publish("a")
    world.broker.answer_all()
    world.advance(1)
    assert client.heard() == [1]
    assert world.metrics.value("gaps_total") == 0


def test_a_stream_that_was_left_meanwhile_is_let_be():
    world = audited()
    client = world.subscribed(A)
    world.broker.slow = {"tail"}
    world.advance(2.5 * ROUND)
    assert world.broker.waiting
    client.unsubscribe(A)
    world.advance(10)
    world.broker.answer_all()
    world.turn()


def test_nothing_is_compared_where_there_is_no_other_node():
    world = World()
    world.subscribed(A)
    world.broker.calls.clear()
    world.advance(5 * ROUND)
    assert "tail" not in world.broker.calls


def test_the_audit_ends_with_the_node():
    world = audited()
    world.subscribed(A)
    result_of(world.node.stop())
    world.broker.calls.clear()
    world.advance(5 * ROUND)
    assert "tail" not in world.broker.calls
