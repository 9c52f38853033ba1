"""The node's place in one stream: which message may be handed to local subscribers next (P1, P2, P3).

A pure state machine. Messages of one stream are handed on only in a chain: each names the stored message before
it, and must link to the last one handed on. When the chain is broken nothing is guessed and nothing is kept in
memory: the hole is read from the broker, from ``last`` to at least ``target``, and handed on first.
"""

from __future__ import annotations

from enum import Enum

from anycable_tx.cable.messages import Position, StreamMessage

__all__ = ["StreamPosition", "Verdict"]


class Verdict(Enum):
    """What to do with a message that arrived."""

    DELIVER = "deliver"
    DROP = "drop"
    HEAL = "heal"
    RESET = "reset"


class StreamPosition:
    """``last`` of ``epoch`` was the newest message handed to local subscribers.

    While ``healing`` nothing is handed on but what ``fetched`` allows; ``target`` is the newest offset known to
    exist, and ``doubted`` tells that a message of another epoch was seen, so one more read has to show which epoch
    is the present one. A position is opened with the broker's tail, read after the bus confirmed the subscription.
    """

    __slots__ = ("doubted", "epoch", "healing", "last", "target")

    def __init__(self) -> None:
        self.epoch = ""
        self.last = 0
        self.target = 0
        self.doubted = False
        self.healing = True  # until opened

    @property
    def position(self) -> Position:
        """The place itself."""
        return Position(self.epoch, self.last)

    def open(self, tail: Position | None) -> bool:
        """Start at *tail* (None: the broker keeps no log). True: messages newer than it arrived already."""
        self.epoch, self.last = tail or ("", 0)
        self.healing = self.target > self.last
        return self.healing

    def arrived(self, message: StreamMessage) -> Verdict:
        """Judge a message from the bus. DELIVER and RESET have moved the position to it.

        HEAL: the chain is broken; read the broker and feed what it has to ``fetched``. The message itself is
        in the store, so it is not kept.
        """
        if not message.offset:
            return Verdict.DELIVER
        if message.epoch != self.epoch:
            if not self.healing:
                self.epoch, self.last, self.target = message.epoch, message.offset, message.offset
                return Verdict.RESET
            if self.epoch:
                self.doubted = True
                return Verdict.DROP
        if message.offset <= self.last:
            return Verdict.DROP
        if self.healing:
            self.target = max(self.target, message.offset)
            return Verdict.DROP
        if message.prev == self.last or not message.prev:
            self.last = self.target = message.offset
            return Verdict.DELIVER
        return self.suspect(message.offset)

    def suspect(self, target: int = 0) -> Verdict:
        """Something may have been missed, at least up to *target*: HEAL, or DROP if that is under way."""
        self.target = max(self.target, target)
        if self.healing:
            return Verdict.DROP
        self.healing = True
        return Verdict.HEAL

    def fetched(self, message: StreamMessage) -> bool:
        """May this message, read from the broker in order, be handed on? Moves the position if so."""
        if message.epoch != self.epoch or message.offset <= self.last:
            return False
        self.last = message.offset
        return True

    def healed(self, top: Position) -> bool:
        """A read reached *top*. True when nothing known is missing; False: read again."""
        if top.epoch == self.epoch:
            self.last = max(self.last, top.offset)
        self.healing, self.doubted = self.doubted or self.last < self.target, False
        return not self.healing

    def unhealed(self, tail: Position | None) -> None:
        """The hole could not be filled: go on after *tail*; subscribers are to be told.

        A tail that is behind what is known to exist is old news: nothing is handed on twice.
        """
        known = Position(self.epoch, max(self.last, self.target))
        if tail is None or tail.epoch == known.epoch:
            tail = max(known, tail or known)
        self.epoch, self.last = tail
        self.target = self.last
        self.healing = self.doubted = False
