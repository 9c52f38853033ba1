"""The NATS broker: history, sessions and presence that all nodes share, on JetStream of nats-server 2.9 or later."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.background import Background
from anycable_tx.brokers.nats_log import Streams
from anycable_tx.brokers.nats_logs import Kind, Logs
from anycable_tx.brokers.nats_nodes import Nodes
from anycable_tx.brokers.nats_presence import Presence
from anycable_tx.brokers.nats_sessions import Sessions
from anycable_tx.cable.messages import Claim, History, HistoryRequest, Member, Position, Publication, Receipt
from anycable_tx.cable.rules import Rule, Rules
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IBroker, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.nats.api import TooLarge
from anycable_tx.nats.bucket import Bucket
from anycable_tx.nats.client import shared
from anycable_tx.nats.jetstream import JetStream
from anycable_tx.nats.names import Names

__all__ = ["CHECKS", "RAISES", "NatsBroker", "create"]

#: How often it is made sure that the logs are still the same ones, in seconds; every second while something is wrong.
CHECKS = 30.0
#: How often it is tried to have all replicas, where there were too few servers.
RAISES = 60.0

_log = Logger()


def create(context: ProviderContext) -> NatsBroker:
    """The factory named by the provider's declaration."""
    return NatsBroker(context)


@implementer(IBroker)
class NatsBroker:
    """Everything in JetStream, so that any node can answer for any other.

    The server hands on what it stores, on the subjects of the NATS pub/sub; ``context.pubsub`` is not used. Whatever
    JetStream cannot do now is BrokerUnavailable. It need not be ready for a start: nothing can be published until it
    is. When a log was replaced the node is told to compare its positions, which tells clients.
    """

    stores = True

    def __init__(
        self,
        context: ProviderContext,
        wall: Callable[[], float] = time.time,
        jetstream: Callable[..., JetStream] = JetStream,
    ) -> None:
        settings, reactor, node = context.settings, context.reactor, context.node
        self._context = context
        self._nats = shared(context)
        self._js = js = jetstream(self._nats)
        self._names = names = Names(settings["nats_prefix"])
        rules = Rules(settings["broker_rules"], settings["history_limit"], settings["history_ttl"])
        replicas = settings["nats_replicas"]
        self._logs = Logs(
            js,
            names,
            _kinds(rules, settings["sessions_ttl"], settings["idempotency_ttl"]),
            replicas=replicas,
            now=wall,
            changed=node.bus_restored,
        )
        self._streams = Streams(
            self._nats,
            js,
            names,
            self._logs,
            rules,
            reactor,
            slack=settings["history_since_slack"],
            ids=settings["idempotency_ttl"] > 0,
            now=wall,
        )
        self._nodes = Nodes(
            Bucket(js, reactor, names.bucket("nodes"), replicas=replicas),
            reactor,
            wall,
            keep=max(settings["sessions_ttl"], settings["presence_ttl"]),
        )
        self._sessions = Sessions(
            Bucket(js, reactor, names.bucket("sessions"), replicas=replicas, lost=node.store_lost),
            self._nodes,
            reactor,
            settings["sessions_ttl"],
            node.session_expired,
            node.store_lost,
        )
        self._presence = Presence(
            Bucket(js, reactor, names.bucket("presence"), replicas=replicas),
            self._nodes,
            reactor,
            settings["presence_ttl"],
            node.presence_expired,
        )
        self._serving = False
        self._ready = False
        self._doubted = False
        self._checked = self._raised = float("-inf")
        self._checking, self._sweeping = _Work(context.metrics), _Work(context.metrics)
        self._background = Background(reactor, context.metrics)
        self._loops = [self._loop(self._check), self._loop(self._sweep)]
        self._nats.watch(up=self._came_back, down=lambda: None)

    @property
    def announcement(self) -> str:
        """The start-up log line."""
        settings = self._context.settings
        return (
            f"Using NATS broker: {self._nats.log_name} (history limit: {settings['history_limit']}, "
            f"history ttl: {settings['history_ttl']:.15g}s, sessions ttl: {settings['sessions_ttl']:.15g}s, "
            f"presence ttl: {settings['presence_ttl']:.15g}s)"
        )

    async def start(self) -> None:
        """Ready, or going on trying to be: until then whatever is asked is BrokerUnavailable."""
        await self._nats.start()
        self._serving = True
        await self._check()
        await self._sweep()
        for loop in self._loops:
            loop.start(1.0, now=False)

    async def stop(self) -> None:
        """Stop sweeping and serving. What is stored stays there."""
        if not self._serving:
            return
        self._serving = False
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._background.cancel_all()
        with suppress(BrokerUnavailable):  # the other nodes find out
            await self._sessions.stop()
            await self._presence.stop()
            await self._nodes.quit()
        await self._nats.stop()

    def problem(self) -> str:
        """Why nothing can be stored or answered now, '' when nothing is known to be wrong."""
        return self._nats.problem() or self._checking.why or self._sweeping.why

    # -- the stream log

    async def publish(self, publication: Publication) -> Receipt:
        """Store and hand to the bus, in one step of the server.

        After BrokerUnavailable the outcome is unknown; with an id it is safe to publish again.
        """
        self._check_serving()
        try:
            receipt = await self._streams.publish(publication)
        except BrokerUnavailable as e:
            self._doubted = self._doubted or not isinstance(e, TooLarge)
            raise
        if receipt.duplicate:
            self._context.metrics.count("duplicate_publications_total")
        return receipt

    async def tail(self, stream: str) -> Position | None:
        """The newest position; of a stream without messages one that says so."""
        self._check_serving()
        return await self._streams.tail(stream)

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """All of it or HistoryRefused, by the rules of ``nats_proof`` (P4)."""
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

    async def sweep(self) -> None:
        """Say that this node lives, and tell it what is over. Runs every second while the broker is started."""
        await self._nodes.beat()
        await self._sessions.sweep()
        await self._presence.sweep()

    async def check(self) -> None:
        """Make sure of the logs. Runs every second, and does nothing for most of the time while all is well."""
        now = self._context.reactor.seconds()
        doubted, self._doubted = self._doubted or bool(self._checking.why), False
        if not doubted and now - self._checked < CHECKS:
            return
        await self._logs.check(probe=doubted)
        self._checked = now
        if not self._ready:
            self._ready = True
            epochs = ",".join(self._logs.epochs)
            _log.info("NATS broker is ready", attrs={"context": "broker", "epoch": epochs})
        if now - self._raised >= RAISES:
            self._raised = now
            await self._logs.raise_replicas()

    def _loop(self, work: Callable[[], Any]) -> LoopingCall:
        """A call that waits for the one before; it never fails."""
        loop = LoopingCall(lambda: Deferred.fromCoroutine(work()))
        loop.clock = self._context.reactor
        return loop

    async def _check(self) -> None:
        if self._serving:
            await self._checking.do(self.check)

    async def _sweep(self) -> None:
        if self._serving:
            await self._sweeping.do(self.sweep)

    def _came_back(self) -> None:
        if self._serving:
            self._nodes.unsettle()
            self._sessions.doubt()
            self._presence.doubt()
            self._checked = float("-inf")
            self._background.spawn(self._check())

    def _check_serving(self) -> None:
        if not self._serving:
            raise BrokerUnavailable("the NATS broker is not started")


