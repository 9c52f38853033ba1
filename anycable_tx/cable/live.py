"""Open a barrier: send what a held attachment missed, in order, and then let it live (P1 to P4)."""

from __future__ import annotations

from anycable_tx.cable import codec
from anycable_tx.cable.attachments import Attachment, Barrier
from anycable_tx.cable.codec import HistoryAsk
from anycable_tx.cable.messages import HistoryRequest, Position, StreamMessage
from anycable_tx.cable.session import Session, Subscription
from anycable_tx.errors import BrokerUnavailable, HistoryRefused

__all__ = ["answer_history", "go_live", "open_barriers", "replay"]

#: Replayed frames are handed to the transport in parts of about this many bytes, and the next part waits until
#: the client has taken the one before: a long history never fills a slow client's queue (P7).
REPLAY_PART = 1 << 16


async def replay(attachment: Attachment, messages: list[StreamMessage]) -> None:
    """Send stored *messages* to a held attachment's client, at the pace it reads; its cursor goes along."""
    session, barrier = attachment.subscription.session, attachment.barrier
    assert barrier is not None
    identifier, broadcast = attachment.subscription.json, session.outlet.wire.broadcast
    part: list[bytes] = []
    size = 0
    for message in messages:
        if session.is_excluded(message):
            continue
        payload = broadcast(identifier, message, codec.broadcast_tail(message))
        if not payload:
            continue
        part.append(payload)
        size += len(payload)
        if size >= REPLAY_PART:
            session.deliver(part)
            barrier.sent(message)
            part, size = [], 0
            waiter = session.outlet.drained()
            if waiter is not None:
                await waiter
            if not session.is_open():
                return
    if part:
        session.deliver(part)
        barrier.sent(messages[-1])


async def go_live(subscription: Subscription, attachments: tuple[Attachment, ...]) -> None:
    """Make held *attachments* live after everything stored behind their cursors was sent.

    If something can not be had any more the client is told, by ``reject_history``, before it gets what comes next
    (one of the base protocol would not understand).
    """
    session = subscription.session
    for attachment in attachments:
        stream, barrier = attachment.stream, attachment.barrier
        if barrier is None or not attachment.held:
            continue
        while barrier.cursor != stream.position.position:
            refused = await _approach(subscription, attachment, barrier)
            if not session.is_open() or attachment not in subscription.attachments:
                return
            if refused:
                barrier.skipped()
                if session.extended:
                    session.send(codec.history_frame(codec.REJECT_HISTORY, subscription.json))
        if not session.is_open():
            return
        _release(subscription, attachment)


async def _approach(subscription: Subscription, attachment: Attachment, barrier: Barrier) -> bool:
    """Send the next part of what a held attachment missed. True if some of it cannot be had any more."""
    session, stream = subscription.session, attachment.stream
    services = session.services
    missed = stream.missed(barrier.cursor)
    if missed:
        await replay(attachment, missed)
        barrier.cursor = Position(missed[-1].epoch, missed[-1].offset)
        return False
    here = stream.position.position
    try:
        history = await services.history(stream, HistoryRequest(barrier.cursor))
    except HistoryRefused as e:
        session.refused("history_rejects_total", e.reason)
        cursor, here = barrier.cursor, stream.position.position
        if cursor.epoch == here.epoch and cursor.offset > here.offset:
            # The bus has not even brought what this client was sent; nothing may come twice.
            await services.catch_up(stream, cursor.offset)
        barrier.cursor = stream.position.position
        return True
    top = history.top
    if top == barrier.cursor and here.epoch == top.epoch and here.offset > top.offset:
        # The broker is behind what it was known to have.
        session.refused("history_rejects_total", "unavailable")
        barrier.cursor = stream.position.position
        return True
    if _ahead(top, stream.position.position):
        # The bus has not brought these yet. Everybody gets them now, so that this one cannot be ahead.
        services.advance(stream, history)
        if _ahead(top, stream.position.position):
            await services.catch_up(stream, top.offset if top.epoch == here.epoch else 0)
    if not session.is_open() or attachment not in subscription.attachments:
        return False
    await replay(attachment, history.messages)
    barrier.cursor = top
    if _ahead(top, stream.position.position):
        barrier.cursor = stream.position.position
        return True
    return False


