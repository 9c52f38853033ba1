"""The Redis broker: history, sessions and presence that all nodes share, on Redis 6.2 or later, or Valkey."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.background import Background
from anycable_tx.brokers.redis_nodes import Lease
from anycable_tx.brokers.redis_presence import Presence
from anycable_tx.brokers.redis_sessions import Sessions
from anycable_tx.brokers.redis_streams import MARKER, Marker, Streams
from anycable_tx.cable.messages import Claim, History, HistoryRequest, Member, Position, Publication, Receipt
from anycable_tx.cable.rules import Rules
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IBroker, ProviderContext
from anycable_tx.redis.client import shared

__all__ = ["MARKER_CHECKS", "RedisBroker", "create"]

#: How often it is made sure that the data are still the same ones, in seconds.
MARKER_CHECKS = 30.0

_POLICY = re.compile(rb"maxmemory_policy:(\S+)")

_log = Logger()


def create(context: ProviderContext) -> RedisBroker:
    """The factory named by the provider's declaration."""
    return RedisBroker(context)


@implementer(IBroker)
class RedisBroker:
    """Everything in Redis, so that any node can answer for any other.

    It hands what it stores to the bus by itself, in the step that stores it, on the channels of the Redis pub/sub;
    ``context.pubsub`` is not used. Whatever Redis cannot do now is BrokerUnavailable. When Redis lost its data, the
    node is told to compare its positions, which tells clients.
    """

    stores = True

    def __init__(self, context: ProviderContext) -> None:
        settings = context.settings
        self._context = context
        self._redis = redis = shared(context)
        self._marker = Marker(redis, self._wiped)
        self._lease = Lease(redis)
        self._streams = Streams(
            redis,
            self._marker,
            Rules(settings["broker_rules"], settings["history_limit"], settings["history_ttl"]),
            slack=settings["history_since_slack"],
            idempotency_ttl=settings["idempotency_ttl"],
            sessions_ttl=settings["sessions_ttl"],
            verbatim=settings.get("redis_verbatim_channels", False),
            min_replicas=settings.get("redis_min_replicas", 0),
        )
        self._sessions = Sessions(redis, self._lease, settings["sessions_ttl"], context.node.session_expired)
        self._presence = Presence(redis, self._lease, settings["presence_ttl"], context.node.presence_expired)
        self._serving = False
        self._failing = False
        self._background = Background(context.reactor, context.metrics)
        self._loops = [self._loop(self._tick), self._loop(self._check_marker)]
        redis.watch(up=self._came_back, down=lambda: None)

    @property
    def announcement(self) -> str:
        """The start-up log line."""
        settings = self._context.settings
        return (
            f"Using Redis broker at {self._redis.log_name} (history limit: {settings['history_limit']}, "
            f"history ttl: {settings['history_ttl']:.15g}s, sessions ttl: {settings['sessions_ttl']:.15g}s, "
            f"presence ttl: {settings['presence_ttl']:.15g}s)"
        )

    async def start(self) -> None:
        """Connected, or going on trying to; this node is known to the others then."""
        await self._redis.start()
        self._serving = True
        await self._check_marker()
        await self._attempt(self._check_memory)
        await self._tick()
        for loop, interval in zip(self._loops, (1.0, MARKER_CHECKS), strict=True):
            loop.start(interval, now=False)

    async def stop(self) -> None:
        """Stop sweeping and serving. What is stored stays there."""
        if not self._serving:
            return
        self._serving = False
        self._failing = True  # what is under way need not say that it fails
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._background.cancel_all()
        with suppress(BrokerUnavailable):  # the other nodes find out
            await self._lease.quit()
        await self._redis.stop()

    def problem(self) -> str:
        """Why nothing can be stored or answered now, '' when nothing is known to be wrong."""
        return self._redis.problem()

    async def sweep(self) -> None:
        """Say that this node lives, and tell it what is over. Runs every second while the broker is started."""
        await self._lease.beat()
        await self._sessions.sweep()
        await self._presence.sweep()

    # -- the stream log

    async def publish(self, publication: Publication) -> Receipt:
        """Assign, store and hand to the bus in one step that Redis does wholly or not at all.

        After BrokerUnavailable the outcome is unknown; with an id it is safe to publish again.
        """
        self._check_serving()
        receipt = await self._streams.publish(publication)
        if receipt.duplicate:
            self._context.metrics.count("duplicate_publications_total")
        return receipt

    async def tail(self, stream: str) -> Position | None:
        """The newest position; of a stream nothing is known of, the one it will begin with."""
        self._check_serving()
        return await self._streams.tail(stream)

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """All of it or HistoryRefused, by the rules of ``StreamLog.prove`` (P4)."""
        self._check_serving()
        return await self._streams.history(stream, request)

    # -- the session store

    async def save_session(self, sid: str, identifiers: str, record: bytes, previous: str = "") -> None:
        """Keep *record* while this node lives; with ``sessions_ttl`` 0 nothing is kept."""
        self._check_serving()
        await self._sessions.save(sid, identifiers, record, previous)

    async def release_session(self, sid: str, record: bytes) -> bool:
        """Keep *record* for ``sessions_ttl`` from now; a sid that was forgotten is not brought back."""
        self._check_serving()
        self._presence.moved_on(sid)
        return await self._sessions.release(sid, record)

    async def claim_session(self, sid: str, heir: str) -> Claim | None:
        """The record, for as long as its time is not over."""
        self._check_serving()
        return await self._sessions.claim(sid, heir)

    async def forget_session(self, sid: str) -> None:
        """The sid can no longer be claimed."""
        self._check_serving()
        await self._sessions.forget(sid)

    async def forget_sessions(self, identifiers: str) -> int:
        """How many could have been claimed, on whatever node, and now cannot."""
        self._check_serving()
        return await self._sessions.forget_all(identifiers)

    async def give_up_sessions(self) -> None:
        """Nothing ends with this node: others tell the ends, or the next one that starts."""

    # -- presence

    async def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """True for a new id and for a known one with other info (D-30)."""
        self._check_serving()
        return await self._presence.join(stream, sid, id, info)

    async def leave(self, stream: str, sid: str) -> str | None:
        """The id, if this was its last session on any node."""
        self._check_serving()
        return await self._presence.leave(stream, sid)

    async def release_presence(self, sid: str) -> None:
        """Up to 2 s after ``presence_ttl`` one node is told who is gone."""
        self._check_serving()
        await self._presence.release(sid)

    async def move_presence(self, sid: str, heir: str) -> dict[str, str]:
        """What moved; nothing is announced."""
        self._check_serving()
        return await self._presence.move(sid, heir)

    async def members(self, stream: str) -> list[Member]:
        """Who is present, on whatever node."""
        self._check_serving()
        return await self._presence.members(stream)

    # -- what goes on meanwhile

    def _loop(self, work: Any) -> LoopingCall:
        """A call that waits for the one before; it never fails."""
        loop = LoopingCall(lambda: Deferred.fromCoroutine(work()))
        loop.clock = self._context.reactor
        return loop

    async def _tick(self) -> None:
        await self._attempt(self.sweep)

    async def _check_marker(self) -> None:
        await self._attempt(self._marker.check)

    async def _check_memory(self) -> None:
        """Say so if Redis may throw data away."""
        found = _POLICY.search(await self._redis.execute(MARKER, "INFO", "memory"))
        if found is not None and found[1] != b"noeviction":
            _log.warn(
                "Redis evicts keys when its memory is full (maxmemory-policy {policy}): "
                "history and sessions may be lost; noeviction is advised",
                policy=found[1].decode(),
                attrs={"context": "broker"},
            )

    def _wiped(self) -> None:
        _log.warn(
            "Redis lost its data, or may have lost the newest: positions are compared, clients are told",
            attrs={"context": "broker"},
        )
        self._lease.unsettle()
        self._context.node.store_lost()
        self._background.spawn(self._attempt(self._presence.rejoin))
        self._context.node.bus_restored()

    async def _attempt(self, work: Any) -> None:
        """Do *work*. Failures are counted; of a row of them the first one is logged."""
        if not self._serving:
            return
        try:
            await work()
        except BrokerUnavailable as e:
            self._context.metrics.count("broker_errors_total")
            if not self._failing:
                _log.warn("the Redis broker cannot do its work: {why}", why=str(e), attrs={"context": "broker"})
            self._failing = True
        except Exception:  # whatever it is, the next round must come
            self._context.metrics.count("internal_errors_total")
            _log.failure("the Redis broker's work failed")
        else:
            self._failing = False

    def _came_back(self) -> None:
        self._lease.unsettle()
        if self._serving:
            self._background.spawn(self._check_marker())

    def _check_serving(self) -> None:
        if not self._serving:
            raise BrokerUnavailable("the Redis broker is not started")
