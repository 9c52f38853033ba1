"""Accepts every connection: for public feeds and for trying things out."""

from __future__ import annotations

import orjson
from zope.interface import implementer

from anycable_tx.cable.codec import welcome_frame
from anycable_tx.cable.replies import ConnectReply, RequestEnv, Status
from anycable_tx.controllers.base import BaseController
from anycable_tx.interfaces import IController, ProviderContext

__all__ = ["NoAuthController", "create"]


@implementer(IController)
class NoAuthController(BaseController):
    """Everyone is welcome, and is nobody but the session: the identifiers are ``{"sid":"<sid>"}`` (RA-5)."""

    announcement = "connection authentication is disabled"

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """Always SUCCESS."""
        return ConnectReply(
            Status.SUCCESS,
            identifiers=orjson.dumps({"sid": sid}).decode("utf-8"),
            transmissions=[welcome_frame(sid)],
            disconnect_interest=-1,
        )


def create(context: ProviderContext) -> IController:
    """The controller; it has no settings."""
    return NoAuthController()
