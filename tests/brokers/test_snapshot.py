"""A memory broker that is stopped and started goes on where it was; a bad snapshot never stops the start."""

import os
import stat
from hashlib import sha256

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from anycable_tx.brokers.snapshot import BadSnapshot, Snapshot
from anycable_tx.cable.messages import HistoryRequest, Member, Position, Publication, Receipt
from anycable_tx.errors import ConfigurationError, HistoryRefused
from anycable_tx.testing.sync import result_of
from tests.brokers.support import WALL, make_broker


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.snapshot"


@pytest.fixture
def log():
    """The texts of what is logged."""
    events = []

    def observe(event):
        events.append(event["log_format"].format(**event) if "log_format" in event else "")

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def boot(path, at=0, **given):
    """A broker that starts at the second *at*, by a clock of its own."""
    return make_broker(Clock(), wall=WALL + at, broker_snapshot=str(path), **given)


def publish(made, stream="chat", payload=b"{}", **fields):
    return result_of(made.broker.publish(Publication(stream, payload, **fields)))


def history(made, epoch, offset, stream="chat"):
    return result_of(made.broker.history(stream, HistoryRequest(Position(epoch, offset)))).messages


def stopped(path, count=3, **given):
    """A broker that stored *count* messages and was stopped."""
    made = boot(path, **given)
    for number in range(count):
        publish(made, payload=b"%d" % number)
    result_of(made.broker.stop())
    return made


def test_messages_their_epoch_and_their_meta_survive(path):
    first = boot(path)
    epoch = first.broker.epoch
    payload = '{"text":"Привет","big":123456789012345678901234567890}'.encode()
    publish(first, payload=payload, exclude_socket="sid", broadcast_type="x", id="p-1")
    publish(first, payload=b"\xff not even text")
    result_of(first.broker.stop())
    second = boot(path, at=20)
    assert second.broker.epoch == epoch
    one, two = history(second, epoch, 0)
    assert (one.payload, one.offset, one.prev, one.epoch) == (payload, 1, 0, epoch)
    assert (one.exclude_socket, one.broadcast_type, one.id, one.time) == ("sid", "x", "p-1", WALL)
    assert (two.payload, two.offset, two.prev) == (b"\xff not even text", 2, 1)


@pytest.mark.statement("CP-79")
def test_offsets_go_on(path):
    epoch = stopped(path).broker.epoch
    assert publish(boot(path)) == Receipt(4, epoch)


def test_messages_age_while_the_server_is_away(path):
    first = boot(path)
    publish(first)
    first.clock.advance(30)
    publish(first)
    result_of(first.broker.stop())
    second = boot(path, at=65)
    epoch = second.broker.epoch
    assert [m.offset for m in history(second, epoch, 1)] == [2]
    with pytest.raises(HistoryRefused, match="expired"):
        history(second, epoch, 0)


def test_counters_and_the_floor_survive(path):
    first = boot(path, max_counters=1)
    for stream in ("one", "two"):
        publish(first, stream)
    first.clock.advance(650)
    result_of(first.broker.stop())
    second = boot(path, at=651, max_counters=1)
    assert second.broker.epoch == first.broker.epoch
    assert [publish(second, stream).offset for stream in ("one", "two", "three")] == [2, 2, 2]


def test_a_stream_that_is_no_longer_stored_keeps_its_counter(path):
    epoch = stopped(path).broker.epoch
    second = boot(path, history_limit=0)
    assert publish(second) == Receipt(0, "")
    assert history(second, epoch, 3) == []
    result_of(second.broker.stop())
    assert publish(boot(path)) == Receipt(4, epoch)


def test_a_smaller_limit_holds_for_what_is_loaded(path):
    epoch = stopped(path, count=5).broker.epoch
    second = boot(path, history_limit=2)
    assert [m.offset for m in history(second, epoch, 3)] == [4, 5]
    with pytest.raises(HistoryRefused, match="trimmed"):
        history(second, epoch, 2)


