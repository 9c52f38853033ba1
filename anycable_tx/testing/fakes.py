"""A bus and a node that only remember what they were given."""

from __future__ import annotations

from zope.interface import implementer

from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand, StreamMessage
from anycable_tx.interfaces import INode, IPubSub

__all__ = ["RecordingNode", "RecordingPubSub"]


@implementer(IPubSub)
class RecordingPubSub:
    """Keeps every message and command. Set ``failure`` to an exception to make publishing raise it."""

    announcement = ""
    distributed = False

    def __init__(self) -> None:
        self.messages: list[StreamMessage] = []
        self.commands: list[RemoteCommand] = []
        self.streams: set[str] = set()
        self.failure: Exception | None = None

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    async def subscribe(self, stream: str) -> None:
        """Remember *stream* in ``streams``."""
        self.streams.add(stream)

    async def unsubscribe(self, stream: str) -> None:
        """Take *stream* out of ``streams``."""
        self.streams.discard(stream)

    async def publish(self, message: StreamMessage) -> None:
        """Remember *message* in ``messages``, or raise ``failure``."""
        if self.failure is not None:
            raise self.failure
        self.messages.append(message)

    async def publish_command(self, command: RemoteCommand) -> None:
        """Remember *command* in ``commands``, or raise ``failure``."""
        if self.failure is not None:
            raise self.failure
        self.commands.append(command)


@implementer(INode)
class RecordingNode:
    """Keeps everything a provider tells the node."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self.broadcast: list[RemoteCommand] = []
        self.delivered: list[StreamMessage] = []
        self.executed: list[RemoteCommand] = []
        self.expired: list[tuple[str, str]] = []
        self.ended: list[tuple[str, bytes]] = []
        self.bus: list[str] = []

    async def publish(self, publication: Publication) -> Receipt:
        """Remember *publication* in ``publications``; its offset is its number."""
        self.publications.append(publication)
        return Receipt(len(self.publications), "recorded")

    async def broadcast_command(self, command: RemoteCommand) -> None:
        """Remember *command* in ``broadcast``."""
        self.broadcast.append(command)

    def deliver(self, message: StreamMessage) -> None:
        """Remember *message* in ``delivered``."""
        self.delivered.append(message)

    def execute(self, command: RemoteCommand) -> None:
        """Remember *command* in ``executed``."""
        self.executed.append(command)

    def presence_expired(self, stream: str, id: str) -> None:
        """Remember (*stream*, *id*) in ``expired``."""
        self.expired.append((stream, id))

    def session_expired(self, sid: str, record: bytes) -> None:
        """Remember (*sid*, *record*) in ``ended``."""
        self.ended.append((sid, record))

    def store_lost(self) -> None:
        """Remember ``store lost`` in ``bus``."""
        self.bus.append("store lost")

    def bus_lost(self) -> None:
        """Remember ``lost`` in ``bus``."""
        self.bus.append("lost")

    def bus_restored(self) -> None:
        """Remember ``restored`` in ``bus``."""
        self.bus.append("restored")
