"""Answers to requests: all on one subject, told apart by their last token."""

from __future__ import annotations

from itertools import count
from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred

from anycable_tx.nats.api import Message, NatsUnavailable

__all__ = ["MAX_PENDING", "Inbox"]

#: So many requests may be without an answer.
MAX_PENDING = 65_536
_NO_RESPONDERS = 503


class Inbox:
    """Expects answers on ``subject``, and gives each to who asked for it."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._prefix = f"_INBOX.{token_hex(11)}."
        self.subject = f"{self._prefix}*"
        self._numbers = count()
        self._expected: dict[str, _Answers] = {}

    def expect(self, asked: str, within: float, *, many: bool = False) -> tuple[str, Deferred[list[Message]]]:
        """Where to answer a request about *asked*, and the answers. Raises NatsUnavailable if there are too many."""
        if len(self._expected) >= MAX_PENDING:
            raise NatsUnavailable(f"NATS: there are {MAX_PENDING} requests without an answer")
        reply = f"{self._prefix}{next(self._numbers)}"
        self._expected[reply] = answers = _Answers(self, reply, asked, within, many)
        answers.timer = self._reactor.callLater(within, answers.late)
        return reply, answers.done

    def received(self, message: Message) -> None:
        """A message on ``subject``. One that nobody expects any more is nothing to anybody."""
        answers = self._expected.get(message.subject)
        if answers is not None:
            answers.received(message)

    def fail_all(self, why: str) -> None:
        """There will be no more answers to anything that was asked up to now."""
        for answers in list(self._expected.values()):
            answers.fail(why)

    def forget(self, reply: str) -> None:
        """Expect nothing there."""
        answers = self._expected.pop(reply, None)
        if answers is not None and answers.timer.active():
            answers.timer.cancel()


class _Answers:
    """What was answered to one request, until that is all."""

    __slots__ = ("_asked", "_inbox", "_many", "_messages", "_reply", "_within", "done", "timer")

    def __init__(self, inbox: Inbox, reply: str, asked: str, within: float, many: bool) -> None:
        self._inbox, self._reply, self._asked, self._within, self._many = inbox, reply, asked, within, many
        self._messages: list[Message] = []
        self.timer: Any = None
        self.done: Deferred[list[Message]] = Deferred(self._end)

    def received(self, message: Message) -> None:
        if message.status == _NO_RESPONDERS:
            self.fail("nobody is there to answer")
            return
        self._messages.append(message)
        # One of several says how many are left; one that does not is all there is.
        if self._many and not message.status and "Nats-Num-Pending" in message.headers:
            self.timer.reset(self._within)
            return
        self._end()
        self.done.callback(self._messages)

    def late(self) -> None:
        self.fail(f"no answer within {self._within:g} s")

    def fail(self, why: str) -> None:
        self._end()
        self.done.errback(NatsUnavailable(f"NATS: {self._asked}: {why}"))

    def _end(self, cancelled: Any = None) -> None:
        self._inbox.forget(self._reply)