def test_ids_of_publications_survive_for_the_rest_of_their_time(path):
    first = boot(path)
    receipt = publish(first, id="p-1")
    first.clock.advance(5)
    result_of(first.broker.stop())
    second = boot(path, at=10)
    assert publish(second, id="p-1") == receipt._replace(duplicate=True)
    second.clock.advance(10)
    assert not publish(second, id="p-1").duplicate


@pytest.mark.statement("BR-51")
def test_sessions_survive_for_the_rest_of_their_time(path):
    first = boot(path)
    broker = first.broker
    result_of(broker.save_session("connected", "user-1", b"\xffrecord"))
    result_of(broker.save_session("released", "user-1", b"record"))
    result_of(broker.release_session("released", b"last"))
    result_of(broker.claim_session("connected", "heir"))
    first.clock.advance(10)
    result_of(broker.stop())
    broker = boot(path, at=25).broker
    assert result_of(broker.claim_session("connected", "b")) == (b"\xffrecord", "heir")
    assert result_of(broker.claim_session("released", "b")) == (b"last", "")
    second = boot(path, at=25)
    result_of(second.broker.stop())

    first = boot(path)
    for sid in ("connected", "released"):
        result_of(first.broker.save_session(sid, "user-1", b"record"))
    result_of(first.broker.release_session("released", b"last"))
    first.clock.advance(10)
    result_of(first.broker.stop())
    second = boot(path, at=31)
    assert result_of(second.broker.claim_session("released", "b")) is None
    assert result_of(second.broker.claim_session("connected", "b")) is not None
    assert result_of(second.broker.forget_sessions("user-1")) == 1
    second.clock.advance(40)


def test_members_survive_and_have_their_whole_time_to_come_back(path):
    first = boot(path)
    result_of(first.broker.join("room", "a", "alice", {"n": 1}))
    result_of(first.broker.join("room", "b", "alice", {"n": 1}))
    result_of(first.broker.join("room", "c", "carol", None))
    result_of(first.broker.stop())
    second = boot(path, at=30)
    assert result_of(second.broker.members("room")) == [Member("alice", {"n": 1}), Member("carol", None)]
    assert result_of(second.broker.move_presence("c", "d")) == {"room": "carol"}
    second.clock.pump([1] * 20)
    assert second.node.expired == [("room", "alice")]


def test_the_file_is_there_only_while_the_server_is_away(path):
    stopped(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    boot(path)
    assert os.listdir(path.parent) == []


def test_a_crash_begins_a_new_epoch(path):
    stopped(path)
    crashed = boot(path)
    assert boot(path).broker.epoch != crashed.broker.epoch


def test_a_stop_that_cannot_write_is_logged_counted_and_leaves_nothing(path, log, monkeypatch):
    first = boot(path)
    publish(first)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result_of(first.broker.stop())
    monkeypatch.undo()
    assert first.metrics.value("broker_errors_total") == 1
    assert any("could not be written" in line for line in log)
    assert os.listdir(path.parent) == []
    assert boot(path).broker.epoch != first.broker.epoch


def test_a_leftover_of_a_stop_that_was_killed_is_written_over(path):
    path.with_name(path.name + ".tmp").write_bytes(b"half")
    stopped(path)
    assert os.listdir(path.parent) == [path.name]


def line(*values):
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def sealed(body, version=1):
    digest = sha256(body).hexdigest().encode()
    return b"anycable-tx memory broker snapshot %d %s\n%s" % (version, digest, body)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a snapshot of this broker"),
        (b"root:x:0:0\n", "not a snapshot of this broker"),
        (b"anycable-tx memory broker snapshotty 1 00\n", "not a snapshot of this broker"),
        (sealed(b"", version=2), "format is version 2, not 1"),
        (sealed(line(["snapshot", "epoch", WALL]))[:-2], "damaged or not complete"),
        (sealed(b""), "first row"),
        (sealed(line({"a": 1})), "first row"),
        (sealed(line(["snapshot", "epoch", "now"])), "first row"),
        (sealed(line(["snapshot", "epoch", WALL - 61])), "it is 61 s old"),
        (sealed(line(["snapshot", "epoch", WALL + 60])), "in the future"),
        (sealed(line(["snapshot", "epoch", WALL]) + b"no json\n"), "a row is not understood"),
        (sealed(line(["snapshot", "epoch", WALL], ["unknown", 1])), "unknown kind 'unknown'"),
        (sealed(line(["snapshot", "epoch", WALL], ["stream", "chat"])), "a row is not understood"),
        (sealed(line(["snapshot", "epoch", WALL], [])), "a row is not understood"),
        (sealed(line(["snapshot", "epoch", WALL], 7)), "a row is not understood"),
        (sealed(line(["snapshot", "epoch", WALL], ["session", 1, 2, 3, 4, 5])), "a row is not understood"),
        (sealed(line(["snapshot", "epoch", WALL], ["present", "a", {"room": "x"}])), "a row is not understood"),
    ],
)
def test_a_file_that_is_no_good_is_named_with_the_reason_and_not_used(path, log, content, reason):
    path.write_bytes(content)
    made = boot(path)
    assert made.broker.epoch != "epoch"
    assert not path.exists()
    (warning,) = [text for text in log if "is not used" in text]
    assert str(path) in warning
    assert reason in warning
    assert publish(made) == Receipt(1, made.broker.epoch)


