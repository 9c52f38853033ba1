"""Publications from a Redis channel: every node hears each of them and hands it straight to its own clients."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from anycable_tx.background import Background, sleep
from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.cable.publications import decode
from anycable_tx.errors import BadPublication
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.logs import shorten
from anycable_tx.redis.api import Redis, Subscriber
from anycable_tx.redis.client import shared

__all__ = ["RedisChannelBroadcaster", "create"]

#: A start waits so many seconds for the channel.
PATIENCE = 5.0
#: Not hearing the channel for so many seconds is a problem.
DEAF_AFTER = 5.0


def create(context: ProviderContext) -> RedisChannelBroadcaster:
    """The provider's factory."""
    return RedisChannelBroadcaster(context)


@implementer(IBroadcaster)
class RedisChannelBroadcaster(Background):
    """Hears ``redis_channel``. Messages have no position and are in no history, whatever the broker (BR-31).

    What is published while the connection is lost is lost, and nobody can tell how much that was.
    """

    def __init__(self, context: ProviderContext, redis: Redis | None = None) -> None:
        super().__init__(context.reactor, context.metrics)
        self._node = context.node
        self._redis = redis or shared(context)
        self._channel: str = context.settings["redis_channel"]
        self._lenient = bool(context.settings.get("broadcast_lenient", True))
        self._attrs = {"context": "broadcast", "provider": "redis", "channel": self._channel}
        self._subscriber: Subscriber
        self._deaf_since: float | None = None
        self.announcement = ""

    def problem(self) -> str:
        """Why publications may not be heard, '' when all is well."""
        if self._deaf_since is None or self.reactor.seconds() - self._deaf_since < DEAF_AFTER:
            return ""
        return f"the Redis channel {self._channel!r} is not heard"

    async def start(self) -> None:
        """The channel is heard if Redis is there; else it is as soon as it is."""
        await self._redis.start()
        self._deaf_since = self.reactor.seconds()
        self._subscriber = self._redis.subscriber(self._receive, up=self._up, down=self._down)
        heard = Deferred.fromCoroutine(self._subscriber.subscribe([self._channel]))
        until = self.reactor.seconds() + (0 if self._redis.problem() else PATIENCE)
        while not heard.called and self.reactor.seconds() < until:
            await sleep(self.reactor, 0.01)
        self.spawn(self._heard(heard))

    async def stop(self) -> None:
        """Hear nothing more."""
        self.cancel_all()
        await self._subscriber.stop()
        await self._redis.stop()

    async def _heard(self, heard: Deferred[None]) -> None:
        await heard
        self._up()

    def _up(self) -> None:
        if self._deaf_since is not None:
            self._deaf_since = None
            self.log.info("subscribed to Redis channel", attrs=self._attrs)

    def _down(self) -> None:
        if self._deaf_since is None:
            self._deaf_since = self.reactor.seconds()
        self.log.warn("the Redis channel is lost: what is published on it meanwhile is lost", attrs=self._attrs)

    def _receive(self, channel: bytes, payload: bytes) -> None:
        try:
            work = decode(payload, lenient=self._lenient)
        except BadPublication as e:
            self.metrics.count("failed_broadcast_msg_total")
            self.log.warn(
                "failed to parse pubsub message", attrs={**self._attrs, "data": shorten(payload), "error": e}
            )
            return
        if isinstance(work, RemoteCommand):
            self._node.execute(work)
            return
        self.metrics.count("publications_total")
        for p in work:
            message = StreamMessage(
                p.stream, p.payload, exclude_socket=p.exclude_socket, broadcast_type=p.broadcast_type
            )
            self._node.deliver(message)