class _Work:
    """What is done again and again. ``why``: the last time it could not be done, for that reason."""

    def __init__(self, metrics: Metrics) -> None:
        self.why = ""
        self._metrics = metrics

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*. Failures are counted; of a row of them the first one is logged."""
        try:
            await work()
        except BrokerUnavailable as e:
            self._metrics.count("broker_errors_total")
            if not self.why:
                _log.warn("the NATS broker cannot do its work: {why}", why=str(e), attrs={"context": "broker"})
            self.why = str(e)
        except Exception as e:  # whatever it is, the next round must come
            self._metrics.count("internal_errors_total")
            _log.failure("the NATS broker's work failed")
            self.why = f"its work failed: {e}"
        else:
            self.why = ""


def _kinds(rules: Rules, sessions_ttl: float, idempotency_ttl: float) -> Iterator[Kind]:
    """The classes that are stored; what all the rules of one class need."""
    by_class: dict[str, list[Rule]] = {}
    for rule in rules.all:
        if rule.limit:
            by_class.setdefault(rule.name, []).append(rule)
    for name, alike in by_class.items():
        limit, ttl = max(rule.limit for rule in alike), max(rule.ttl for rule in alike)
        yield Kind.of(name, limit, ttl, sessions_ttl, idempotency_ttl)
