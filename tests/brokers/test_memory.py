"""What the memory broker does beyond the guarantees all brokers share."""

import time
import tracemalloc

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from anycable_tx.brokers.memory import MemoryBroker, create
from anycable_tx.brokers.memory_streams import RecentIds
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import BrokerUnavailable, HistoryRefused
from anycable_tx.interfaces import IBroker, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.testing.broker_conformance import SETTINGS
from anycable_tx.testing.fakes import RecordingNode, RecordingPubSub
from anycable_tx.testing.sync import result_of
from tests.brokers.support import WALL, make_broker


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(clock):
    return make_broker(clock)


def publish(made, stream="chat", **fields):
    return result_of(made.broker.publish(Publication(stream, b"{}", **fields)))


def history(made, offset=None, since=0, stream="chat"):
    position = None if offset is None else Position(made.broker.epoch, offset)
    return [m.offset for m in result_of(made.broker.history(stream, HistoryRequest(position, since))).messages]


def refused(made, offset=None, since=0, stream="chat"):
    with pytest.raises(HistoryRefused) as refusal:
        history(made, offset, since, stream)
    return refusal.value.reason


def test_it_is_a_broker(made):
    assert verifyObject(IBroker, made.broker)
    assert made.broker.stores


def test_the_factory_makes_it(clock):
    context = ProviderContext(SETTINGS, clock, RecordingNode(), Metrics(), pubsub=RecordingPubSub())
    assert isinstance(create(context), MemoryBroker)


@pytest.mark.statement("BR-42", "BR-78")
def test_the_announced_epoch_is_the_one_messages_get_and_offsets_count_from_1(clock):
    made = make_broker(
        clock, history_limit=100, history_ttl=300, sessions_ttl=86400.0, presence_ttl=15, history_since_slack=0
    )
    assert made.broker.announcement == (
        f"Using in-memory broker (epoch: {made.broker.epoch}, history limit: 100, history ttl: 300s, "
        "sessions ttl: 86400s, presence ttl: 15s)"
    )
    assert len(made.broker.epoch) == 8
    assert [publish(made) for _ in range(2)] == [Receipt(1, made.broker.epoch), Receipt(2, made.broker.epoch)]
    assert publish(made, "other") == Receipt(1, made.broker.epoch)


def test_every_start_has_its_own_epoch():
    assert len({make_broker(Clock()).broker.epoch for _ in range(50)}) == 50


# -- publishing


@pytest.mark.statement("CP-56")
def test_offset_and_hand_over_are_one_step_however_slow_the_bus_is(clock):
    waiting = []

    class SlowBus(RecordingPubSub):
        async def publish(self, message):
            await super().publish(message)
            waiting.append(Deferred())
            await waiting[-1]

    made = make_broker(clock, bus=SlowBus())
    receipts = [Deferred.fromCoroutine(made.broker.publish(Publication("chat", b"{}"))) for _ in range(5)]
    assert [m.offset for m in made.bus.messages] == [1, 2, 3, 4, 5]
    for held in waiting:
        held.callback(None)
    assert [result_of(receipt).offset for receipt in receipts] == [1, 2, 3, 4, 5]


def test_a_stored_message_that_the_bus_did_not_take_is_acknowledged_once_and_counted(made):
    made.bus.failure = ConnectionError("down")
    receipt = publish(made, id="p-1")
    made.bus.failure = None
    assert receipt == Receipt(1, made.broker.epoch)
    assert made.metrics.value("unannounced_messages_total") == 1
    assert publish(made, id="p-1") == Receipt(1, made.broker.epoch, duplicate=True)
    assert history(made, 0) == [1]


def test_a_transient_message_that_the_bus_did_not_take_may_be_tried_again(made):
    made.bus.failure = ConnectionError("down")
    with pytest.raises(ConnectionError):
        publish(made, id="p-1", transient=True)
    made.bus.failure = None
    assert not publish(made, id="p-1", transient=True).duplicate
    assert publish(made, id="p-1", transient=True) == Receipt(0, "", duplicate=True)
    assert len(made.bus.messages) == 1


def test_duplicates_are_counted(made):
    for _ in range(3):
        publish(made, id="p-1")
    assert made.metrics.value("duplicate_publications_total") == 2


def test_remembered_ids_are_bounded_and_what_is_forgotten_early_is_counted(clock):
    made = make_broker(clock, max_ids=3)
    for id in ("p-1", "p-2", "p-3", "p-4"):
        publish(made, id=id)
    assert made.metrics.value("broker_evictions_total", "publication_id") == 1
    assert publish(made, id="p-2").duplicate
    assert not publish(made, id="p-1").duplicate


