"""The memory broker against a model that is too simple to be wrong: it forgets nothing and looks at everything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.task import Clock

from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import HistoryRefused, PresenceRefused
from anycable_tx.testing.sync import result_of
from tests.brokers.support import WALL, Made, make_broker

LIMIT, TTL = 3, 10
SESSIONS_TTL, PRESENCE_TTL, IDS_TTL = 8, 5, 6

# Quarters of seconds are exact as floats, so that the edges of the model are those of the broker.
TIMES = st.sampled_from([0.25, 1.0, 2.75, 7.0, 10.0, 12.5, 130.0])
NAMES_OF_STREAMS = ("one", "two", "long/1", "never:1")
STREAMS = st.sampled_from(NAMES_OF_STREAMS)
RULES = (
    {"match": "long/*", "class": "long", "history_limit": 5, "history_ttl": 40},
    {"match": "never:*", "class": "never", "history_limit": 0},
)
SIDS = st.sampled_from(["a", "b", "c", "d"])
NAMES = st.sampled_from(["alice", "bob"])
USERS = st.sampled_from(["user-1", "user-2"])


@dataclass
class Stored:
    """A message: when it was stored by the true time, and the second on its stamp."""

    offset: int
    payload: bytes
    at: float
    second: int


@dataclass
class Session:
    """A session; ``deadline`` is None while it is connected."""

    identifiers: str
    record: bytes
    heir: str = ""
    deadline: float | None = None


@dataclass
class Model:
    """Everything that happened since the epoch began."""

    log: dict[str, list[Stored]] = field(default_factory=lambda: {name: [] for name in NAMES_OF_STREAMS})
    ids: dict[tuple[str, str], tuple[Receipt, float]] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    present: dict[str, dict[str, str]] = field(default_factory=dict)  # sid -> {stream: id}
    info: dict[tuple[str, str], Any] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)  # of released members

    def has(self, stream: str, id: str) -> bool:
        return any(streams.get(stream) == id for streams in self.present.values())


class BrokerMachine(RuleBasedStateMachine):
    @initialize(max_counters=st.sampled_from([100_000, 100_000, 1]))
    def begin(self, max_counters: int) -> None:
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "snapshot"
        self.max_counters = max_counters
        self.time = 0.0  # the true time, whatever the clocks say
        self.wall_error = 0.0
        self.model = Model()
        self.issued: set[tuple[str, str, int]] = set()
        self.epochs: list[str] = []
        self.events: dict[tuple[str, str], int] = {}  # joins less leaves
        self.boot()

    def boot(self) -> None:
        clock = Clock()
        clock.advance(1000 + len(self.epochs) * 7.25)
        self.made: Made = make_broker(
            clock,
            wall=WALL + self.wall_error + self.time - clock.seconds(),
            max_counters=self.max_counters,
            history_limit=LIMIT,
            history_ttl=TTL,
            sessions_ttl=SESSIONS_TTL,
            presence_ttl=PRESENCE_TTL,
            idempotency_ttl=IDS_TTL,
            broker_rules=RULES,
            broker_snapshot=str(self.path),
        )
        self.broker = self.made.broker
        assert not self.path.exists()
        self.epochs.append(self.broker.epoch)

    @property
    def wall(self) -> float:
        return WALL + self.wall_error + self.time

    @property
    def exact(self) -> bool:
        """No counter was thrown away, so the broker has no excuse for a refusal."""
        return not self.made.metrics.value("broker_evictions_total")

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()

    # -- time

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.time += seconds
        self.made.clock.advance(seconds)
        self.notice()

    @rule()
    def sweep(self) -> None:
        self.broker.sweep()
        self.notice()
        late = [sid for sid, deadline in self.model.deadlines.items() if deadline + 2 <= self.time]
        assert late == []

    @rule(hours=st.sampled_from([-1, 1]))
    def the_wall_clock_jumps(self, hours: int) -> None:
        self.wall_error += hours * 3600
        clock, wall = self.made.clock, self.wall - self.made.clock.seconds()
        self.broker._wall = lambda: wall + clock.seconds()

    @rule(down=st.sampled_from([0.0, 1.5, 6.0, 9.0, 41.0]))
    def restart(self, down: float) -> None:
        result_of(self.broker.stop())
        self.made.clock.advance(100)
        assert self.made.node.expired == []
        stopped = self.time
        self.time += down
        self.boot()
        if down > 40:
            assert self.broker.epoch not in self.epochs[:-1]
            self.model, self.events = Model(), {}
            return
        assert self.broker.epoch == self.epochs[-2]
        for session in self.model.sessions.values():
            if session.deadline is None:
                session.deadline = stopped + SESSIONS_TTL
        self.model.deadlines = dict.fromkeys(self.model.present, self.time + PRESENCE_TTL)
        # whether counters were lost before is no longer counted
        if self.max_counters == 1:
            self.made.metrics.count("broker_evictions_total")

    @rule()
    def crash(self) -> None:
        self.boot()
        assert self.broker.epoch not in self.epochs[:-1]
        self.model, self.events = Model(), {}

    # -- streams

    @rule(stream=STREAMS, id=st.sampled_from(["", "p-1", "p-2"]), transient=st.sampled_from([False, False, True]))
    def publish(self, stream: str, id: str, transient: bool) -> None:
        self.publish_one(stream, id, transient)

    def publish_one(self, stream: str, id: str = "", transient: bool = False) -> None:
        handed = len(self.made.bus.messages)
        payload = b'{"n":%d,"\xc3\xa9":1}' % len(self.issued)
        receipt = result_of(self.broker.publish(Publication(stream, payload, id=id, transient=transient)))
        first = self.model.ids.get((stream, id))
        if id and first is not None and self.time < first[1] + IDS_TTL:
            assert receipt == first[0]._replace(duplicate=True)
            assert len(self.made.bus.messages) == handed
            return
        assert not receipt.duplicate
        self.model.ids[stream, id] = (receipt, self.time)
        (message,) = self.made.bus.messages[handed:]
        assert (message.payload, message.offset, message.epoch) == (payload, *receipt[:2])
        if transient or stream.startswith("never"):
            assert receipt == Receipt(0, "")
            return
        log = self.model.log[stream]
        assert receipt.epoch == self.broker.epoch
        assert (receipt.epoch, stream, receipt.offset) not in self.issued
        assert receipt.offset > (log[-1].offset if log else 0)
        self.issued.add((receipt.epoch, stream, receipt.offset))
        if self.exact:
            assert receipt.offset == len(log) + 1
            assert message.prev == len(log)
            assert int(message.time) == max(int(self.wall), log[-1].second if log else 0)
        log.append(Stored(receipt.offset, payload, self.time, int(message.time)))

    @rule(stream=STREAMS, count=st.integers(1, 7))
    def publish_many(self, stream: str, count: int) -> None:
        for _ in range(count):
            self.publish_one(stream)

    @invariant()
    def every_history_is_whole_or_refused(self) -> None:
        """P4, for all clients there could be around the edges of what is kept."""
        if not hasattr(self, "broker"):
            return
        for stream in self.model.log:
            log = self.model.log[stream]
            last = log[-1].offset if log else 0
            for offset in {0, *range(max(0, last - 7), last + 1), last + 1, 2**63}:
                answer = self.ask(stream, HistoryRequest(Position(self.broker.epoch, offset)))
                if self.exact and offset > last:
                    assert answer == "future_offset"
                else:
                    self.judge(stream, answer, [m for m in log if m.offset > offset])
            for since in {int(self.wall) - ago for ago in (-5, 0, 1, 3, 8, 12, 45, 150)}:
                missing = [m for m in log if m.second >= min(since, int(self.wall))]
                self.judge(stream, self.ask(stream, HistoryRequest(None, since)), missing)
            for epoch in self.epochs:
                if epoch != self.broker.epoch:
                    assert self.ask(stream, HistoryRequest(Position(epoch, last))) == "unknown_epoch"

    def ask(self, stream: str, request: HistoryRequest) -> list[bytes] | str:
        try:
            history = result_of(self.broker.history(stream, request))
        except HistoryRefused as e:
            return e.reason
        assert history.top == result_of(self.broker.tail(stream))
        offsets = [m.offset for m in history.messages]
        assert offsets == [m.offset for m in self.model.log[stream] if m.offset in offsets]
        return [m.payload for m in history.messages]

    def judge(self, stream: str, answer: list[bytes] | str, missing: list[Stored]) -> None:
        """Whole, or refused for the reason that something missing cannot be served any more."""
        limit, ttl = (5, 40) if stream.startswith("long") else (LIMIT, TTL)
        log = self.model.log[stream]
        whole = all(m in log[-limit:] and self.time - m.at <= ttl for m in missing)
        if isinstance(answer, list):
            assert whole
            assert answer == [m.payload for m in missing]
        elif self.exact:
            assert not whole, answer
            assert answer in ("trimmed", "expired")

    @invariant()
    def nothing_is_kept_beyond_its_bounds(self) -> None:
        if hasattr(self, "broker"):
            for log in self.broker._logs._logs.values():
                assert len(log.entries) <= log.limit
            assert len(self.broker._logs._counters) <= self.max_counters

    # -- sessions

    @rule(sid=SIDS, user=USERS, n=st.integers(0, 9))
    def save_session(self, sid: str, user: str, n: int) -> None:
        record = b"record-%d \xff" % n
        result_of(self.broker.save_session(sid, user, record))
        known = self.model.sessions.get(sid)
        alive = known is not None and (known.deadline is None or self.time < known.deadline)
        if known is not None and (alive or sid in self.broker._sessions._sessions):
            known.identifiers, known.record, known.deadline = user, record, None
            if not alive:
                known.heir = self.broker._sessions._sessions[sid].heir
        else:
            self.model.sessions[sid] = Session(user, record)

    @rule(sid=SIDS, n=st.integers(0, 9))
    def release_session(self, sid: str, n: int) -> None:
        known = self.model.sessions.get(sid)
        if known is not None and known.deadline is not None:
            return  # a session ends once
        result_of(self.broker.release_session(sid, b"last-%d" % n))
        if known is not None:
            known.record, known.deadline = b"last-%d" % n, self.time + SESSIONS_TTL

    @rule(sid=SIDS, heir=SIDS)
    def claim_session(self, sid: str, heir: str) -> None:
        claim = result_of(self.broker.claim_session(sid, heir))
        known = self.model.sessions.get(sid)
        if known is None or (known.deadline is not None and known.deadline <= self.time):
            assert claim is None
        else:
            assert claim == (known.record, known.heir)
            known.heir = heir

    @rule(sid=SIDS)
    def forget_session(self, sid: str) -> None:
        result_of(self.broker.forget_session(sid))
        self.model.sessions.pop(sid, None)

    @rule(user=USERS)
    def forget_sessions(self, user: str) -> None:
        gone = [sid for sid, s in self.model.sessions.items() if s.identifiers == user]
        claimable = sum((self.model.sessions[sid].deadline or math.inf) > self.time for sid in gone)
        assert result_of(self.broker.forget_sessions(user)) == claimable
        for sid in gone:
            del self.model.sessions[sid]

    # -- presence

    @rule(stream=STREAMS, sid=SIDS, name=NAMES, info=st.sampled_from([None, 1, True, {"n": [1]}]))
    def join(self, stream: str, sid: str, name: str, info: Any) -> None:
        try:
            changed = result_of(self.broker.join(stream, sid, name, info))
        except PresenceRefused:
            assert self.model.present[sid][stream] != name
            return
        assert self.model.present.get(sid, {}).get(stream, name) == name
        new = not self.model.has(stream, name)
        assert changed == (new or repr(self.model.info[stream, name]) != repr(info))
        if new:
            self.count((stream, name), 1)
        self.model.info[stream, name] = info
        self.model.present.setdefault(sid, {})[stream] = name
        self.model.deadlines.pop(sid, None)

    @rule(stream=STREAMS, sid=SIDS)
    def leave(self, stream: str, sid: str) -> None:
        left = result_of(self.broker.leave(stream, sid))
        name = self.model.present.get(sid, {}).pop(stream, None)
        last = name is not None and not self.model.has(stream, name)
        assert left == (name if last else None)
        if left is not None:
            self.count((stream, left), -1)
        self.tidy(sid)

    @rule(sid=SIDS)
    def release_presence(self, sid: str) -> None:
        result_of(self.broker.release_presence(sid))
        if sid in self.model.present:
            self.model.deadlines[sid] = self.time + PRESENCE_TTL

    @rule(sid=SIDS, heir=SIDS)
    def move_presence(self, sid: str, heir: str) -> None:
        moved = result_of(self.broker.move_presence(sid, heir))
        old, new = self.model.present.get(sid, {}), self.model.present.get(heir, {})
        assert moved == {stream: id for stream, id in old.items() if new.get(stream, id) == id}
        if moved:
            self.model.present[sid] = {stream: id for stream, id in old.items() if stream not in moved}
            self.tidy(sid)
            self.model.present[heir] = {**self.model.present.get(heir, {}), **moved}
            self.model.deadlines.pop(heir, None)

    @invariant()
    def the_members_are_those_whose_coming_was_told_and_whose_going_was_not(self) -> None:
        if not hasattr(self, "broker"):
            return
        assert set(self.events.values()) <= {0, 1}
        for stream in NAMES_OF_STREAMS:
            members = {m.id: m.info for m in result_of(self.broker.members(stream))}
            there = [id for (where, id), n in self.events.items() if where == stream and n]
            assert sorted(members) == sorted(there)
            assert all(self.model.has(stream, id) for id in there)
            assert repr(members) == repr({id: self.model.info[stream, id] for id in members})

    def count(self, member: tuple[str, str], change: int) -> None:
        self.events[member] = self.events.get(member, 0) + change

    def tidy(self, sid: str) -> None:
        if not self.model.present.get(sid):
            self.model.present.pop(sid, None)
            self.model.deadlines.pop(sid, None)

    def notice(self) -> None:
        """Take note of the members that the broker let go; it may take up to two seconds more than the ttl."""
        for sid, deadline in list(self.model.deadlines.items()):
            if sid not in self.broker._presence._sessions:
                assert deadline <= self.time
                del self.model.present[sid], self.model.deadlines[sid]
        for member in self.made.node.expired:
            assert not self.model.has(*member)
            self.count(member, -1)
        self.made.node.expired.clear()


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestBrokerMachine.pytestmark = [
    pytest.mark.statement("CP-66", "CP-67", "CP-72", "CP-79", "CP-81", "BR-46", "BR-47", "BR-51", "BR-52")
]
