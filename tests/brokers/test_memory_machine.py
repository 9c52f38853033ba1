"""The memory broker against models that are too simple to be wrong: they forget nothing and look at everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.task import Clock

from anycable_tx.cable.messages import HistoryRequest, Position, Publication, Receipt
from anycable_tx.errors import HistoryRefused, PresenceRefused
from anycable_tx.testing.sync import result_of
from tests.brokers.support import WALL, Made, make_broker

LIMITS, TTLS, IDLE = {"one": 3, "two": 3, "long/1": 5, "never:1": 0}, {"one": 10, "two": 10, "long/1": 40}, 10
SESSIONS_TTL, PRESENCE_TTL, IDS_TTL = 8, 5, 6
RULES = (
    {"match": "long/*", "class": "long", "history_limit": 5, "history_ttl": 40},
    {"match": "never:*", "class": "never", "history_limit": 0},
)
STREAMS = st.sampled_from(["one", "two", "long/1", "never:1"])
SIDS = st.sampled_from(["a", "b", "c"])
SELDOM = st.sampled_from([False, False, False, True])


class Machine(RuleBasedStateMachine):
    """A broker, the time, and what happens to both. Times are quarters of seconds, which floats keep exactly."""

    max_counters = 100_000

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "snapshot"
        self.time = 0.0  # the true time, whatever the clocks say
        self.wall_error = 0.0
        self.epochs: list[str] = []
        self.boot()

    def teardown(self) -> None:
        self.directory.cleanup()

    def boot(self) -> None:
        clock = Clock()
        clock.advance(1000 + len(self.epochs) * 7.25)
        self.made: Made = make_broker(
            clock,
            wall=self.wall - clock.seconds(),
            max_counters=self.max_counters,
            history_limit=3,
            history_ttl=10,
            sessions_ttl=SESSIONS_TTL,
            presence_ttl=PRESENCE_TTL,
            idempotency_ttl=IDS_TTL,
            broker_rules=RULES,
            broker_snapshot=str(self.path),
        )
        self.broker = self.made.broker
        assert not self.path.exists()
        if not self.epochs or self.broker.epoch != self.epochs[-1]:
            assert self.broker.epoch not in self.epochs
            self.epochs.append(self.broker.epoch)
            self.forget()

    @property
    def wall(self) -> float:
        return WALL + self.wall_error + self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self.made.clock.pump([0.25] * int(seconds * 4))  # so that a sweep is not always the last thing done
        self.time_passed()

    @rule(seconds=st.sampled_from([0.25, 0.75, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.advance(seconds)

    @rule(which=st.integers(0, 9), early=st.sampled_from([-0.25, 0, 0.25]))
    def time_passes_to_an_edge(self, which: int, early: float) -> None:
        edges = sorted({edge for edge in self.edges() if edge > self.time + 0.25})
        if edges:
            self.advance(edges[which % len(edges)] - self.time - early)

    @rule()
    def sweep(self) -> None:
        self.broker.sweep()
        self.time_passed()

    @rule(down=st.sampled_from([0.0, 0.25, 3.0, 8.0, 39.5, 40.25]), really=SELDOM)
    def restart(self, down: float, really: bool) -> None:
        if not really:
            return
        result_of(self.broker.stop())
        stopped, epochs = self.time, len(self.epochs)
        self.time += down
        self.boot()
        assert (len(self.epochs) > epochs) is (down > 40)
        if down <= 40:
            self.restarted(stopped)

    def forget(self) -> None:
        """A new epoch: the broker knows nothing."""
        raise NotImplementedError

    def edges(self) -> Iterator[float]:
        """When something expires."""
        raise NotImplementedError

    def time_passed(self) -> None:
        """Look what the broker did meanwhile."""

    def restarted(self, stopped: float) -> None:
        """The broker that was stopped at *stopped* goes on from its snapshot."""


@dataclass
class Stored:
    """A message: when it was stored by the true time, and the second on its stamp."""

    offset: int
    payload: bytes
    at: float
    second: int


class LogMachine(Machine):
    """P4 and P6: every answer is whole or refused for a reason; no offset is given out twice."""

    def __init__(self) -> None:
        self.issued: set[tuple[str, str, int]] = set()
        self.sent = 0
        super().__init__()

    def forget(self) -> None:
        self.log: dict[str, list[Stored]] = {stream: [] for stream in TTLS}
        self.ids: dict[tuple[str, str], tuple[Receipt, float]] = {}
        self.exact = self.max_counters > 1  # no counter is lost, so the broker has no excuse for a refusal

    def edges(self) -> Iterator[float]:
        for stream, log in self.log.items():
            for message in log[-LIMITS[stream] :]:
                yield message.at + TTLS[stream]
                yield message.at + TTLS[stream] * IDLE
        for _, at in self.ids.values():
            yield at + IDS_TTL

    @rule(hours=st.sampled_from([-1, 1]))
    def the_wall_clock_jumps(self, hours: int) -> None:
        self.wall_error += hours * 3600
        clock, wall = self.made.clock, self.wall - self.made.clock.seconds()
        self.broker._wall = lambda: wall + clock.seconds()

    @rule(really=SELDOM)
    def crash(self, really: bool) -> None:
        if really:
            self.boot()

    @rule(stream=STREAMS, id=st.sampled_from(["p-1", "p-2"]), transient=st.booleans())
    def publish_with_an_id(self, stream: str, id: str, transient: bool) -> None:
        self.publish(stream, id, transient)

    @rule(stream=STREAMS, count=st.integers(1, 7))
    def publish_many(self, stream: str, count: int) -> None:
        for _ in range(count):
            self.publish(stream)

    def publish(self, stream: str, id: str = "", transient: bool = False) -> None:
        handed = len(self.made.bus.messages)
        self.sent += 1
        payload = b'{"n":%d,"\xc3\xa9":1}' % self.sent
        receipt = result_of(self.broker.publish(Publication(stream, payload, id=id, transient=transient)))
        first = self.ids.get((stream, id))
        if first is not None and self.time < first[1] + IDS_TTL:
            assert receipt == first[0]._replace(duplicate=True)
            assert len(self.made.bus.messages) == handed
            return
        assert not receipt.duplicate
        if id:
            self.ids[stream, id] = (receipt, self.time)
        (message,) = self.made.bus.messages[handed:]
        assert (message.payload, message.offset, message.epoch) == (payload, *receipt[:2])
        if transient or not LIMITS[stream]:
            assert receipt == Receipt(0, "")
            return
        log = self.log[stream]
        assert receipt.epoch == self.broker.epoch
        assert (receipt.epoch, stream, receipt.offset) not in self.issued
        assert receipt.offset > (log[-1].offset if log else 0)
        self.issued.add((receipt.epoch, stream, receipt.offset))
        if self.exact:
            assert receipt.offset == len(log) + 1
            assert message.prev == len(log)
            assert int(message.time) == max(int(self.wall), log[-1].second if log else 0)
        log.append(Stored(receipt.offset, payload, self.time, int(message.time)))

    @invariant()
    def every_history_is_whole_or_refused(self) -> None:
        """For all the clients there could be around the edges of what is kept."""
        for stream, log in self.log.items():
            last = log[-1].offset if log else 0
            for offset in {0, *range(max(0, last - 7), last + 1), last + 1, 2**63}:
                answer = self.ask(stream, HistoryRequest(Position(self.broker.epoch, offset)))
                if self.exact and offset > last:
                    assert answer == "future_offset"
                else:
                    self.judge(stream, answer, [m for m in log if m.offset > offset])
            for since in {int(self.wall) - ago for ago in (-5, 0, 1, 3)} | {
                m.second + d for m in log for d in (0, 1)
            }:
                missing = [m for m in log if m.second >= min(since, int(self.wall))]
                self.judge(stream, self.ask(stream, HistoryRequest(None, since)), missing)
            for epoch in self.epochs[:-1]:
                assert self.ask(stream, HistoryRequest(Position(epoch, last))) == "unknown_epoch"

    def ask(self, stream: str, request: HistoryRequest) -> list[bytes] | str:
        try:
            history = result_of(self.broker.history(stream, request))
        except HistoryRefused as e:
            return e.reason
        assert history.top == result_of(self.broker.tail(stream))
        return [m.payload for m in history.messages]

    def judge(self, stream: str, answer: list[bytes] | str, missing: list[Stored]) -> None:
        """Whole, or refused for the reason that something missing cannot be served any more."""
        can_be_served = [m for m in self.log[stream][-LIMITS[stream] :] if self.time - m.at <= TTLS[stream]]
        whole = all(m in can_be_served for m in missing)
        if isinstance(answer, list):
            assert whole
            assert answer == [m.payload for m in missing]
        elif self.exact:
            assert not whole, answer
            assert answer in ("trimmed", "expired")

    @invariant()
    def nothing_is_kept_beyond_its_bounds(self) -> None:
        for stream, log in self.broker._logs._logs.items():
            assert len(log.entries) <= LIMITS[stream]
        assert len(self.broker._logs._counters) <= self.max_counters


class CrowdedLogMachine(LogMachine):
    """The same when counters of dropped streams are lost: refusals need no reason, the rest is as strict."""

    max_counters = 1


@dataclass
class Session:
    """A session; it is connected until its ``deadline`` is set."""

    identifiers: str
    record: bytes
    heir: str = ""
    deadline: float = float("inf")


class SessionMachine(Machine):
    """P5, as far as it is the broker's: what can be claimed, until when, and who claimed before."""

    def forget(self) -> None:
        self.sessions: dict[str, Session] = {}

    def edges(self) -> Iterator[float]:
        yield from (session.deadline for session in self.sessions.values() if session.deadline < 1e9)

    def time_passed(self) -> None:
        for sid, session in list(self.sessions.items()):
            if session.deadline <= self.time:
                del self.sessions[sid]  # it may be there still, but nobody can tell

    def restarted(self, stopped: float) -> None:
        for session in self.sessions.values():
            session.deadline = min(session.deadline, stopped + SESSIONS_TTL)
        self.time_passed()

    @rule(sid=SIDS, user=st.sampled_from(["user-1", "user-2"]), n=st.integers(0, 9))
    def save(self, sid: str, user: str, n: int) -> None:
        record = b"record-%d \xff" % n
        if sid not in self.sessions:
            result_of(self.broker.forget_session(sid))  # a sid is never used again
        result_of(self.broker.save_session(sid, user, record))
        heir = self.sessions[sid].heir if sid in self.sessions else ""
        self.sessions[sid] = Session(user, record, heir)

    @rule(sid=SIDS, n=st.integers(0, 9))
    def release(self, sid: str, n: int) -> None:
        session = self.sessions.get(sid)
        if session is None:
            result_of(self.broker.forget_session(sid))  # as if it had been swept
        result_of(self.broker.release_session(sid, b"last-%d" % n))
        if session is not None:
            session.record, session.deadline = b"last-%d" % n, self.time + SESSIONS_TTL

    @rule(sid=SIDS, offline=st.sampled_from([0.25, 0.75, 4.0]), wait=st.sampled_from([4.0, 7.75, 8.0, 8.25]))
    def come_and_go(self, sid: str, offline: float, wait: float) -> None:
        self.advance(offline)
        self.save(sid, "user-1", 1)
        self.claim(sid, "h-1")
        self.release(sid, 1)
        self.advance(wait)
        self.claim(sid, "h-2")

    @rule(sid=SIDS, heir=st.sampled_from(["h-1", "h-2", "h-3"]))
    def claim(self, sid: str, heir: str) -> None:
        claim = result_of(self.broker.claim_session(sid, heir))
        session = self.sessions.get(sid)
        if session is None:
            assert claim is None
        else:
            assert claim == (session.record, session.heir)
            session.heir = heir

    @rule(sid=SIDS, really=SELDOM)
    def forget_one(self, sid: str, really: bool) -> None:
        if not really:
            return
        result_of(self.broker.forget_session(sid))
        self.sessions.pop(sid, None)

    @rule(user=st.sampled_from(["user-1", "user-2"]), really=SELDOM)
    def forget_all(self, user: str, really: bool) -> None:
        if not really:
            return
        gone = [sid for sid, session in self.sessions.items() if session.identifiers == user]
        assert result_of(self.broker.forget_sessions(user)) == len(gone)
        for sid in gone:
            del self.sessions[sid]

    @invariant()
    def only_what_just_expired_is_kept_besides(self) -> None:
        kept = self.broker._sessions._sessions
        assert set(self.sessions) <= set(kept)
        assert all(kept[sid].deadline + 2 > self.made.clock.seconds() for sid in kept)