def test_a_file_that_is_not_ours_is_set_aside_and_not_lost(path):
    path.write_bytes(b"something precious")
    result_of(boot(path).broker.stop())
    assert path.with_name(path.name + ".rejected").read_bytes() == b"something precious"


def test_half_of_a_snapshot_is_not_used(path):
    rows = line(
        ["snapshot", "epoch", WALL],
        ["stream", "chat", 1, 0, -1, 0, [[0, WALL, "{}", "", "", ""]]],
        ["session", "a", "user-1", "record", "", 30],
        ["oops"],
    )
    path.write_bytes(sealed(rows))
    made = boot(path)
    assert result_of(made.broker.tail("chat")).offset == 0
    assert result_of(made.broker.claim_session("a", "b")) is None


def test_rules_that_keep_longer_make_a_snapshot_good_for_longer(path):
    rules = ({"match": "news", "class": "news", "history_ttl": 3600},)
    first = boot(path, broker_rules=rules)
    epoch = publish(first, "news").epoch
    publish(first, "chat")
    result_of(first.broker.stop())
    second = boot(path, at=1800, broker_rules=rules)
    assert [m.offset for m in history(second, epoch, 0, "news")] == [1]
    with pytest.raises(HistoryRefused, match="expired"):
        history(second, epoch, 0, "chat")


@pytest.mark.parametrize("where", ["missing/file", "", "a file/snapshot"])
def test_a_place_that_cannot_be_written_is_found_at_the_start(tmp_path, where):
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(ConfigurationError) as refused:
        boot(tmp_path / where)
    assert str(refused.value).startswith(f"broker_snapshot: {str(tmp_path / where)!r} cannot be written: ")


def test_a_snapshot_that_cannot_be_removed_is_not_served(path, monkeypatch):
    stopped(path)
    snapshot = Snapshot(str(path), 60)

    def fail(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(ConfigurationError, match="cannot be removed before serving: Operation not permitted"):
        snapshot.take(WALL)


def test_a_file_that_cannot_be_read_is_set_aside(path, monkeypatch):
    stopped(path)

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    snapshot = Snapshot(str(path), 60)
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(BadSnapshot, match="cannot be read: Permission denied"):
        snapshot.take(WALL)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name + ".rejected"]


def test_a_relative_path_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = Snapshot("broker.snapshot", 60)
    monkeypatch.chdir("/")
    assert snapshot.path == str(tmp_path / "broker.snapshot")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_can_be_changed_unnoticed(path, data):
    epoch = stopped(path).broker.epoch
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert boot(path).broker.epoch != epoch


def test_a_session_whose_time_ended_while_the_server_was_away_is_told(path):
    first = boot(path)
    for sid in "ab":
        result_of(first.broker.save_session(sid, "user", b"record"))
    result_of(first.broker.release_session("a", b"last"))
    first.clock.advance(10)
    result_of(first.broker.give_up_sessions())
    assert first.node.ended == []
    result_of(first.broker.stop())
    again = boot(path, at=45)
    assert again.node.ended == [("a", b"last"), ("b", b"record")]