def test_expired_ids_are_forgotten_by_the_sweep(made):
    publish(made, id="p-1")
    made.clock.advance(25)
    assert not made.broker._ids._seen


def test_with_a_window_of_0_no_id_is_remembered(clock):
    made = make_broker(clock, idempotency_ttl=0)
    assert not publish(made, id="p-1").duplicate
    assert not publish(made, id="p-1").duplicate
    assert not made.broker._ids._seen


def test_an_id_seen_again_after_its_time_is_remembered_anew():
    ids = RecentIds(10, 5)
    ids.add("chat", "p-1", 1, now=0)
    ids.add("chat", "p-2", 2, now=1)
    ids.add("chat", "p-1", 3, now=12)
    assert ids.offset("chat", "p-2", 10.75) == 2
    assert ids.offset("chat", "p-2", 11) is None
    ids.sweep(13)
    assert ids.offset("chat", "p-2", 13) is None
    assert ids.offset("chat", "p-1", 13) == 3


# -- counters of streams that are gone


@pytest.mark.statement("CP-79", "CP-66", "BR-47")
def test_an_idle_stream_is_dropped_to_its_counter_which_proves_what_it_can(made):
    for _ in range(7):
        publish(made)
    seconds = int(WALL)
    made.clock.advance(650)
    assert not made.broker._logs._logs
    assert result_of(made.broker.tail("chat")) == (made.broker.epoch, 7)
    assert history(made, 7) == []
    assert refused(made, 6) == "expired"
    assert refused(made, 8) == "future_offset"
    assert refused(made, since=seconds) == "expired"
    assert history(made, since=seconds + 1) == []
    assert publish(made) == Receipt(8, made.broker.epoch)
    assert made.bus.messages[-1].prev == 7
    assert history(made, 7) == [8]
    assert refused(made, 6) == "expired"
    assert not made.broker._logs._counters


def test_a_stream_in_use_is_not_dropped(made):
    for _ in range(10):
        publish(made)
        made.clock.advance(500)
    assert list(made.broker._logs._logs) == ["chat"]
    made.clock.advance(150)
    assert not made.broker._logs._logs


@pytest.mark.statement("CP-79")
def test_counters_that_no_longer_fit_become_a_floor_under_all_unknown_streams(clock):
    made = make_broker(clock, max_counters=1)
    for _ in range(9):
        publish(made, "busy")
    publish(made, "quiet")
    clock.advance(650)
    assert made.metrics.value("broker_evictions_total", "stream_counter") == 1
    floor = made.broker._logs.floor
    assert floor in (9, 1)
    forgotten = "busy" if floor == 9 else "quiet"
    for stream in (forgotten, "never seen"):
        assert result_of(made.broker.tail(stream)).offset == floor
        assert history(made, floor, stream=stream) == []
        assert refused(made, 0, stream=stream) == "trimmed"
        assert refused(made, floor + 1, stream=stream) == "future_offset"
        assert refused(made, since=int(WALL), stream=stream) == "trimmed"
        assert history(made, since=int(WALL) + 1, stream=stream) == []
        assert publish(made, stream).offset == floor + 1
        assert made.bus.messages[-1].prev == floor
        assert history(made, floor, stream=stream) == [floor + 1]
        assert refused(made, floor - 1, stream=stream) == "trimmed"
    kept = "quiet" if forgotten == "busy" else "busy"
    assert history(made, 10 - floor, stream=kept) == []


def test_a_stream_that_is_not_stored_knows_no_floor(clock):
    made = make_broker(clock, max_counters=0, broker_rules=({"match": "typing", "class": "t", "history_limit": 0},))
    publish(made)
    clock.advance(650)
    assert made.broker._logs.floor == 1
    publish(made, "typing")
    assert result_of(made.broker.tail("typing")).offset == 0
    assert history(made, 0, stream="typing") == []
    assert refused(made, 1, stream="typing") == "future_offset"


def test_an_early_member_list_and_history_cost_nothing(made):
    history(made, 0, stream="asked for")
    result_of(made.broker.tail("asked for"))
    assert result_of(made.broker.members("asked for")) == []
    assert not made.broker._logs._logs
    assert not made.broker._presence._streams


