"""A controller that declines everything, to be overridden where another one decides."""

from __future__ import annotations

from zope.interface import implementer

from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, Restored, RestoreReply, SessionView
from anycable_tx.interfaces import IController

__all__ = ["BaseController"]


@implementer(IController)
class BaseController:
    """Answers None to every request, so that the next controller is asked, and needs no start or stop."""

    announcement = ""
    #: True for a controller that looks at the request again after authentication; sessions then keep it.
    keeps_env = False
    verifies_restores = False

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    async def authenticate(self, sid: str, env: RequestEnv) -> ConnectReply | None:
        """Declines."""
        return None

    async def check_restore(self, identifiers: str, env: RequestEnv) -> ConnectReply | None:
        """No opinion."""
        return None

    async def subscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """Declines."""
        return None

    async def unsubscribe(self, session: SessionView, identifier: str) -> Reply | None:
        """Declines."""
        return None

    async def perform(self, session: SessionView, identifier: str, data: str) -> Reply | None:
        """Declines."""
        return None

    async def restore(self, restored: Restored) -> RestoreReply | None:
        """Nothing to say."""
        return None

    def gone(self, sid: str) -> None:
        """Nothing to do."""

    async def withdraw(self, sid: str) -> bool:
        """Nothing was reported."""
        return False

    async def disconnect(self, session: SessionView, subscriptions: dict[str, dict[str, str]]) -> None:
        """Nothing to do."""

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""
