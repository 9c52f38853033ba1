"""What can be proven from a log of the NATS broker: which messages of a stream a client has not got (P4).

A log forgets the messages of a stream from the oldest, when there are too many of them and when they are too old. So
where one of them is, everything after it is. All functions raise HistoryRefused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from anycable_tx.brokers.nats_facts import Facts
from anycable_tx.cable.rules import Rule
from anycable_tx.errors import HistoryRefused
from anycable_tx.nats.jetstream import Stored

__all__ = ["Held", "after", "check_complete", "check_position", "since"]


class Held(NamedTuple):
    """The messages of a stream from some offset on, in their order. *last* is the offset of its newest, 0: none."""

    messages: Sequence[Stored]
    last: int

    def begins_with(self, offset: int) -> bool:
        """Is the message *offset* the first of them?"""
        return bool(self.messages) and self.messages[0].offset == offset


def after(held: Held, offset: int, rule: Rule, now: float) -> Sequence[Stored]:
    """Those after *offset*, with which *held* begins if it is there, as far as they may be served."""
    missed = held.messages[1:] if held.begins_with(offset) else held.messages
    if len(missed) > rule.limit:
        raise HistoryRefused("trimmed")
    if missed and missed[0].time < now - rule.ttl:
        raise HistoryRefused("expired")
    return missed


def check_position(found: Stored | None, is_mark: bool, offset: int, last: int, facts: Facts) -> None:
    """Can *offset* be a position of a stream that ends at *last* and has no message of that offset?

    *found* is the message of the log that is there. Nothing that came after it may have grown too old.
    """
    if found is not None:
        if not is_mark:
            raise HistoryRefused("future_offset")
    elif offset > facts.last or 0 < last < offset:
        raise HistoryRefused("future_offset")
    elif offset + 1 < facts.first:
        raise HistoryRefused("expired")


def check_complete(number: int, time: float, facts: Facts) -> None:
    """Can *number* messages of a stream be all there were since *time*, when none has grown too old?"""
    if facts.least and number >= facts.least and time <= facts.until:
        raise HistoryRefused("trimmed")


def since(held: Held, earliest: float, rule: Rule, now: float, facts: Facts | None) -> Sequence[Stored]:
    """Those of *earliest* or later. *held* has all there are; *facts* are needed if none of these is older."""
    messages = held.messages
    gone, reason = -1, ""
    if len(messages) > rule.limit:
        displaced = len(messages) - rule.limit
        gone, reason = int(messages[displaced - 1].time), "trimmed"
        messages = messages[displaced:]
    expired = sum(message.time < now - rule.ttl for message in messages)
    if expired:
        gone, reason = int(messages[expired - 1].time), "expired"
        messages = messages[expired:]
    if not reason and facts is not None:
        check_complete(len(messages), earliest, facts)
        gone, reason = int(facts.unknown(now)), "expired"
    if gone >= earliest:
        raise HistoryRefused(reason)
    return [message for message in messages if message.time >= earliest]