def _ahead(one: Position, other: Position) -> bool:
    """Is *one* beyond *other*, in the same epoch or in another?"""
    return one.epoch != other.epoch or one.offset > other.offset


def _release(subscription: Subscription, attachment: Attachment) -> None:
    barrier = attachment.barrier
    assert barrier is not None
    if barrier.waiting:
        identifier, session = subscription.json, subscription.session
        broadcast = session.outlet.wire.broadcast
        session.deliver([p for m in barrier.waiting if (p := broadcast(identifier, m, codec.broadcast_tail(m)))])
        barrier.waiting = []
    if barrier.opened_from is None and barrier.doubt is None:
        attachment.barrier = None
    attachment.stream.release(attachment)


async def answer_history(subscription: Subscription, ask: HistoryAsk, *, own: bool = False) -> None:
    """Answer a client's history request for all streams of the subscription: whole, or refused (P4).

    *own*: it came with the subscription itself.

    Live delivery waits from here on until the answer is out; the attachments are left held, at the place the
    answer reached, for ``go_live``.
    """
    session = subscription.session
    services = session.services
    attachments = subscription.attachments
    for attachment in attachments:
        attachment.hold()
    bases = [attachment.base for attachment in attachments]
    doubted = any(attachment.doubt is not None for attachment in attachments)
    try:
        found = []
        for attachment in attachments:
            request = attachment.request(ask)
            if request is not None:
                history = await services.history(attachment.stream, request)
                if request.position is None and attachment.is_passed_over(history):
                    history = await services.history(attachment.stream, HistoryRequest(attachment.cursor))
                found.append((attachment, history))
    except HistoryRefused as e:
        session.refused("history_rejects_total", e.reason)
        made_up = e.reason == "future_offset"
        has = [None if made_up else await _has(attachment, ask) for attachment in attachments]
        if session.is_open():
            for attachment, base, position in zip(attachments, bases, has, strict=True):
                attachment.base = base
                attachment.refused(position)
            if doubted:
                services.changed(session)
            session.send(codec.history_frame(codec.REJECT_HISTORY, subscription.json))
        return
    for attachment, history in found:
        if not session.is_open() or attachment not in subscription.attachments:
            return
        await replay(attachment, history.messages)
    if not session.is_open():
        return
    for attachment, history in found:
        attachment.answered(history, own=own)
    if doubted:
        services.changed(session)
    services.metrics.count("history_confirms_total")
    session.send(codec.history_frame(codec.CONFIRM_HISTORY, subscription.json))


async def _has(attachment: Attachment, ask: HistoryAsk) -> Position | None:
    """What a refused client says it has, if this node has not got there yet and the client has not made it up."""
    position = attachment.ahead(ask)
    if position is None or (position.epoch == attachment.cursor.epoch and position <= attachment.cursor):
        return position
    services = attachment.subscription.session.services
    try:
        tail = await services.broker.tail(attachment.stream.name)
    except BrokerUnavailable:
        services.metrics.count("broker_errors_total")
        return None
    return position if tail is not None and tail.epoch == position.epoch and position <= tail else None


async def open_barriers(session: Session) -> None:
    """A resumed client did not ask for its history in time: its subscriptions go live from where they stood.

    Before anything is sent that is on record: whoever resumes the session next, on whatever node, has to know what
    the client's positions do not prove any more.
    """
    owed: list[tuple[Subscription, tuple[Attachment, ...]]] = []
    for subscription in session.subscriptions.values():
        waiting = tuple(
            a for a in subscription.attachments if a.held and a.barrier is not None and a.barrier.restored
        )
        for attachment in waiting:
            assert attachment.barrier is not None
            attachment.barrier.opened_from = attachment.barrier.cursor
            session.services.refused(session, "barriers_expired_total")
        if waiting:
            owed.append((subscription, waiting))
    if owed:
        await session.services.save(session)
        if not session.is_open():
            return
    for subscription, waiting in owed:
        await go_live(subscription, waiting)
