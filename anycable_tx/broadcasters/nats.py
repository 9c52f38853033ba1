"""Publications from a NATS subject: every node hears each of them and hands it straight to its own clients."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from anycable_tx.broadcasters.channel import ChannelBroadcaster
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.nats.api import Message, Nats, Subscription
from anycable_tx.nats.client import shared

__all__ = ["NatsBroadcaster", "create"]


def create(context: ProviderContext) -> NatsBroadcaster:
    """The provider's factory."""
    return NatsBroadcaster(context)


@implementer(IBroadcaster)
class NatsBroadcaster(ChannelBroadcaster):
    """Hears ``nats_channel``, in no queue group: each node hears everything."""

    def __init__(self, context: ProviderContext, nats: Nats | None = None) -> None:
        super().__init__(context, "nats", "NATS subject", context.settings["nats_channel"])
        self._nats = nats or shared(context)
        self._subscription: Subscription | None = None
        self._stopped = False
        self._nats.watch(up=self._came, down=self._went)

    async def start(self) -> None:
        """The subject is heard if NATS is there; else it is as soon as it is."""
        self._stopped = False
        self.log.info("subscribing for broadcasts", attrs=self._attrs)
        self._deaf_since = self.reactor.seconds()
        await self._nats.start()
        await self._listen(Deferred.fromCoroutine(self._subscribe()), self._nats.problem())

    async def stop(self) -> None:
        """Hear nothing more."""
        self._stopped = True
        if self._subscription is not None:
            self._subscription.end()
            self._subscription = None
        self.cancel_all()
        await self._nats.stop()

    async def _subscribe(self) -> None:
        self._subscription = await self._nats.subscribe(self._channel, self._heard, self._slow)

    def _heard(self, message: Message) -> None:
        if not self._stopped:
            self._receive(message.data)

    def _slow(self) -> None:
        self.log.warn("publications came faster than they were taken: some are lost", attrs=self._attrs)

    def _came(self) -> None:
        if self._subscription is not None:
            self._up()

    def _went(self) -> None:
        if self._subscription is not None:
            self._down()
