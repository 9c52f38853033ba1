"""What the broadcasters that hear a channel share: every node hears it and delivers to its own clients only."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from anycable_tx.background import Background, done_within
from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.cable.publications import decode
from anycable_tx.errors import BadPublication
from anycable_tx.interfaces import ProviderContext
from anycable_tx.logs import shorten

__all__ = ["DEAF_AFTER", "PATIENCE", "ChannelBroadcaster"]

#: A start waits so many seconds for the channel.
PATIENCE = 5.0
#: Not hearing the channel for so many seconds is a problem.
DEAF_AFTER = 5.0


class ChannelBroadcaster(Background):
    """Hears *channel*. Messages have no position and are in no history, whatever the broker (BR-31).

    What is published while the connection is lost is lost, and nobody can tell how much that was. *what* is what
    people call the channel; *provider* is the name of the broadcaster.
    """

    announcement = ""

    def __init__(self, context: ProviderContext, provider: str, what: str, channel: str) -> None:
        super().__init__(context.reactor, context.metrics)
        self._node = context.node
        self._channel = channel
        self._what = what
        self._lenient = bool(context.settings.get("broadcast_lenient", True))
        self._attrs = {"context": "broadcast", "provider": provider, "channel": channel}
        self._deaf_since: float | None = None

    def problem(self) -> str:
        """Why publications may not be heard, '' when all is well."""
        if self._deaf_since is None or self.reactor.seconds() - self._deaf_since < DEAF_AFTER:
            return ""
        return f"the {self._what} {self._channel!r} is not heard"

    async def _listen(self, heard: Deferred[Any], problem: str) -> None:
        """Wait a while for *heard*, which is done when the channel is, and goes on; not with a *problem*."""
        await done_within(self.reactor, 0 if problem else PATIENCE, heard)
        self.spawn(self._listening(heard))

    async def _listening(self, heard: Deferred[Any]) -> None:
        await heard
        self._up()

    def _up(self) -> None:
        if self._deaf_since is not None:
            self._deaf_since = None
            self.log.info("subscribed to {what}", what=self._what, attrs=self._attrs)

    def _down(self) -> None:
        if self._deaf_since is None:
            self._deaf_since = self.reactor.seconds()
        self.log.warn(
            "the {what} is lost: what is published on it meanwhile is lost", what=self._what, attrs=self._attrs
        )

    def _receive(self, payload: bytes) -> None:
        try:
            work = decode(payload, lenient=self._lenient)
        except BadPublication as e:
            self.metrics.count("failed_broadcast_msg_total")
            self.log.warn(
                "failed to parse pubsub message", attrs={**self._attrs, "data": shorten(payload), "error": e}
            )
            return
        self.metrics.count("publications_total")
        if isinstance(work, RemoteCommand):
            self._node.execute(work)
            return
        for p in work:
            message = StreamMessage(
                p.stream, p.payload, exclude_socket=p.exclude_socket, broadcast_type=p.broadcast_type
            )
            self._node.deliver(message)
