"""One (session, identifier, stream): what this connection has been sent of the stream (P1, P2, P4).

An attachment is *live* (a member of a group: its cursor is the stream's own position) or *held* behind a
barrier (its cursor is its own, and live messages wait). A held attachment keeps no stored payloads: when the
barrier opens, what it missed is read from the broker. Only messages without an offset, which are in no store,
wait in memory, and only a few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anycable_tx.cable.codec import HistoryAsk
from anycable_tx.cable.messages import History, HistoryRequest, Position, StreamMessage
from anycable_tx.cable.records import Doubt
from anycable_tx.errors import HistoryRefused

if TYPE_CHECKING:
    from anycable_tx.cable.fanout import Group
    from anycable_tx.cable.hub import LocalStream
    from anycable_tx.cable.session import Subscription

__all__ = ["Attachment", "Barrier"]

#: In place of the offset a subscription started after.
UNKNOWN = -1

#: How many transient messages, and how many bytes of them, a held attachment keeps.
MAX_WAITING = 100
MAX_WAITING_BYTES = 1 << 18


class Barrier:
    """What a held attachment knows.

    ``cursor``: everything up to here was sent, or is not owed. ``restored``: it comes from a resumed session and
    the client's first history request is still owed an answer; ``opened_from`` is where it went live meanwhile,
    because the client did not ask in time: what follows was sent, all of it. ``behind``: the cursor is a proof
    that nothing later was ever sent, so it beats a higher position that the client learned through another
    identifier (D-15). ``doubt``: what the client's position does not prove, because an earlier connection went
    live unasked. ``told``: this one did so too, and was told then that something is missing: who has what came
    behind that knows. ``exact``: the cursor it came with was not out of date. ``touched``: something was sent
    since the barrier went up.
    """

    __slots__ = ("behind", "cursor", "doubt", "exact", "opened_from", "restored", "told", "touched", "waiting")

    def __init__(
        self,
        cursor: Position,
        *,
        restored: bool = False,
        behind: bool = False,
        exact: bool = True,
        doubt: Doubt | None = None,
    ) -> None:
        self.cursor = cursor
        self.restored = restored
        self.behind = behind
        self.exact = exact
        self.doubt = doubt
        self.told = False
        self.touched = False
        self.opened_from: Position | None = None
        self.waiting: list[StreamMessage] = []

    def sent(self, message: StreamMessage) -> None:
        """*message*, which is in the store, went out to the client."""
        self.touched = True
        if message.epoch == self.cursor.epoch and message.offset > self.cursor.offset:
            self.cursor = Position(message.epoch, message.offset)

    def skipped(self) -> None:
        """What lies before the cursor could not be had, and the client is told so before it is sent more."""
        opened = self.opened_from
        if opened is None:
            return
        if not self.told:
            self.doubt = Doubt(
                min(opened.offset, self.doubt.after) if self.doubt else opened.offset, self.cursor.offset
            )
            self.told = True
        self.opened_from = self.cursor

    def wait(self, message: StreamMessage) -> int:
        """Keep a transient message until the barrier opens; answers how many older ones had to go for it."""
        waiting = self.waiting
        waiting.append(message)
        dropped = 0
        while len(waiting) > MAX_WAITING or sum(len(m.payload) for m in waiting) > MAX_WAITING_BYTES:
            del waiting[0]
            dropped += 1
        return dropped


class Attachment:
    """The delivery state of one stream under one identifier of one connection.

    ``base`` is the offset the subscription started after: a client that names no position has everything
    before it. It is UNKNOWN, or the negative of a time (Unix seconds) when the client asked for messages from then on
    and has no answer, or was refused: that its clock went on since then does not mean that it read the refusal.
    ``index`` is the member's place in its group, kept by the group.
    """

    __slots__ = ("barrier", "base", "group", "index", "stream", "subscription")

    def __init__(
        self, subscription: Subscription, stream: LocalStream, base: Position, barrier: Barrier | None = None
    ) -> None:
        self.subscription = subscription
        self.stream = stream
        self.base = base.offset if base.epoch == stream.position.epoch else UNKNOWN
        self.barrier: Barrier | None = barrier or Barrier(base)
        self.group: Group | None = None
        self.index = -1

    @property
    def held(self) -> bool:
        """True while live messages wait."""
        return self.group is None

    @property
    def cursor(self) -> Position:
        """The newest position this connection was sent, or is not owed."""
        if self.group is None and self.barrier is not None:
            return self.barrier.cursor
        return self.stream.position.position

    @property
    def untouched(self) -> bool:
        """True while nothing at all was sent after the cursor a resumed session came with."""
        barrier = self.barrier
        if self.group is not None or barrier is None:
            return False
        return barrier.restored and barrier.exact and not barrier.touched

    @property
    def exact(self) -> bool:
        """False while an earlier connection may have been sent more than this one knows of."""
        return self.barrier is None or not self.barrier.restored or self.barrier.exact

    @property
    def doubt(self) -> Doubt | None:
        """What a position that the client names when it resumes will not prove."""
        barrier = self.barrier
        if barrier is None or not barrier.restored or barrier.opened_from is None or barrier.told:
            return None if barrier is None else barrier.doubt
        after = barrier.opened_from.offset
        if after <= self.base:
            return barrier.doubt  # there was nothing before that it could have lost
        return Doubt(after if barrier.doubt is None else min(after, barrier.doubt.after))

    def hold(self) -> None:
        """Stop live delivery after what was sent already; the cursor is where it stopped."""
        if self.group is None:
            return
        cursor = self.stream.position.position
        group = self.group
        group.settle(self)
        self.stream.remove(self)
        if self.barrier is None:
            self.barrier = Barrier(cursor)
        else:
            self.barrier.cursor = cursor
        self.stream.hold(self)

    def request(self, ask: HistoryAsk) -> HistoryRequest | None:
        """What to read from the broker for a client's request, or None when it does not concern this stream.

        Raises HistoryRefused when no answer could keep the order of this connection. A position
        that a resumed client names is served from wherever it says it is, because nothing was sent on this
        connection yet; one that it names later, on a live subscription, is answered as asked.
        """
        position = None if ask.streams is None else ask.streams.get(self.stream.name)
        barrier = self.barrier
        if barrier is None or not barrier.restored:
            if position is not None:
                if self.base >= 0 and position.epoch == self.stream.position.epoch:
                    self.base = min(self.base, position.offset)  # it has no more, should the answer be lost
                return HistoryRequest(position)
            if ask.since > 0:
                return HistoryRequest(since=ask.since)
            if ask.sole and self.stream.position.last:
                raise HistoryRefused("unnamed")
            return None
        if position is None:
            if self.base < 0 and ask.since > 0:
                if barrier.opened_from is not None:
                    raise HistoryRefused("behind")
                return HistoryRequest(since=ask.since if self.base == UNKNOWN else min(ask.since, -self.base))
            position = self._start(barrier)
        elif barrier.doubt is not None and barrier.doubt.covers(position.offset):
            raise HistoryRefused("behind")
        elif barrier.behind and position.epoch == barrier.cursor.epoch and position > barrier.cursor:
            position = barrier.cursor
        opened = barrier.opened_from
        if opened is None:
            return HistoryRequest(position)
        # The barrier opened by itself: everything after that place was sent, in order, on this connection.
        if position.epoch == opened.epoch and position.offset >= opened.offset:
            here = barrier.cursor  # this node may lag behind the one that the client comes from
            return HistoryRequest(max(here, position) if here.epoch == position.epoch else here)
        raise HistoryRefused("behind")

    def _start(self, barrier: Barrier) -> Position:
        """Where a resumed client stands that names no position: it was never sent one, so at the start."""
        place = barrier.opened_from or barrier.cursor
        if self.base < 0 or place.epoch != self.stream.position.epoch:
            return place
        return Position(place.epoch, min(self.base, place.offset))

    def is_passed_over(self, history: History) -> bool:
        """Does the answer to a ``since`` begin behind something that this subscription is owed all the same?

        The bus may not have brought yet what is older than the client's ``since``, or the answer came so late that
        a ``since`` in the future meant later than the subscription.
        """
        first, cursor = next(iter(history.messages), None), self.cursor
        start = history.top.offset if first is None else first.prev or first.offset - 1
        return history.top.epoch == cursor.epoch and start > cursor.offset

    def ahead(self, ask: HistoryAsk) -> Position | None:
        """What *ask* says the client has, if this node has not got there yet."""
        named = None if ask.streams is None else ask.streams.get(self.stream.name)
        here = self.stream.position.position
        return named if named is not None and named.epoch == here.epoch and named > here else None

    def lost(self, after: Position) -> None:
        """Live messages up to *after* could not be had, and the client is told so before it is sent more."""
        if self.barrier is not None and not self.held:
            self.barrier.cursor = after
            self.barrier.skipped()

    def refused(self, has: Position | None) -> None:
        """The client was told that its request is refused. *has*: it certainly has what leads to there (P2)."""
        barrier = self.barrier
        assert barrier is not None
        doubt = self.doubt
        here = self.stream.position.position
        if (barrier.restored and barrier.opened_from is None) or barrier.cursor.epoch != here.epoch:
            barrier.cursor = here
        if has is not None and has.epoch == barrier.cursor.epoch:
            barrier.cursor = max(barrier.cursor, has)
        if barrier.restored:
            # Who has what came behind the first refusal has read it.
            barrier.doubt = doubt if doubt is None or doubt.upto >= 0 else Doubt(doubt.after, barrier.cursor.offset)
        barrier.restored = barrier.behind = False
        barrier.opened_from = None

    def answered(self, history: History, *, own: bool) -> None:
        """The answer *history* went out, to the subscription's *own* request or to a later one."""
        barrier = self.barrier
        assert barrier is not None
        top = history.top
        barrier.cursor = max(top, barrier.cursor) if top.epoch == barrier.cursor.epoch else top
        start = history.messages[0].offset - 1 if history.messages else top.offset
        if self.base < 0 and (own or barrier.restored):
            self.base = start
        else:
            self.base = min(start, self.base)
        if barrier.restored:
            barrier.doubt = None
        barrier.restored = barrier.behind = False
        barrier.opened_from = None
