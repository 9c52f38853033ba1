"""The bus between nodes over Redis pub/sub: a node hears the streams it has subscribers for, and commands."""

from __future__ import annotations

from twisted.internet.defer import Deferred, TimeoutError
from zope.interface import implementer

from anycable_tx.background import Background, done_within
from anycable_tx.cable.ids import new_sid
from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.errors import BrokerUnavailable
from anycable_tx.interfaces import IPubSub, ProviderContext
from anycable_tx.logs import shorten
from anycable_tx.pubsub.probe import Probe
from anycable_tx.pubsub.redis_commands import Commands
from anycable_tx.redis.api import Redis, Subscriber
from anycable_tx.redis.client import shared
from anycable_tx.redis.wire import channel_of, decode, encode

__all__ = ["RedisPubSub", "create"]

#: Redis has so many seconds to confirm a subscription.
PATIENCE = 5.0
#: Being without the bus for so many seconds is a problem.
LOST_TOO_LONG = 5.0


def create(context: ProviderContext) -> RedisPubSub:
    """The provider's factory."""
    return RedisPubSub(context)


@implementer(IPubSub)
class RedisPubSub(Background):
    """One channel per stream, and ``redis_internal_channel`` for commands.

    While it is lost the node is told (``bus_lost``), and told again when everything is subscribed anew; a connection
    on which nothing arrives any more counts as lost too, which a probe shows.
    """

    distributed = True

    def __init__(self, context: ProviderContext, redis: Redis | None = None) -> None:
        super().__init__(context.reactor, context.metrics)
        self._node = context.node
        self._redis = redis or shared(context)
        self._verbatim = bool(context.settings["redis_verbatim_channels"])
        internal: str = context.settings["redis_internal_channel"]
        self._commands = Commands(self._redis, internal)
        probes = f"ac:probe:{new_sid()}"
        self._probe = Probe(
            self.reactor,
            lambda text: self._redis.execute(probes, "PUBLISH", probes, text),
            lambda: self._subscriber.move("nothing arrives on it"),
        )
        #: A client's stream may be called like them: they are subscribed for as long as this node runs (BR-38).
        self._own = (internal, probes)
        self._internal, self._probes = internal.encode(), probes.encode()
        #: The channels wanted, each with a token of the call that asked for it; and who waits for one to be left.
        self._wanted: dict[str, object] = {}
        self._leaving: dict[str, list[Deferred[None]]] = {}
        self._subscriber: Subscriber
        self._lost_since: float | None = None
        self._lost_at = 0.0
        self.announcement = f"Starting Redis pub/sub: {self._redis.log_name}"

    def problem(self) -> str:
        """Why messages of other nodes may not arrive, '' when all is well."""
        if self._lost_since is None or self.reactor.seconds() - self._lost_since < LOST_TOO_LONG:
            return ""
        return "the Redis pub/sub connection is lost"

    async def start(self) -> None:
        """Connected, or trying to for as long as it takes."""
        await self._redis.start()
        self._subscriber = self._redis.subscriber(self._receive, up=self._restored, down=self._lost)
        confirmed = Deferred.fromCoroutine(self._subscriber.subscribe(self._own))
        if not await done_within(self.reactor, 0 if self._redis.problem() else PATIENCE, confirmed):
            self._lost()
        self.spawn(self._connected(confirmed))
        self.spawn(self._probe.run())

    async def _connected(self, confirmed: Deferred[None]) -> None:
        await confirmed
        self._restored()

    async def stop(self) -> None:
        """Hear nothing more."""
        self.cancel_all()
        await self._subscriber.stop()
        await self._redis.stop()

    # -- what this node asks for

    async def subscribe(self, stream: str) -> None:
        """Done when Redis has confirmed. Raises BrokerUnavailable if it has not after PATIENCE."""
        confirmed = Deferred.fromCoroutine(self._join(channel_of(stream, self._verbatim)))
        try:
            await confirmed.addTimeout(PATIENCE, self.reactor)
        except TimeoutError:
            raise BrokerUnavailable(f"Redis has not confirmed the subscription of {shorten(stream)}") from None

    async def _join(self, channel: str) -> None:
        token = object()
        if channel not in self._own:
            self._wanted[channel] = token
        while channel in self._leaving:
            # The confirmation of an earlier SUBSCRIBE that is still under way would be taken for that of the next.
            left: Deferred[None] = Deferred()
            self._leaving[channel].append(left)
            await left
            if self._wanted.get(channel) is not token:
                return
        await self._subscriber.subscribe([channel])

    async def unsubscribe(self, stream: str) -> None:
        """Done when no message of *stream* arrives any more."""
        channel = channel_of(stream, self._verbatim)
        if self._wanted.pop(channel, None) is None:
            return
        waiting = self._leaving.setdefault(channel, [])
        try:
            await self._subscriber.unsubscribe([channel])
        finally:
            if self._leaving.get(channel) is waiting:
                del self._leaving[channel]
            for left in waiting:
                if not left.called:
                    left.callback(None)

    async def publish(self, message: StreamMessage) -> None:
        """Raises BrokerUnavailable: it may have been published, or not."""
        channel = channel_of(message.stream, self._verbatim)
        await self._redis.execute(channel, "PUBLISH", channel, encode(message))

    async def publish_command(self, command: RemoteCommand) -> None:
        """Raises BrokerUnavailable: it may have been published, or not."""
        await self._commands.send(command)

    # -- what arrives

    def _receive(self, channel: bytes, payload: bytes) -> None:
        if channel == self._probes and payload.isdigit():
            self._probe.heard(payload)
            return
        try:
            found = decode(channel, payload)
            if isinstance(found, StreamMessage):
                self._node.deliver(found)
                return
            if channel != self._internal:
                raise ValueError("it is no message of the stream of its channel")
            command = self._commands.read(payload)
        except ValueError as e:
            self.metrics.count("failed_bus_msg_total")
            self.log.warn(
                "failed to parse pubsub message",
                attrs={"context": "pubsub", "data": shorten(payload), "error": e},
            )
            return
        if command is not None:
            self._node.execute(command)

    # -- the connection

    def _lost(self) -> None:
        if self._lost_since is None:
            self._lost_since = self.reactor.seconds()
            self._lost_at = self._redis.now()
            self._probe.paused = True
            self._node.bus_lost()

    def _restored(self) -> None:
        if self._lost_since is not None:
            self._lost_since = None
            self._probe.start_over()
            self._probe.paused = False
            self._node.bus_restored()
            self.spawn(self._catch_up(self._lost_at))

    async def _catch_up(self, since: float) -> None:
        """Carry out the commands that were sent meanwhile."""
        try:
            missed = await self._commands.missed(since)
        except BrokerUnavailable as e:
            self.log.warn("commands of other nodes may be lost: {error}", error=e, attrs={"context": "pubsub"})
            return
        for payload in missed:
            self._receive(self._internal, payload)
