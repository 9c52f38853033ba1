"""The node: keeps streams whole on a bus that loses, repeats and reorders, and carries out remote commands."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogLevel, formatEvent

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.cable.replies import Reply, Status
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.sync import result_of
from tests.cable.support import A, B, Client, World, pubsub, room
from tests.monitoring.support import logged

REJECT = "reject_history"
DOWN = BrokerUnavailable("down")


def spoilt(world: World, spoil: Any, count: int = 3) -> None:
    """Publish *count* messages to ``a`` that the bus delivers after *spoil* changed their list."""
    world.bus.holding = True
    world.publish("a", count=count)
    spoil(world.bus.pending)
    world.bus.release()


def forget(messages: list[StreamMessage], *indexes: int) -> None:
    for index in sorted(indexes, reverse=True):
        del messages[index]


def bus_world(**settings: Any) -> tuple[World, Client]:
    world = World(bus=True, **settings)
    return world, world.subscribed(A)


# -- what the bus spoils is repaired without the clients


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: forget(m, 0),
        lambda m: forget(m, 1),
        lambda m: forget(m, 0, 1),
        lambda m: m.reverse(),
        lambda m: m.insert(0, m[2]),
        lambda m: m.append(m[0]),
        lambda m: m.extend(m[:]),
        lambda m: m.insert(1, m.pop(2)),
    ],
    ids=["first", "second", "two", "reversed", "last too early", "repeated late", "all twice", "swapped"],
)
def test_messages_arrive_in_order_and_once(spoil):
    world, client = bus_world()
    spoilt(world, spoil)
    world.publish("a")
    world.advance(1)
    assert client.heard() == [1, 2, 3, 4]


@pytest.mark.statement("P9")
def test_a_lost_last_message_is_brought_by_the_next():
    world, client = bus_world()
    spoilt(world, lambda m: forget(m, 2))
    assert client.heard() == [1, 2]
    world.publish("a")
    assert client.heard() == [3, 4]
    assert (world.metrics.value("gaps_total"), world.metrics.value("gaps_healed_total")) == (1, 1)


@pytest.mark.statement("P9")
def test_what_the_bus_repeats_and_what_comes_during_a_heal_is_counted():
    world, client = bus_world()
    spoilt(world, lambda m: m.append(m[1]))
    assert world.metrics.counters()["dropped_bus_msg_total"] == {"repeated": 1}
    world.broker.slow = {"history"}
    spoilt(world, lambda m: forget(m, 0))
    assert world.metrics.counters()["dropped_bus_msg_total"] == {"repeated": 1, "healing": 1}
    world.broker.answer_all()
    assert client.heard() == [1, 2, 3, 4, 5, 6]


@pytest.mark.statement("P9")
@pytest.mark.parametrize(
    "command",
    [RemoteCommand("disconnect", {"identifier": 1}), RemoteCommand("dance", {})],
    ids=["ill-typed", "unknown"],
)
def test_a_command_nobody_understands_is_counted(command):
    world = World()
    world.node.execute(command)
    assert world.metrics.value("failed_bus_msg_total") == 1


@pytest.mark.statement("P9")
def test_what_a_client_is_refused_is_in_the_log_with_the_reason_and_without_what_it_said():
    world = World("backend")
    client = world.connect()
    world.backend.will("subscribe", Reply(Status.FAILURE, reason="forbidden"))
    with logged() as events:
        client.subscribe(room("secret"))
    [event] = events
    assert (event["log_level"], formatEvent(event)) == (LogLevel.debug, "a client was refused something")
    expected = {"counter": "subscription_rejects_total", "reason": "forbidden", "sid": client.sid}
    assert event["attrs"].items() >= expected.items()
    assert "secret" not in str(event["attrs"])
    assert world.metrics.value("subscription_rejects_total", "forbidden") == 1


@pytest.mark.statement("P9")
def test_holes_and_their_ends_are_in_the_log():
    world, client = bus_world()
    with logged() as events:
        spoilt(world, lambda m: forget(m, 1))
    assert client.heard() == [1, 2, 3]
    assert [formatEvent(event) for event in events] == ["messages of a stream were missed", "a stream is whole again"]


def test_a_healed_message_keeps_its_exclusion_and_type():
    world, client = bus_world()
    author = world.subscribed(A)
    world.bus.holding = True
    world.publish("a", exclude_socket=author.sid, broadcast_type="note")
    world.bus.lose()
    world.publish("a")
    assert (author.heard(), client.heard()) == ([2], [1, 2])
    assert [frame.get("type") for frame in client.frames[-2:]] == ["note", None]


def test_transient_messages_do_not_wait_for_a_hole():
    world, client = bus_world()
    world.broker.slow = {"history"}
    spoilt(world, lambda m: forget(m, 0))
    world.publish("a", "now", transient=True)
    assert client.heard() == ["now"]
    world.broker.answer_all()
    assert client.heard() == [1, 2, 3]


def test_messages_that_come_while_a_hole_is_read_are_not_lost():
    world, client = bus_world()
    world.broker.slow = {"history"}
    spoilt(world, lambda m: forget(m, 0))
    world.publish("a", count=2)
    world.broker.answer()
    world.advance(1)
    while world.broker.waiting:
        world.broker.answer()
    world.publish("a")
    world.advance(1)
    world.broker.answer_all()
    assert client.heard() == [1, 2, 3, 4, 5, 6]


def test_a_hole_is_filled_even_if_a_message_comes_with_each_answer():
    world, client = bus_world()
    world.broker.slow = {"history"}
    spoilt(world, lambda m: forget(m, 0))
    for _ in range(20):
        world.publish("a")
        if world.broker.waiting:
            world.broker.answer()
        world.advance(0.1)
    world.broker.answer_all()
    world.advance(1)
    assert client.heard() == list(range(1, 24))
    assert world.metrics.value("broadcast_gaps_unhealed_total") == 0


def test_a_broker_that_is_down_for_a_moment_is_asked_again():
    world, client = bus_world()
    world.broker.failing = {"history": DOWN}
    spoilt(world, lambda m: forget(m, 0))
    world.advance(0.5)
    assert client.take() == []
    world.broker.failing.clear()
    world.advance(1.5)
    assert client.heard() == [1, 2, 3]


# -- what cannot be repaired is told


@pytest.mark.statement("CP-82", "CP-151")
def test_a_hole_that_cannot_be_filled_is_told_once():
    world, client = bus_world(history_limit=2)
    base = world.subscribed(A, extended=False)
    spoilt(world, lambda m: forget(m, 0, 1), count=4)
    world.publish("a")
    assert client.take()[0] == {"type": REJECT, "identifier": A}
    assert [frame["offset"] for frame in client.frames[-1:]] == [5]
    assert base.heard() == [5], "clients of the base protocol do not know the frame"
    assert world.metrics.value("broadcast_gaps_unhealed_total", "trimmed") == 1


@pytest.mark.statement("CP-82")
def test_it_is_told_on_each_identifier():
    world = World("backend", bus=True, history_limit=2)
    client = world.subscribed(room("a", n=1), room("a", n=2), room("b"))
    spoilt(world, lambda m: forget(m, 0, 1), count=4)
    frames = client.take()
    assert sorted(frame["identifier"] for frame in frames) == [room("a", n=1), room("a", n=2)]
    assert {frame["type"] for frame in frames} == {REJECT}


@pytest.mark.statement("CP-82")
def test_a_broker_that_stays_down_is_told():
    world, client = bus_world()
    world.broker.failing = {"history": DOWN, "tail": DOWN}
    spoilt(world, lambda m: forget(m, 0))
    world.advance(5)
    assert client.heard() == [REJECT]
    world.broker.failing.clear()
    world.publish("a")
    assert client.heard() == [4]
    assert world.metrics.value("broadcast_gaps_unhealed_total", "unavailable") == 1


@pytest.mark.statement("CP-82")
def test_a_new_epoch_is_told_and_followed():
    world, client = bus_world()
    world.publish("a")
    world.node.deliver(StreamMessage("a", b'"new"', 1, 0, "new epoch", 1.0))
    assert client.heard() == [1, REJECT, 1]
    assert client.frames[-1]["epoch"] == "new epoch"
    assert world.metrics.value("stream_resets_total") == 1


@pytest.mark.statement("CP-82")
def test_a_new_epoch_during_a_heal_is_told():
    world, client = bus_world()
    world.broker.slow = {"history"}
    spoilt(world, lambda m: forget(m, 0))
    world.broker.target.epoch = "new epoch"
    world.publish("a")
    world.broker.answer_all()
    world.advance(5)
    assert client.heard() == [1, 2, 3, REJECT]
    world.publish("a")
    [frame] = client.take()
    assert frame["epoch"] == "new epoch"


def test_a_broker_that_began_anew_does_not_hang_a_subscriber():
    """The node has not heard of the new epoch when a client subscribes from it."""
    world, client = bus_world()
    world.publish("a", count=50)
    client.take()
    world.broker.target._begin()
    world.publish("b")
    late = world.connect()
    late.subscribe(A, history={"streams": {"a": {"epoch": world.epoch, "offset": 0}}})
    late.heard()
    world.publish("a")
    world.advance(1)
    assert (late.frames[-1]["epoch"], late.frames[-1]["offset"]) == (world.epoch, 1)
    assert (client.frames[-1]["epoch"], client.frames[-1]["offset"]) == (world.epoch, 1)
    assert [f.get("type") for f in client.take()] == [REJECT, None]


# -- the bus is lost and comes back


@pytest.mark.statement("CP-151")
def test_after_an_outage_every_stream_is_compared_with_the_broker():
    world = World(bus=True)
    client = world.subscribed(A, B)
    world.node.bus_lost()
    for _ in range(2):
        world.bus.holding = True
        world.publish("a")
        world.publish("b")
        world.bus.lose()
    assert client.take() == []
    world.node.bus_restored()
    assert sorted((f["stream_id"], f["offset"]) for f in client.take()) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.mark.statement("CP-151")
def test_an_outage_without_messages_says_nothing():
    world, client = bus_world()
    world.publish("a")
    client.take()
    world.node.bus_lost()
    world.node.bus_restored()
    world.advance(1)
    assert client.take() == []


def test_a_stream_that_is_just_being_opened_is_left_alone():
    world = World(bus=True)
    world.broker.slow = {"tail"}
    client = world.connect()
    client.subscribe(A)
    world.node.bus_restored()
    world.broker.answer_all()
    world.publish("a")
    assert client.heard() == ["welcome", "confirm_subscription", 1]


# -- streams


def test_a_stream_is_opened_once_for_many():
    world = World(bus=True)
    world.broker.slow = {"tail"}
    clients = [world.connect() for _ in range(5)]
    for client in clients:
        client.subscribe(A)
    assert world.broker.calls.count("tail") == 1
    world.broker.answer_all()
    world.publish("a")
    assert [client.heard() for client in clients] == [["welcome", "confirm_subscription", 1]] * 5


def test_a_stream_that_cannot_be_opened_fails_for_all_who_wait():
    world = World(bus=True)
    world.broker.slow = {"tail"}
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        client.subscribe(A)
    [(_, waiting)] = world.broker.waiting
    world.broker.waiting = []
    world.broker.slow = set()
    waiting.errback(DOWN)
    assert [client.heard() for client in clients] == [["welcome"]] * 3
    assert world.node.hub.streams == {}
    assert world.bus.streams == set(), "nor does the bus bring it"
    for client in clients:
        client.subscribe(A)
    world.publish("a")
    assert [client.heard() for client in clients] == [["confirm_subscription", 1]] * 3


def test_the_tail_is_read_after_the_bus_subscription():
    """Otherwise a message stored in between would be in neither."""
    world = World(bus=True)
    world.broker.slow = {"tail"}
    world.broker.asking = True
    client = world.connect()
    client.subscribe(A)
    assert "a" in world.bus.streams
    world.publish("a")
    world.broker.answer_all()
    world.publish("a")
    world.advance(1)
    assert client.heard() == ["welcome", "confirm_subscription", 2]


def test_a_message_that_arrives_before_the_tail_is_not_lost():
    world = World(bus=True)
    world.broker.slow = {"tail", "history"}
    client = world.connect()
    client.subscribe(A)
    world.publish("a", count=2)
    world.broker.answer("tail")
    world.publish("a")
    world.broker.answer_all()
    world.advance(1)
    assert client.heard() == ["welcome", "confirm_subscription", 1, 2, 3]


def test_a_stream_lingers_on_the_bus_for_those_who_come_back():
    world, client = bus_world()
    client.cut()
    world.advance(4)
    again = world.subscribed(A)
    world.advance(6)
    assert world.bus.unsubscribed == []
    again.cut()
    world.advance(6)
    assert world.bus.unsubscribed == ["a"]
    assert world.node.hub.streams == {}


def test_messages_of_streams_nobody_has_are_ignored_but_counted():
    world = World()
    world.publish("a")
    assert world.node.hub.streams == {}
    assert world.metrics.value("broadcast_msg_total") == 1


@pytest.mark.statement("BR-36")
def test_only_streams_with_subscribers_are_on_the_bus():
    world = World(nodes=2)
    world.subscribed(A, node=0)
    world.subscribed(B, node=1)
    assert [bus.streams for bus in world.buses] == [{"a"}, {"b"}]


# -- several nodes on one broker


@pytest.mark.statement("BR-35", "BR-56", "CP-153")
def test_all_nodes_show_the_same_offsets_in_the_same_order():
    world = World(nodes=3)
    clients = [world.subscribed(A, node=node) for node in range(3)]
    for n in range(9):
        world.publish("a", n, node=n % 3)
    heard = [[(f["offset"], f["message"]) for f in client.take()] for client in clients]
    assert heard == [[(n + 1, n) for n in range(9)]] * 3


@pytest.mark.statement("CP-152")
def test_a_message_between_confirmation_and_history_on_another_node_is_delivered_once():
    world = World(nodes=2)
    world.broker.slow = {"history"}
    client = world.connect(node=1)
    client.subscribe(A, history={"streams": {"a": {"epoch": world.epoch, "offset": 0}}})
    world.publish("a", node=0)
    world.broker.answer_all()
    world.publish("a", node=0)
    assert client.heard() == ["welcome", "confirm_subscription", "confirm_history", 1, 2]


@pytest.mark.statement("CP-150", "CP-103")
def test_a_client_moves_to_another_node():
    world = World(nodes=2)
    client = world.subscribed(A, node=0)
    world.advance(0.2)
    world.publish("a")
    client.take()
    again = client.again(node=1)
    assert client.closed == (1000, "Session resumed elsewhere")
    world.publish("a")
    again.catch_up(A)
    assert (client.take(), again.heard()) == ([], ["welcome", 2, "confirm_history"])


@pytest.mark.statement("CP-93", "CP-95")
def test_a_session_taken_over_by_another_node_expires_there():
    world = World(nodes=2, sessions_ttl=10)
    client = world.subscribed(A, node=0)
    again = client.again(node=1)
    again.cut()
    world.advance(15)
    for sid in (client.sid, again.sid):
        assert "restored" not in world.connect(sid=sid, node=0).take()[0]
    assert len(world.broker.target._sessions) == 2


@pytest.mark.statement("BR-12", "RA-15")
def test_a_remote_disconnect_reaches_every_node():
    world = World("backend", nodes=2)
    clients = [world.connect(query="me", node=node) for node in (0, 1, 1)]
    world.ban('{"user":"me"}', reconnect=True)
    for client in clients:
        assert client.take()[-1] == {"type": "disconnect", "reason": "remote", "reconnect": True}


@pytest.mark.statement("BR-7", "CP-53")
def test_an_exclusion_is_honoured_on_every_node():
    world = World(nodes=2)
    author, other = world.subscribed(A, node=0), world.subscribed(A, node=1)
    world.publish("a", exclude_socket=author.sid, node=1)
    assert (author.heard(), other.heard()) == ([], [1])


# -- remote commands


@pytest.mark.statement("CP-139", "BR-11", "BR-12", "RA-15")
def test_a_remote_disconnect_closes_all_sessions_of_the_identifiers():
    world = World("backend")
    clients = [world.connect(query="me") for _ in range(3)]
    other = world.connect(query="you")
    world.ban('{"user":"me"}')
    for client in clients:
        assert client.take()[-1] == {"type": "disconnect", "reason": "remote", "reconnect": False}
        assert client.closed == (1000, "Closed remotely")
    assert (other.heard(), other.closed) == (["welcome"], None)


@pytest.mark.statement("CP-139")
def test_nothing_is_sent_behind_a_remote_disconnect_and_nothing_carried_out():
    world = World("backend")
    here = room("a")
    client = world.subscribed(here, query="me")
    answer = world.backend.slowly("perform")
    client.perform(here, "1")
    client.perform(here, "2")
    world.publish("a", "before")
    world.ban('{"user":"me"}')
    world.publish("a", "behind")
    answer.callback(None)
    assert client.heard() == [1, "disconnect"]
    assert len(world.backend.called("perform")) == 1


@pytest.mark.statement("CP-102")
def test_a_banned_session_is_not_recorded_at_its_end():
    world = World("backend")
    client = world.subscribed(room("a"), query="me")
    world.ban('{"user":"me"}')
    world.broker.calls.clear()
    client.cut()
    assert world.broker.calls == ["release_presence"]


@pytest.mark.statement("BR-13")
def test_an_unknown_command_is_counted_and_has_no_effect():
    world = World()
    client = world.subscribed(A)
    world.broadcast({"command": "dance", "payload": {"identifier": "x"}})
    assert (client.take(), client.closed) == ([], None)
    assert world.metrics.value("remote_commands_total") == 1


@pytest.mark.parametrize("payload", [{}, {"identifier": 1}, {"identifier": "x", "reconnect": "yes"}])
def test_an_ill_formed_command_from_the_bus_has_no_effect(payload):
    world = World()
    client = world.subscribed(A)
    world.node.execute(RemoteCommand("disconnect", payload))
    world.node.execute(RemoteCommand("takeover", payload))
    assert (client.take(), client.closed) == ([], None)


# -- the end of connections


@pytest.mark.statement("CP-140")
def test_the_end_of_a_connection_is_recorded_once():
    world = World("backend")
    client = world.subscribed(room("a"))
    world.broker.calls.clear()
    client.cut()
    client.cut()
    assert world.broker.calls == ["release_presence", "release_session"]
    assert len(world.backend.called("disconnect")) == 1


def test_a_base_session_is_not_recorded():
    world = World()
    client = world.subscribed(A, extended=False)
    client.cut()
    assert not {"save_session", "release_session"} & set(world.broker.calls)


@pytest.mark.statement("CP-137")
def test_a_session_closed_for_a_restart_keeps_its_place():
    """What is published between the close and the end of the connection is still owed."""
    world = World()
    client = world.subscribed(A)
    world.publish("a")
    client.session.disconnect(1001, "Server restart")
    world.publish("a")
    assert client.heard() == [1]
    client.cut()
    again = client.again()
    again.catch_up(A)
    assert again.heard() == ["welcome", 2, "confirm_history"]


def test_the_gauges_tell_what_is_there():
    world = World("backend")
    clients = [world.subscribed(room("a"), query="me") for _ in range(2)] + [world.subscribed(room("b"), query="you")]
    names = ("clients_num", "clients_uniq_num", "broadcast_streams_num")
    assert [world.metrics.value(name) for name in names] == [3, 2, 2]
    for client in clients:
        client.cut()
    assert [world.metrics.value(name) for name in names[:2]] == [0, 0]
    world.advance(world.node.settings["stats_refresh_interval"] + 0.1)
    assert world.metrics.value("broadcast_streams_num") == 0


def test_a_stopped_node_ends_what_it_was_doing_without_a_word():
    world = World(bus=True)
    world.subscribed(A)
    world.broker.failing = {"history": DOWN}
    spoilt(world, lambda m: forget(m, 0))
    result_of(world.node.stop())
    assert not world.node._running
    assert world.metrics.value("internal_errors_total") == 0


def test_a_broker_that_is_down_at_the_end_of_a_connection_is_counted():
    world = World()
    client = world.subscribed(A)
    world.broker.failing = {"release_presence": DOWN, "release_session": DOWN}
    client.cut()
    world.turn()
    assert world.metrics.value("broker_errors_total") == 2


def test_many_changes_at_once_are_kept_once():
    world = World()
    client = world.connect()
    node = world.nodes[0]
    kept: list[bytes] = []
    save = node.broker.save_session

    def counted(sid: str, identifiers: str, record: bytes, previous: str) -> Any:
        kept.append(record)
        return save(sid, identifiers, record, previous)

    node.broker.save_session = counted
    for n in range(20):
        client.subscribe(pubsub(f"s{n}"))
    assert kept == []
    world.advance(0.2)
    assert len(kept) == 1
    assert all(f'"s{n}"'.encode() in kept[0] for n in range(20))
    world.advance(5)
    assert len(kept) == 1


def test_all_sessions_are_kept_anew_when_the_broker_lost_them():
    world = World()
    clients = [world.connect() for _ in range(3)]
    kept: list[str] = []
    save = world.broker.save_session

    def saving(sid, *args):
        kept.append(sid)
        return save(sid, *args)

    world.broker.save_session = saving
    world.node.store_lost()
    assert sorted(kept) == sorted(client.sid for client in clients)
