"""The end of the chain where there is no backend: refuses whatever nobody else decided."""

from __future__ import annotations

from zope.interface import implementer

from anycable_tx.cable.codec import disconnect_frame, reject_frame
from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, SessionView, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.interfaces import IController, ProviderContext

__all__ = ["NullController", "create"]


@implementer(IController)
class NullController(BaseController):
    """Refuses connections and subscriptions, lets go of everything, and has nobody to perform for."""

    announcement = "no RPC configured"

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """FAILURE with the ``unauthorized`` frame."""
        return ConnectReply(
            Status.FAILURE,
            transmissions=[disconnect_frame("unauthorized", reconnect=False)],
            disconnect_interest=-1,
            reason="unauthorized",
        )

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """FAILURE with ``reject_subscription``."""
        return Reply(
            Status.FAILURE,
            transmissions=[reject_frame(identifier)],
            disconnect_interest=-1,
            reason="unknown_channel",
        )

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """SUCCESS: all streams of the identifier are left."""
        return Reply(Status.SUCCESS, stop_streams=True, disconnect_interest=-1)


def create(context: ProviderContext) -> IController:
    """The controller; it has no settings."""
    return NullController()
