"""The bus between nodes over NATS: a node hears the streams it has subscribers for, and commands."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from anycable_tx.background import Background, done_within, sleep
from anycable_tx.cable import bus
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.cable.rules import Rules
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IPubSub, ProviderContext
from anycable_tx.logs import shorten
from anycable_tx.nats.api import Message, Nats, NatsUnavailable, Subscription
from anycable_tx.nats.client import shared
from anycable_tx.nats.names import Names
from anycable_tx.nats.wire import headers_of, live_message
from anycable_tx.pubsub.commands import KEPT_FOR
from anycable_tx.pubsub.nats_commands import Commands
from anycable_tx.pubsub.nats_subjects import Subject, Subjects
from anycable_tx.pubsub.probe import Probe

__all__ = ["NatsPubSub", "create"]

#: NATS has so many seconds to confirm a subscription.
PATIENCE = 5.0
#: Being without the bus for so many seconds is a problem.
LOST_TOO_LONG = 5.0
#: Commands that cannot be read yet after an outage are asked for so often, for as long as they are kept.
ASK_EACH = 1.0


def create(context: ProviderContext) -> NatsPubSub:
    """The provider's factory."""
    return NatsPubSub(context)


@implementer(IPubSub)
class NatsPubSub(Background):
    """One subject per stream: encoded, or called like it with ``nats_verbatim_subjects`` (see ``Subjects``).

    On a verbatim subject travels the JSON of AnyCable servers, on an encoded one the payload with headers: also what
    the server itself hands on after it stored it. Commands travel on a subject of our own, and in verbatim mode on
    ``nats_internal_channel`` too, which AnyCable servers hear; a node that was cut off carries out those it missed if
    JetStream kept them (see ``Commands``).

    The node is told (``bus_lost``) when the connection is lost, when messages were dropped because they came too
    fast, and when nothing arrives any more although there is a connection, which a probe shows. It is told again once
    a probe has come back, with everything subscribed anew.
    """

    distributed = True

    def __init__(self, context: ProviderContext, nats: Nats | None = None) -> None:
        super().__init__(context.reactor, context.metrics)
        settings = context.settings
        self._node = context.node
        self._nats = nats or shared(context)
        self._names = Names(settings["nats_prefix"])
        verbatim = bool(settings["nats_verbatim_subjects"])
        internal: str = settings["nats_internal_channel"]
        self._subjects = Subjects(
            self._names,
            Rules(settings["broker_rules"], settings["history_limit"], settings["history_ttl"]),
            verbatim,
            (internal, settings.get("nats_channel", "")),
        )
        self._commands = Commands(
            self._nats,
            self._names,
            internal=internal if verbatim else "",
            replicas=settings.get("nats_replicas", 3),
        )
        self._probes = f"{self._names.prefix}.p.{new_sid()}"
        self._probe = Probe(self.reactor, self._send_probe, self._lost)
        #: What is heard for as long as this node runs, with who receives it.
        self._own = {self._names.commands: self._receive_command, self._probes: self._receive_probe}
        if verbatim:
            self._own[internal] = self._receive_command
        self._subscriptions: list[Subscription] = []
        self._interests: dict[str, _Interest] = {}
        self._running_now = False
        self._lost_since: float | None = None
        #: Are there commands to be read that were sent during an outage? Is that being done?
        self._behind = self._catching_up = False
        # The reactor's time as Unix time.
        self._epoch: float = time.time() - self.reactor.seconds()
        self._began = 0.0
        self._nats.watch(up=self._came, down=self._went)
        self.announcement = f"Starting NATS pub/sub: {self._nats.log_name}"

    def problem(self) -> str:
        """Why messages of other nodes may not arrive, '' when all is well."""
        if self._lost_since is None or self.reactor.seconds() - self._lost_since < LOST_TOO_LONG:
            return ""
        return self._nats.problem() or "nothing comes back from NATS"

    async def start(self) -> None:
        """Connected, or trying to for as long as it takes."""
        self._running_now = True
        self._began = self._now()
        await self._nats.start()
        joined: Deferred[None] = Deferred()
        self.spawn(self._join_own(joined))
        if not await done_within(self.reactor, 0 if self._nats.problem() else PATIENCE, joined):
            self._probe.paused = bool(self._nats.problem())
            self._lost()
        await self._commands.look()
        self.spawn(self._commands.keep(self.reactor))
        self.spawn(self._probe.run())

    async def stop(self) -> None:
        """Hear nothing more."""
        self._running_now = False
        self.cancel_all()
        for interest in self._interests.values():
            interest.end()
        for subscription in self._subscriptions:
            subscription.end()
        self._interests.clear()
        self._subscriptions.clear()
        await self._nats.stop()

    # -- what this node asks for

    async def subscribe(self, stream: str) -> None:
        """Done when NATS has confirmed. Raises BrokerUnavailable if it has not after PATIENCE."""
        interest = self._interests.get(stream)
        if interest is None:
            subject = self._subjects.of(stream)
            joining = self._nats.subscribe(subject.name, partial(self._receive, stream, subject), self._lost)
            interest = self._interests[stream] = _Interest(joining)
        if not await done_within(self.reactor, PATIENCE, interest.joined) or interest.failed:
            raise BrokerUnavailable(f"NATS has not confirmed the subscription of {shorten(stream)}")

    async def unsubscribe(self, stream: str) -> None:
        """No message of *stream* arrives any more."""
        interest = self._interests.pop(stream, None)
        if interest is not None:
            interest.end()

    async def publish(self, message: StreamMessage) -> None:
        """Raises NatsUnavailable."""
        subject = self._subjects.of(message.stream)
        if subject.verbatim:
            self._nats.publish(subject.name, bus.encode(message))
        else:
            self._nats.publish(subject.name, message.payload, headers_of(message))

    async def publish_command(self, command: RemoteCommand) -> None:
        """Raises NatsUnavailable: it may have been published, or not."""
        await self._commands.send(command)

    # -- what arrives

    def _receive(self, stream: str, subject: Subject, message: Message) -> None:
        try:
            if subject.verbatim:
                found = bus.decode(message.data)
                if not isinstance(found, StreamMessage) or found.stream != stream:
                    raise ValueError("it is no message of the stream of its subject")
            else:
                found = live_message(self._names, subject.kind, stream, message, self._now())
        except ValueError as e:
            self._refuse(message.data, e)
            return
        self._node.deliver(found)

    def _receive_command(self, message: Message) -> None:
        self._carry_out(message.data)

    def _carry_out(self, payload: bytes) -> None:
        try:
            command = self._commands.read(payload)
        except ValueError as e:
            self._refuse(payload, e)
            return
        if command is not None:
            self._node.execute(command)

    def _refuse(self, payload: bytes, why: ValueError) -> None:
        self.metrics.count("failed_bus_msg_total")
        self.log.warn(
            "failed to parse pubsub message",
            attrs={"context": "pubsub", "data": shorten(payload), "error": why},
        )

    # -- the connection

    async def _join_own(self, joined: Deferred[None]) -> None:
        for subject, receive in self._own.items():
            self._subscriptions.append(await self._nats.subscribe(subject, receive, self._lost))
        joined.callback(None)

    def _came(self) -> None:
        if self._running_now:
            self._probe.paused = False
            self.spawn(self._probe.send())

    def _went(self) -> None:
        if self._running_now:
            self._probe.paused = True
            self._lost()

    async def _send_probe(self, text: bytes) -> None:
        self._nats.publish(self._probes, text)

    def _receive_probe(self, message: Message) -> None:
        if self._probe.heard(message.data) and not self._probe.paused:
            self._restored()

    def _lost(self) -> None:
        if self._lost_since is None:
            self._lost_since = self.reactor.seconds()
            self._probe.start_over()
            self._node.bus_lost()

    def _restored(self) -> None:
        if self._lost_since is not None:
            self._lost_since = None
            self._node.bus_restored()
            self._behind = True
            if not self._catching_up:
                self.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        """Carry out the commands that were sent meanwhile."""
        self._catching_up = True
        until = self.reactor.seconds() + KEPT_FOR
        try:
            while self._behind:
                self._behind = False
                try:
                    missed = await self._commands.missed(self._began)
                except BrokerUnavailable as e:
                    if not self._commands.ever_kept:
                        return
                    if self.reactor.seconds() >= until:
                        self.log.warn(
                            "commands of other nodes may be lost: {error}", error=e, attrs={"context": "pubsub"}
                        )
                        return
                    self._behind = True
                    await sleep(self.reactor, ASK_EACH)
                    continue
                for payload in missed:
                    self._carry_out(payload)
        finally:
            self._catching_up = False

    def _now(self) -> float:
        now: float = self._epoch + self.reactor.seconds()
        return now


class _Interest:
    """That this node has subscribers for a stream; ``joined`` is done when *joining* is, or was given up."""

    __slots__ = ("_subscription", "failed", "joined")

    def __init__(self, joining: Coroutine[Any, Any, Subscription]) -> None:
        self._subscription: Subscription | None = None
        self.failed = False
        self.joined = Deferred.fromCoroutine(joining).addCallbacks(self._have, self._fail)

    def end(self) -> None:
        """Nothing more is heard."""
        if self._subscription is not None:
            self._subscription.end()
        else:
            self.joined.cancel()

    def _have(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def _fail(self, failure: Failure) -> None:
        self.failed = not isinstance(failure.value, CancelledError)
        if not isinstance(failure.value, CancelledError | NatsUnavailable):
            failure.raiseException()