# -- time


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_jump_of_the_wall_clock_expires_nothing(made, jump):
    publish(made, id="p-1")
    result_of(made.broker.save_session("a", "user-1", b"record"))
    result_of(made.broker.release_session("a", b"record"))
    result_of(made.broker.join("room", "a", "alice", None))
    result_of(made.broker.release_presence("a"))
    made.broker._wall = lambda: WALL + made.clock.seconds() + jump
    made.clock.advance(5)
    assert history(made, 0) == [1]
    assert publish(made, id="p-1").duplicate
    assert result_of(made.broker.claim_session("a", "b")) is not None
    assert len(result_of(made.broker.members("room"))) == 1
    assert made.node.expired == []
    publish(made)
    assert history(made, 0) == [1, 2]


def test_a_reactor_that_tells_the_wall_clock_is_not_asked_for_ages():
    class WallReactor(Clock):
        seconds = staticmethod(time.time)

    assert make_broker(WallReactor(), start=False).broker._now is time.monotonic


@pytest.mark.statement("CP-70")
def test_the_slack_of_the_settings_is_taken_off_since(clock):
    made = make_broker(clock, history_since_slack=2)
    publish(made)
    clock.advance(2)
    publish(made)
    assert history(made, since=int(WALL) + 2) == [1, 2]


def test_a_sweep_that_fails_is_counted_and_the_next_one_comes(made):
    def fail(stream, id):
        made.node.expired.append((stream, id))
        raise RuntimeError("broken node")

    made.node.presence_expired = fail
    for second, sid in enumerate("ab"):
        result_of(made.broker.join("room", sid, sid, None))
        result_of(made.broker.release_presence(sid))
        made.clock.advance(second + 1)
    made.clock.pump([1] * 15)
    assert made.node.expired == [("room", "a"), ("room", "b")]
    assert made.metrics.value("internal_errors_total") == 2


# -- start and stop


def test_nothing_is_accepted_before_the_start_or_after_the_stop(clock):
    made = make_broker(clock, start=False)
    broker = made.broker

    def attempts():
        yield broker.publish(Publication("chat", b"{}"))
        yield broker.save_session("a", "user-1", b"")
        yield broker.release_session("a", b"")
        yield broker.claim_session("a", "b")
        yield broker.join("room", "a", "alice", None)
        yield broker.leave("room", "a")
        yield broker.release_presence("a")
        yield broker.move_presence("a", "b")

    for attempt in attempts():
        with pytest.raises(BrokerUnavailable):
            result_of(attempt)
    result_of(broker.start())
    for attempt in attempts():
        result_of(attempt)
    result_of(broker.stop())
    for attempt in attempts():
        with pytest.raises(BrokerUnavailable):
            result_of(attempt)
    assert clock.getDelayedCalls() == []
    result_of(broker.stop())


# -- size


def test_a_connected_session_costs_less_than_500_bytes_with_its_record(made):
    sids = [new_sid() for _ in range(20_000)]
    identifiers = [f'{{"user":"{n}"}}' for n in range(20_000)]
    tracemalloc.start()
    for sid, user in zip(sids, identifiers, strict=True):
        result_of(made.broker.save_session(sid, user, b"r" * 250 + sid.encode()[:2]))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / 20_000 < 500


def test_nothing_is_left_when_everybody_is_gone(made):
    for number in range(200):
        sid = f"sid-{number}"
        result_of(made.broker.save_session(sid, f"user-{number % 7}", b"record"))
        result_of(made.broker.join(f"room-{number % 5}", sid, f"user-{number % 7}", number))
        if number % 3:
            result_of(made.broker.move_presence(sid, f"heir-{number}"))
            result_of(made.broker.release_presence(f"heir-{number}"))
        else:
            result_of(made.broker.release_presence(sid))
        result_of(made.broker.release_session(sid, b"last"))
        made.clock.advance(0.25)
    made.clock.pump([1] * 40)
    broker = made.broker
    assert (len(broker._sessions), len(broker._presence)) == (0, 0)
    assert (broker._sessions._alike, broker._presence._streams) == ({}, {})
    assert (len(broker._sessions._deadlines), len(broker._presence._deadlines)) == (0, 0)
    assert len(made.node.expired) == len(set(made.node.expired)) == 35


def test_sessions_that_do_not_outlive_the_server_end_with_it(made):
    for sid in "ab":
        result_of(made.broker.save_session(sid, "user", b"record"))
    result_of(made.broker.release_session("a", b"last"))
    result_of(made.broker.give_up_sessions())
    assert made.node.ended == [("a", b"last")]
    assert result_of(made.broker.claim_session("a", "c")) is None
