"""What ``bench_echo_plugin`` declares: answers in the server's process what the others ask the backend for."""

from __future__ import annotations

import orjson
from zope.interface import implementer

from anycable_tx.cable.codec import confirm_frame
from anycable_tx.cable.replies import Reply, SessionView, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.interfaces import IController, ProviderContext

__all__ = ["EchoController", "create"]


@implementer(IController)
class EchoController(BaseController):
    """Subscribes every channel to the stream of its ``room``, and echoes."""

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """Always SUCCESS."""
        room = orjson.loads(identifier)["room"]
        return Reply(Status.SUCCESS, transmissions=[confirm_frame(identifier)], streams=[room])

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """Always SUCCESS."""
        return Reply(Status.SUCCESS, stop_streams=True)

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply | None:
        """Send the data back."""
        echo = orjson.dumps({"identifier": identifier, "message": orjson.loads(data)})
        return Reply(Status.SUCCESS, transmissions=[echo])


def create(context: ProviderContext) -> IController:
    """The controller; it has no settings."""
    return EchoController()