class PresenceMachine(Machine):
    """Each coming and each going of an id is told exactly once, and no going that is made good in time."""

    def forget(self) -> None:
        self.present: dict[str, dict[str, str]] = {}  # sid -> {stream: id}
        self.info: dict[tuple[str, str], Any] = {}
        self.deadlines: dict[str, float] = {}  # of the released ones
        self.told: dict[tuple[str, str], int] = {}  # comings less goings

    def edges(self) -> Iterator[float]:
        yield from self.deadlines.values()

    def time_passed(self) -> None:
        """Take note of who was let go: not before the ttl, and not more than two seconds after it."""
        for sid, deadline in list(self.deadlines.items()):
            if sid not in self.broker._presence._sessions:
                assert deadline <= self.time
                del self.present[sid], self.deadlines[sid]
            else:
                assert deadline > self.time - 2
        for member in self.made.node.expired:
            assert not self.has(*member)
            self.tell(member, -1)
        self.made.node.expired.clear()

    def restarted(self, stopped: float) -> None:
        self.deadlines = dict.fromkeys(self.present, self.time + PRESENCE_TTL)

    def has(self, stream: str, id: str) -> bool:
        return any(streams.get(stream) == id for streams in self.present.values())

    def tell(self, member: tuple[str, str], change: int) -> None:
        self.told[member] = self.told.get(member, 0) + change

    def tidy(self, sid: str) -> None:
        if not self.present.get(sid):
            self.present.pop(sid, None)
            self.deadlines.pop(sid, None)

    @rule(
        stream=st.sampled_from(["room", "hall"]),
        sid=SIDS,
        id=st.sampled_from(["alice", "bob"]),
        info=st.sampled_from([None, 1, True, {"n": [1]}]),
    )
    def join(self, stream: str, sid: str, id: str, info: Any) -> None:
        try:
            changed = result_of(self.broker.join(stream, sid, id, info))
        except PresenceRefused:
            assert self.present[sid][stream] != id
            return
        assert self.present.get(sid, {}).get(stream, id) == id
        new = not self.has(stream, id)
        assert changed == (new or repr(self.info[stream, id]) != repr(info))
        if new:
            self.tell((stream, id), 1)
        self.info[stream, id] = info
        self.present.setdefault(sid, {})[stream] = id
        self.deadlines.pop(sid, None)

    @rule(stream=st.sampled_from(["room", "hall"]), sid=SIDS)
    def leave(self, stream: str, sid: str) -> None:
        left = result_of(self.broker.leave(stream, sid))
        id = self.present.get(sid, {}).pop(stream, None)
        assert left == (None if id is None or self.has(stream, id) else id)
        if left is not None:
            self.tell((stream, left), -1)
        self.tidy(sid)

    @rule(sid=SIDS)
    def release(self, sid: str) -> None:
        result_of(self.broker.release_presence(sid))
        if sid in self.present:
            self.deadlines[sid] = self.time + PRESENCE_TTL

    @rule(sid=SIDS, heir=SIDS, apart=st.sampled_from([0.25, 3.0, 4.75, 5.25]), heir_ends=st.booleans())
    def come_back(self, sid: str, heir: str, apart: float, heir_ends: bool) -> None:
        self.join("room", sid, "alice", None)
        self.join("room", heir, "alice", None)
        self.release(sid)
        if heir_ends:
            self.release(heir)
        self.advance(apart)
        self.move(sid, heir)
        self.advance(6)

    @rule(sid=SIDS, heir=SIDS)
    def move(self, sid: str, heir: str) -> None:
        moved = result_of(self.broker.move_presence(sid, heir))
        old, new = self.present.get(sid, {}), self.present.get(heir, {})
        assert moved == {stream: id for stream, id in old.items() if new.get(stream, id) == id}
        if moved:
            self.present[sid] = {stream: id for stream, id in old.items() if stream not in moved}
            self.tidy(sid)
            self.present[heir] = {**self.present.get(heir, {}), **moved}
            self.deadlines.pop(heir, None)

    @invariant()
    def the_members_are_those_whose_coming_was_told_and_whose_going_was_not(self) -> None:
        assert set(self.told.values()) <= {0, 1}
        for stream in ("room", "hall"):
            members = {m.id: m.info for m in result_of(self.broker.members(stream))}
            there = [id for (where, id), n in self.told.items() if where == stream and n]
            assert sorted(members) == sorted(there)
            assert all(self.has(stream, id) for id in there)
            assert all(repr(info) == repr(self.info[stream, id]) for id, info in members.items())


PROFILE = settings(max_examples=60, stateful_step_count=50, deadline=None)

TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = PROFILE
TestLogMachine.pytestmark = [pytest.mark.statement("CP-66", "CP-67", "CP-72", "CP-79", "CP-81", "BR-46", "BR-47")]
TestCrowdedLogMachine = CrowdedLogMachine.TestCase
TestCrowdedLogMachine.settings = PROFILE
TestCrowdedLogMachine.pytestmark = [pytest.mark.statement("CP-79")]
TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = PROFILE
TestSessionMachine.pytestmark = [pytest.mark.statement("CP-95", "CP-104", "BR-51")]
TestPresenceMachine = PresenceMachine.TestCase
TestPresenceMachine.settings = PROFILE
TestPresenceMachine.pytestmark = [pytest.mark.statement("CP-111", "CP-118", "BR-52")]
