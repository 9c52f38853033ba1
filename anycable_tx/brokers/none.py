"""The broker that keeps nothing: messages go to the bus and are gone."""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from anycable_tx.cable.messages import (
    Claim,
    History,
    HistoryRequest,
    Member,
    Position,
    Publication,
    Receipt,
    StreamMessage,
)
from anycable_tx.errors import HistoryRefused, PresenceRefused
from anycable_tx.interfaces import IBroker, ProviderContext

__all__ = ["NoBroker", "create"]


def create(context: ProviderContext) -> NoBroker:
    """The factory named by the provider's declaration."""
    return NoBroker(context)


@implementer(IBroker)
class NoBroker:
    """Every message is transient, no session can be resumed, nobody is present (BR-55)."""

    announcement = "Using no-op (legacy) broker"
    stores = False

    def __init__(self, context: ProviderContext) -> None:
        self._context = context

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    async def publish(self, publication: Publication) -> Receipt:
        """Hand it to the bus, without a position; the Receipt means it was handed over."""
        message = StreamMessage(
            publication.stream,
            publication.payload,
            exclude_socket=publication.exclude_socket,
            broadcast_type=publication.broadcast_type,
            id=publication.id,
        )
        await self._context.pubsub.publish(message)
        return Receipt(0, "")

    async def tail(self, stream: str) -> Position | None:
        """None: there is no log."""
        return None

    async def history(self, stream: str, request: HistoryRequest) -> History:
        """Always raises HistoryRefused ``unsupported``."""
        raise HistoryRefused("unsupported")

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    async def save_session(self, sid: str, identifiers: str, record: bytes, previous: str = "") -> None:
        """Forgotten at once."""

    async def release_session(self, sid: str, record: bytes) -> bool:
        """Forgotten at once."""
        return False

    async def claim_session(self, sid: str, heir: str) -> Claim | None:
        """None: no session is kept."""
        return None

    async def forget_session(self, sid: str) -> None:
        """Nothing to forget."""

    async def forget_sessions(self, identifiers: str) -> int:
        """0: nothing to forget."""
        return 0

    async def give_up_sessions(self) -> None:
        """Nothing to give up."""

    async def join(self, stream: str, sid: str, id: str, info: Any) -> bool:
        """Always raises PresenceRefused."""
        raise PresenceRefused("presence is not supported without a broker")

    async def leave(self, stream: str, sid: str) -> str | None:
        """None: nobody was present."""
        return None

    async def release_presence(self, sid: str) -> None:
        """Nobody was present."""

    async def move_presence(self, sid: str, heir: str) -> dict[str, str]:
        """Nothing to move."""
        return {}

    async def members(self, stream: str) -> list[Member]:
        """Always raises PresenceRefused."""
        raise PresenceRefused("presence is not supported without a broker")
