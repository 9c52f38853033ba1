"""Asks several controllers in turn and takes the first answer."""

from __future__ import annotations

from asyncio import CancelledError as AsyncioCancelledError
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from zope.interface import implementer

from anycable_tx.cable.replies import ConnectReply, Reply, RequestEnv, Restored, RestoreReply, SessionView, Status
from anycable_tx.errors import AnyCableError
from anycable_tx.interfaces import IController
from anycable_tx.metrics import Metrics

__all__ = ["Chain"]

R = TypeVar("R", ConnectReply, Reply, RestoreReply)

#: What a caller that lost interest makes a controller raise; the second does not derive from Exception.
_CANCELLED = (CancelledError, AsyncioCancelledError)
_RAISED = (Exception, AsyncioCancelledError)


@implementer(IController)
class Chain:
    """*controllers* as one: the first answer that is not None wins, in their order.

    Nothing that a controller raises while it answers leaves the chain: it is logged, counted in
    ``controller_errors_total`` by the name of the method, and answered as status ERROR with the reason
    ``controller_error``; the controllers after it are not asked. Only a cancelled call is not counted: its
    reason is ``cancelled``.
    """

    log = Logger()

    def __init__(self, controllers: Iterable[Any], metrics: Metrics) -> None:
        self.controllers = tuple(controllers)
        #: Does any of them look at the request again after authentication? Sessions then keep it.
        self.keeps_env = any(getattr(c, "keeps_env", False) for c in self.controllers)
        #: Does a resumed client's welcome wait for what one of them says about it?
        self.verifies_restores = any(getattr(c, "verifies_restores", False) for c in self.controllers)
        self._metrics = metrics

    @property
    def announcement(self) -> str:
        """What the controllers announce, one a line."""
        return "\n".join(c.announcement for c in self.controllers if c.announcement)

    async def start(self) -> None:
        """Start the controllers in order. What one of them raises stops the start; then none is left running."""
        for started, controller in enumerate(self.controllers):
            try:
                await controller.start()
            except BaseException:
                await self._stop(self.controllers[:started])
                raise

    async def stop(self) -> None:
        """Stop the controllers in reverse order, each of them even if others fail."""
        await self._stop(self.controllers)

    async def _stop(self, controllers: tuple[Any, ...]) -> None:
        for controller in reversed(controllers):
            try:
                await controller.stop()
            except _RAISED as e:
                self._failed(controller, "stop", e)

    def authenticate(self, sid: str, env: RequestEnv) -> Awaitable[ConnectReply | None]:
        """Async. The first answer; None if every controller declines."""
        return self._first(ConnectReply, "authenticate", sid, env)

    async def check_restore(self, identifiers: str, env: RequestEnv) -> ConnectReply | None:
        """The first answer that is not SUCCESS; without one the first SUCCESS, or None."""
        allowed: ConnectReply | None = None
        for controller in self.controllers:
            try:
                reply: ConnectReply | None = await controller.check_restore(identifiers, env)
            except _RAISED as e:
                return ConnectReply(Status.ERROR, reason=self._failed(controller, "check_restore", e))
            if reply is not None and reply.status is not Status.SUCCESS:
                return reply
            allowed = allowed or reply
        return allowed

    def subscribe(self, session: SessionView, identifier: str) -> Awaitable[Reply | None]:
        """Async. The first answer; None if every controller declines."""
        return self._first(Reply, "subscribe", session, identifier)

    def unsubscribe(self, session: SessionView, identifier: str) -> Awaitable[Reply | None]:
        """Async. The first answer; None if every controller declines."""
        return self._first(Reply, "unsubscribe", session, identifier)

    def perform(self, session: SessionView, identifier: str, data: str) -> Awaitable[Reply | None]:
        """Async. The first answer; None if every controller declines."""
        return self._first(Reply, "perform", session, identifier, data)

    def restore(self, restored: Restored) -> Awaitable[RestoreReply | None]:
        """Async. The first answer; None if every controller declines."""
        return self._first(RestoreReply, "restore", restored)

    def gone(self, sid: str) -> None:
        """Tell every controller."""
        for controller in self.controllers:
            controller.gone(sid)

    async def withdraw(self, sid: str) -> bool:
        """Ask every controller; True if any may have reported the session's end."""
        reported = False
        for controller in self.controllers:
            try:
                reported |= await controller.withdraw(sid)
            except _RAISED as e:
                self._failed(controller, "withdraw", e)
        return reported

    def problem(self) -> str:
        """The first controller's that has one."""
        return next((text for c in self.controllers if (text := c.problem())), "")

    async def disconnect(self, session: SessionView, subscriptions: dict[str, dict[str, str]]) -> None:
        """Tell every controller, in order, even if others fail."""
        for controller in self.controllers:
            try:
                await controller.disconnect(session, subscriptions)
            except _RAISED as e:
                self._failed(controller, "disconnect", e)

    async def _first(self, kind: type[R], method: str, *args: object) -> R | None:
        for controller in self.controllers:
            try:
                reply: R | None = await getattr(controller, method)(*args)
            except _RAISED as e:
                return kind(Status.ERROR, reason=self._failed(controller, method, e))
            if reply is not None:
                return reply
        return None

    def _failed(self, controller: Any, method: str, error: BaseException) -> str:
        """Log and count *error*, in the handler that caught it; answers the reason to give."""
        if isinstance(error, _CANCELLED):
            return "cancelled"
        self._metrics.count("controller_errors_total", reason=method)
        name = type(controller).__name__
        if isinstance(error, AnyCableError):
            self.log.error("{name}.{method} failed: {error}", name=name, method=method, error=error)
        else:
            self.log.failure("{name}.{method} failed", name=name, method=method)
        return "controller_error"
