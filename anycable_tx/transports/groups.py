"""Fan-out: the frames a group was given in one reactor turn leave joined, in slices, without losing order.

Every member has a slot, which is what its frames are handed to. Here a slot is the member's transport; the
direct variant (see ``direct``) hands them to the socket itself. A frame sent to a group reaches the members of
that moment: later members and those that leave are kept apart by *sealing* what has not left yet.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from anycable_tx.cable.attachments import Attachment
from anycable_tx.cable.fanout import Wire
from anycable_tx.metrics import Metrics

__all__ = ["Flusher", "SharedGroup"]

#: Sends per reactor turn: enough to make the turn cheap, few enough that other clients are served in between.
SLICE = 256


class _Gone:
    """A slot that takes nothing: that of a member that left."""

    def write(self, data: bytes) -> None:
        pass

    def send(self, data: bytes) -> int:
        raise BlockingIOError


GONE = _Gone()
#: The slot of a member whose connection is closing: it is written to no more.
SILENT = _Gone()


class _Batch:
    """Frames on their way to the members before ``end``; those before ``next`` have them."""

    __slots__ = ("data", "end", "next")

    def __init__(self, data: bytes, end: int) -> None:
        self.data = data
        self.end = end
        self.next = 0


class SharedGroup:
    """A ``Group`` of the domain: see there for what it guarantees."""

    __slots__ = ("_attachments", "_batches", "_encode", "_flusher", "_out", "_size", "slots")

    def __init__(self, flusher: Flusher, wire: Wire) -> None:
        self._flusher = flusher
        self._encode = wire.frame
        self._attachments: list[Attachment | None] = []
        self._batches: deque[_Batch] | None = None
        self._out: list[bytes] = []
        self._size = 0
        self.slots: list[Any] = []

    def __len__(self) -> int:
        return self._size

    def members(self) -> list[Attachment]:
        """The members."""
        return [a for a in self._attachments if a is not None]

    def send(self, payload: bytes) -> None:
        """Every member of this moment gets *payload*."""
        if not self._size:
            return
        if not self._out and not self._batches:
            self._flusher.enqueue(self)
        self._out.append(self._encode(payload))
        metrics = self._flusher.metrics
        metrics.count("server_msg_total", self._size)
        metrics.count("data_sent_total", self._size * len(payload))

    def join(self, attachment: Attachment) -> None:
        """Frames sent from now on are for this member too."""
        self._seal()
        attachment.index = len(self._attachments)
        self._attachments.append(attachment)
        self.slots.append(attachment.subscription.session.outlet.slot)  # type: ignore[attr-defined]
        self._size += 1

    def leave(self, attachment: Attachment) -> None:
        """Nothing more reaches this member."""
        index = attachment.index
        self._attachments[index] = None
        self.slots[index] = GONE
        attachment.index = -1
        self._size -= 1
        if not self._out and not self._batches:
            self._compact()

    def settle(self, attachment: Attachment) -> None:
        """Write to this member what has not left yet; its place is then behind all that is under way."""
        if not self._out and not self._batches:
            return
        self._seal()
        index = attachment.index
        owed = b"".join([b.data for b in self._batches or () if b.next <= index < b.end])
        if owed:
            attachment.subscription.session.outlet.write(owed)  # type: ignore[attr-defined]
            self._attachments[index] = None
            self.slots[index] = GONE
            attachment.index = len(self._attachments)
            self._attachments.append(attachment)
            self.slots.append(attachment.subscription.session.outlet.slot)  # type: ignore[attr-defined]

    def _seal(self) -> None:
        """What was sent so far is for the members of this moment only."""
        if self._out:
            if self._batches is None:
                self._batches = deque()
            self._batches.append(_Batch(b"".join(self._out), len(self._attachments)))
            self._out = []

    def flush(self, budget: int) -> int:
        """Let up to *budget* members have the oldest batch; answers how many it was."""
        self._seal()
        batches = self._batches
        if not batches:
            return 0
        batch = batches[0]
        start, stop = batch.next, min(batch.next + budget, batch.end)
        batch.next = stop
        if stop == batch.end:
            batches.popleft()
        self.push(batch.data, start, stop)
        if not batches and not self._out:
            self._batches = None
            self._compact()
        return stop - start

    @property
    def waiting(self) -> bool:
        """Something has not left yet."""
        return bool(self._out or self._batches)

    def push(self, data: bytes, start: int, stop: int) -> None:
        """Hand *data* to the slots from *start* to *stop*."""
        for slot in self.slots[start:stop]:
            slot.write(data)

    def _compact(self) -> None:
        """Close the holes that departed members left, once there are many."""
        holes = len(self._attachments) - self._size
        if holes > 256 or holes * 4 > len(self._attachments):
            self._attachments = [a for a in self._attachments if a is not None]
            self.slots = [slot for slot in self.slots if slot is not GONE]
            for index, attachment in enumerate(self._attachments):
                attachment.index = index  # type: ignore[union-attr]

    def slow(self, attachment: Attachment, slot: Any) -> None:
        """The member's slot changed; nothing to do while it is out of the group for one message."""
        if attachment.index >= 0:
            self.slots[attachment.index] = slot


class Flusher:
    """The ``Fanout`` of the domain: lets the groups that have something leave, a slice each turn."""

    group_class = SharedGroup

    def __init__(self, reactor: Any, metrics: Metrics) -> None:
        self.reactor = reactor
        self.metrics = metrics
        self._dirty: deque[SharedGroup] = deque()
        self.pending = False

    def group(self, wire: Wire) -> SharedGroup:
        """A new, empty group."""
        return self.group_class(self, wire)

    def enqueue(self, group: SharedGroup) -> None:
        """*group* has something to send."""
        self._dirty.append(group)
        if not self.pending:
            self.pending = True
            self.reactor.callLater(0, self._run)

    def _run(self) -> None:
        budget = SLICE
        dirty = self._dirty
        try:
            while dirty and budget > 0:
                group = dirty.popleft()
                try:
                    budget -= group.flush(budget) + 1
                finally:
                    if group.waiting:
                        dirty.append(group)
        finally:  # an error ends this turn, not the fan-out
            if dirty:
                self.reactor.callLater(0, self._run)
            else:
                self.pending = False

    def flush(self) -> None:
        """Let everything leave now."""
        while self._dirty:
            group = self._dirty.popleft()
            while group.waiting:
                group.flush(SLICE)
