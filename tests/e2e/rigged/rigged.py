"""What ``rigged_plugin`` declares."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import warnings

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from anycable_tx.brokers.memory import MemoryBroker
from anycable_tx.cable.messages import Publication, Receipt
from anycable_tx.cable.replies import Reply, SessionView
from anycable_tx.controllers.base import BaseController
from anycable_tx.errors import ConfigurationError
from anycable_tx.interfaces import ProviderContext
from anycable_tx.pubsub.local import LocalPubSub


class Bus(LocalPubSub):
    """A bus that is made from a context."""

    def __init__(self, context: ProviderContext) -> None:
        super().__init__(context.node)
        self.reactor = context.reactor


class AsyncioBus(Bus):
    """Works on an asyncio loop only, and announces which."""

    async def start(self) -> None:
        await Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0.01)))
        self.announcement = f"a loop of {type(asyncio.get_event_loop()).__module__}"


class FailingBus(Bus):
    """Does not start, and knows that only after a while."""

    async def start(self) -> None:
        await deferLater(self.reactor, 0.1)
        raise ConfigurationError("rigged: no luck")


class SurprisingBus(Bus):
    """Does not start, after a while, for a reason nobody expected."""

    async def start(self) -> None:
        await deferLater(self.reactor, 0.1)
        raise ValueError("a surprise")


class HangingBus(Bus):
    """Never starts."""

    async def start(self) -> None:
        await Deferred()


class HastyBus(Bus):
    """The process is told to end before its reactor runs."""

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class TalkingBus(Bus):
    """Speaks by other ways than the server's log."""

    async def start(self) -> None:
        logging.getLogger("rigged.library").warning("said by %s", "logging")
        logging.getLogger("rigged.library").info("whispered by logging")
        warnings.warn("said by warnings", UserWarning, stacklevel=1)
        print("printed")


class Stuck(BaseController):
    """Never answers a subscription to the channel ``stuck``, and never stops."""

    def __init__(self, context: ProviderContext) -> None:
        """Needs nothing."""

    async def stop(self) -> None:
        await Deferred()

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        if "stuck" in identifier:
            await Deferred()
        return None


class SlowBroker(MemoryBroker):
    """Takes half a second to store."""

    async def publish(self, publication: Publication) -> Receipt:
        await deferLater(self._context.reactor, 0.5)
        return await super().publish(publication)
