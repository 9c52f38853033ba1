"""The streams that have subscribers on this node, and the hand-over of each message to them.

A stream's message is encoded once per identifier and handed to that identifier's group. The hub is only given
messages that link to the stream's position (see ``positions``), so a group's members all have the same cursor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from anycable_tx.cable.attachments import Attachment
from anycable_tx.cable.codec import broadcast_tail
from anycable_tx.cable.fanout import Fanout, Group, Wire
from anycable_tx.cable.messages import Position, StreamMessage
from anycable_tx.cable.positions import StreamPosition
from anycable_tx.metrics import Metrics

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from anycable_tx.cable.session import Session

__all__ = ["Hub", "LocalStream"]


#: How many messages, and how many bytes of them, a stream remembers for those that are about to become live.
MAX_RECENT = 100
MAX_RECENT_BYTES = 1 << 18


class LocalStream:
    """One stream on this node: its position, its groups of live attachments, and the held ones.

    ``recent`` are the newest stored messages that were handed over since an attachment began to catch up, None when
    none does: what comes while the broker answers would otherwise have to be asked for again, and again.
    """

    __slots__ = ("fanout", "groups", "held", "name", "opening", "position", "recent")

    def __init__(self, name: str, fanout: Fanout) -> None:
        self.name = name
        self.fanout = fanout
        self.position = StreamPosition()
        self.groups: dict[tuple[str, Wire], Group] = {}
        self.held: dict[Attachment, None] = {}
        #: Set while the bus subscription is being made: those who wait for it.
        self.opening: list[Deferred[None]] | None = None
        self.recent: list[StreamMessage] | None = None

    @property
    def idle(self) -> bool:
        """True when nobody is subscribed."""
        return not self.groups and not self.held

    def attachments(self) -> list[Attachment]:
        """Every attachment, held and live."""
        live = [a for group in self.groups.values() for a in group.members()]
        return [*self.held, *live]

    def hold(self, attachment: Attachment) -> None:
        """Register a held attachment, so that transient messages wait for it."""
        self.held[attachment] = None

    def release(self, attachment: Attachment) -> None:
        """Make a held attachment live. Its cursor is the stream's position and nothing waits for it."""
        self._let_go(attachment)
        subscription = attachment.subscription
        key = (subscription.identifier, subscription.session.outlet.wire)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = self.fanout.group(key[1])
        attachment.group = group
        group.join(attachment)

    def remove(self, attachment: Attachment) -> None:
        """Forget an attachment, held or live; nothing more reaches it."""
        group = attachment.group
        if group is None:
            self._let_go(attachment)
            return
        attachment.group = None
        group.leave(attachment)
        if not len(group):
            subscription = attachment.subscription
            self.groups.pop((subscription.identifier, subscription.session.outlet.wire), None)

    def _let_go(self, attachment: Attachment) -> None:
        self.held.pop(attachment, None)
        if not self.held:
            self.recent = None

    def missed(self, cursor: Position) -> list[StreamMessage]:
        """Everything handed over after *cursor*; empty if that is not remembered. From now on it will be."""
        if self.recent is None:
            self.recent = []
        found = []
        link = self.position.position
        for message in reversed(self.recent):
            if link == cursor or (message.epoch, message.offset) != link:
                break
            found.append(message)
            link = Position(message.epoch, message.prev)
        return found[::-1] if link == cursor else []

    def remember(self, message: StreamMessage) -> None:
        """Keep *message*, which was handed over, for attachments that catch up."""
        recent = self.recent
        if recent is None:
            return
        recent.append(message)
        while len(recent) > MAX_RECENT or sum(len(m.payload) for m in recent) > MAX_RECENT_BYTES:
            del recent[0]


class Hub:
    """All streams with local subscribers."""

    def __init__(self, fanout: Fanout, metrics: Metrics, find: Callable[[str], Session | None]) -> None:
        self.fanout = fanout
        self.metrics = metrics
        #: The session that has, or before a resume had, a given sid.
        self.find = find
        self.streams: dict[str, LocalStream] = {}

    def hand_over(self, stream: LocalStream, message: StreamMessage) -> None:
        """Give *message*, which links to the stream's position, to every live attachment (P1, P2).

        Held attachments read stored messages from the broker later; what is in no store waits for them here.
        """
        self.metrics.count("broadcast_msg_total")
        excluded = self._step_aside(stream, message.exclude_socket) if message.exclude_socket else ()
        tail = broadcast_tail(message)
        for (identifier, wire), group in stream.groups.items():
            payload = wire.broadcast(orjson.dumps(identifier), message, tail)
            if payload:
                group.send(payload)
        for group, attachment in excluded:
            group.join(attachment)
        if stream.held:
            if message.offset:
                stream.remember(message)
            else:
                self._wait(stream, message)

    def _step_aside(self, stream: LocalStream, sid: str) -> list[tuple[Group, Attachment]]:
        """Take the attachments of *sid* out of their groups for one message."""
        session = self.find(sid)
        if session is None:
            return []
        found = []
        for subscription in session.subscriptions.values():
            for attachment in subscription.attachments:
                group = attachment.group
                if attachment.stream is stream and group is not None:
                    group.settle(attachment)
                    group.leave(attachment)
                    found.append((group, attachment))
        return found

    def _wait(self, stream: LocalStream, message: StreamMessage) -> None:
        for attachment in stream.held:
            session = attachment.subscription.session
            if attachment.barrier is None or not session.is_open() or session.is_excluded(message):
                continue
            for _ in range(attachment.barrier.wait(message)):
                session.services.refused(session, "transient_dropped_total")
