"""Publications from a Redis channel: every node hears each of them and hands it straight to its own clients."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from anycable_tx.broadcasters.channel import ChannelBroadcaster
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.redis.api import Redis, Subscriber
from anycable_tx.redis.client import shared

__all__ = ["RedisChannelBroadcaster", "create"]


def create(context: ProviderContext) -> RedisChannelBroadcaster:
    """The provider's factory."""
    return RedisChannelBroadcaster(context)


@implementer(IBroadcaster)
class RedisChannelBroadcaster(ChannelBroadcaster):
    """Hears ``redis_channel``."""

    def __init__(self, context: ProviderContext, redis: Redis | None = None) -> None:
        super().__init__(context, "redis", "Redis channel", context.settings["redis_channel"])
        self._redis = redis or shared(context)
        self._subscriber: Subscriber

    async def start(self) -> None:
        """The channel is heard if Redis is there; else it is as soon as it is."""
        await self._redis.start()
        self._deaf_since = self.reactor.seconds()
        self._subscriber = self._redis.subscriber(
            lambda channel, payload: self._receive(payload), up=self._up, down=self._down
        )
        await self._listen(Deferred.fromCoroutine(self._subscriber.subscribe([self._channel])), self._redis.problem())

    async def stop(self) -> None:
        """Hear nothing more."""
        self.cancel_all()
        await self._subscriber.stop()
        await self._redis.stop()
