"""The memory broker: history, sessions and presence of one node, in its own memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.brokers.memory_presence import Presence
from anycable_tx.brokers.memory_sessions import Sessions
from anycable_tx.brokers.memory_streams import MAX_COUNTERS, MAX_IDS, RecentIds, StreamLogs
from anycable_tx.brokers.snapshot import BadSnapshot, Snapshot
from anycable_tx.cable.ids import new_epoch
from anycable_tx.cable.messages import (
    Claim,
    History,
    HistoryRequest,
    Member,
    Position,
    Publication,
    Receipt,
    StreamMessage,
)
from anycable_tx.cable.rules import Rules
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IBroker, ProviderContext

__all__ = ["MemoryBroker", "create"]

_log = Logger()


def create(context: ProviderContext) -> MemoryBroker:
    """The factory named by the provider's declaration."""
    return MemoryBroker(context)


@implementer(IBroker)
class MemoryBroker:
    """Everything in this process: it serves one node, and a restart begins a new epoch unless there is a snapshot.

    Ages and deadlines are measured by the reactor's clock, or by the monotonic one where the reactor's is the wall
    clock, so that a jump of the wall clock expires nothing. *wall* stamps messages and answers ``since``.
    *max_counters* and *max_ids* bound what is remembered of dropped streams and of publications' ids.
    """

    stores = True

    def __init__(
        self,
        context: ProviderContext,
        wall: Callable[[], float] = time.time,
        max_counters: int = MAX_COUNTERS,
        max_ids: int = MAX_IDS,
    ) -> None:
        settings = context.settings
        self.epoch = ""
        self._context = context
        self._wall = wall
        seconds: Callable[[], float] = context.reactor.seconds
        self._now = time.monotonic if seconds is time.time else seconds
        self._rules = Rules(settings["broker_rules"], settings["history_limit"], settings["history_ttl"])
        self._slack: float = settings["history_since_slack"]
        self._max_counters = max_counters
        self._max_ids = max_ids
        path = settings["broker_snapshot"]
        self._snapshot = Snapshot(path, self._rules.longest_ttl) if path else None
        self._serving = False
        self._sweeper = LoopingCall(self._tick)
        self._sweeper.clock = context.reactor
        self._begin()

    @property
    def announcement(self) -> str:
        """The start-up log line; the epoch is final once the broker has started."""
        settings = self._context.settings
        return (
            f"Using in-memory broker (epoch: {self.epoch}, history limit: {settings['history_limit']}, "
            f"history ttl: {settings['history_ttl']:.15g}s, sessions ttl: {settings['sessions_ttl']:.15g}s, "
            f"presence ttl: {settings['presence_ttl']:.15g}s)"
        )

    async def start(self) -> None:
        """Load the snapshot if there is a good one, and begin to sweep every second.

        Raises ConfigurationError if ``broker_snapshot`` names a place that cannot be written.
        """
        if self._snapshot is not None:
            self._snapshot.check()
            self._load(self._snapshot)
            self._tell_ended(self._sessions.sweep(self._now()))
        self._serving = True
        self._sweeping = self._sweeper.start(1, now=False)

    async def stop(self) -> None:
        """Stop sweeping and serving; write the snapshot if one is wanted. Never raises for a full or broken disk."""
        if not self._serving:
            return
        self._serving = False
        self._sweeper.stop()
        if self._snapshot is None:
            return
        now = self._now()
        rows = (self._logs.dump(now), self._ids.dump(now), self._sessions.dump(now), self._presence.dump())
        try:
            self._snapshot.write(self.epoch, self._wall(), (row for store in rows for row in store))
        except (OSError, TypeError):  # TypeError: orjson met an info that is no JSON value
            self._context.metrics.count("broker_errors_total")
            _log.failure("The broker's snapshot could not be written; the next start begins a new epoch")

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    def sweep(self) -> None:
        """Forget what is over and tell the node who is gone. Runs every second while the broker is started."""
        now = self._now()
        self._logs.sweep(now)
        self._ids.sweep(now)
        self._tell_ended(self._sessions.sweep(now))
        for stream, id in self._presence.sweep(now):
            self._context.node.presence_expired(stream, id)

    # -- the stream log

    async def publish(self, publication: Publication) -> Receipt:
        """Assign, store and hand to the bus in one reactor turn, so the bus gets a stream's messages in order.

        When the bus fails the message is stored all the same: that is acknowledged and counted, and the nodes fetch
        it from here. For a message that is not stored the bus's error is raised.
        """
        self._check_serving()
        now = self._now()
        stream, id = publication.stream, publication.id
        if id:
            first = self._ids.offset(stream, id, now)
            if first is not None:
                self._context.metrics.count("duplicate_publications_total")
                return Receipt(first, self.epoch if first else "", duplicate=True)
        message = StreamMessage(
            stream,
            publication.payload,
            exclude_socket=publication.exclude_socket,
            broadcast_type=publication.broadcast_type,
            id=id,
        )
        stored = not publication.transient and self._logs.keeps(stream)
        if stored:
            message.epoch = self.epoch
            self._logs.append(message, now, self._wall())
        if id:
            self._ids.add(stream, id, message.offset, now)
        try:
            await self._context.pubsub.publish(message)
        except Exception:
            if not stored:
                self._ids.forget(stream, id)
                raise
            self._context.metrics.count("unannounced_messages_total")
            _log.failure("A message of {stream!r} was stored but could not be handed to the bus", stream=stream)
        return Receipt(message.offset, message.epoch)

    async def tail(self, stream: str) -> Position | None:
        """The newest position; of a stream nothing is known of, the one its next message will follow."""
        return Position(self.epoch, self._logs.last(stream))

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """All of it or HistoryRefused, by the rules of ``StreamLog.prove`` (P4)."""
        messages = self._logs.prove(stream, request, self.epoch, self._now(), self._wall(), self._slack)
        return History(messages, Position(self.epoch, self._logs.last(stream)))

    # -- the session store

    async def save_session(self, sid: str, identifiers: str, record: bytes, previous: str = "") -> None:
        """Keep *record* until the session is released or forgotten; with ``sessions_ttl`` 0 nothing is kept."""
        self._check_serving()
        self._sessions.save(sid, identifiers, record, previous)

    async def release_session(self, sid: str, record: bytes) -> bool:
        """Keep *record* for ``sessions_ttl`` from now; a sid that was forgotten is not brought back."""
        self._check_serving()
        return self._sessions.release(sid, record, self._now())

    async def claim_session(self, sid: str, heir: str) -> Claim | None:
        """The record, for as long as its time is not over."""
        self._check_serving()
        return self._sessions.claim(sid, heir, self._now())

    async def forget_session(self, sid: str) -> None:
        """The sid can no longer be claimed."""
        self._sessions.forget(sid)

    async def forget_sessions(self, identifiers: str) -> int:
        """How many could have been claimed and now cannot."""
        claimable, ended = self._sessions.forget_all(identifiers, self._now())
        self._tell_ended(ended)
        return claimable

    async def give_up_sessions(self) -> None:
        """Without a snapshot no session outlives the server."""
        if self._snapshot is None:
            self._tell_ended(self._sessions.end_released())

    def _tell_ended(self, ended: list[tuple[str, bytes]]) -> None:
        for sid, record in ended:
            self._context.node.session_expired(sid, record)

    # -- presence

    async def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """True for a new id and for a known one with other info (D-30)."""
        self._check_serving()
        return self._presence.join(stream, sid, id, info)

    async def leave(self, stream: str, sid: str) -> str | None:
        """The id, if this was its last session."""
        self._check_serving()
        return self._presence.leave(stream, sid)

    async def release_presence(self, sid: str) -> None:
        """Up to 2 s after ``presence_ttl`` the node is told who is gone, once each."""
        self._check_serving()
        self._presence.release(sid, self._now())

    async def move_presence(self, sid: str, heir: str) -> dict[str, str]:
        """What moved; nothing is announced."""
        self._check_serving()
        return self._presence.move(sid, heir)

    async def members(self, stream: str) -> list[Member]:
        """Who is present, in the order they came."""
        return self._presence.members(stream)

    # -- beginnings

    def _begin(self) -> None:
        """An empty broker of a new epoch."""
        settings = self._context.settings
        self.epoch = new_epoch()
        self._logs = StreamLogs(self._rules, self._max_counters, lambda: self._evicted("stream_counter"))
        self._ids = RecentIds(settings["idempotency_ttl"], self._max_ids, lambda: self._evicted("publication_id"))
        self._sessions = Sessions(settings["sessions_ttl"])
        self._presence = Presence(settings["presence_ttl"])

    def _evicted(self, what: str) -> None:
        self._context.metrics.count("broker_evictions_total", reason=what)

    def _load(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot ended, or begin anew and say why."""
        try:
            loaded = snapshot.take(self._wall())
            if loaded is not None:
                self.epoch = loaded.epoch
                for row in loaded.rows:
                    self._restore(row, self._now(), loaded.down)
        except (BadSnapshot, ValueError, TypeError, LookupError, AttributeError) as e:
            _log.warn(
                "broker_snapshot: {path} is not used, so history and sessions start empty: {reason}",
                path=snapshot.path,
                reason=str(e) if isinstance(e, BadSnapshot) else f"a row is not understood: {e!r}",
            )
            self._begin()

    def _restore(self, row: Any, now: float, down: float) -> None:
        if row[0] in ("member", "present"):
            self._presence.restore(row, now)
        elif row[0] == "session":
            self._sessions.restore(row, now, down)
        elif row[0] == "id":
            self._ids.restore(row, now, down)
        else:
            self._logs.restore(row, self.epoch, now, down)

    def _tick(self) -> None:
        try:
            self.sweep()
        except Exception:  # whatever it is, the sweep must go on
            self._context.metrics.count("internal_errors_total")
            _log.failure("The memory broker's sweep failed")

    def _check_serving(self) -> None:
        if not self._serving:
            raise BrokerUnavailable("the memory broker is not started")
