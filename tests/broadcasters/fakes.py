"""A node that can be slow, down or broken."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed

from anycable_tx.cable.messages import Publication, Receipt, RemoteCommand
from anycable_tx.errors import BrokerUnavailable


class FakeNode:
    """The publishing half of INode; like a broker it stores one id once."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.commands: list[RemoteCommand] = []
        self.attempts = 0
        self.slow = False
        self.down = False
        self.bug: Exception | None = None
        self.fail_streams: set[str] = set()
        #: True: a publication is stored and yet reported as failed, like when the answer of a server is lost.
        self.loses_answers = False
        self.waiting: list[tuple[Deferred[Receipt], Receipt]] = []
        self._ids: set[str] = set()

    def publish(self, publication: Publication) -> Deferred[Receipt]:
        self.attempts += 1
        if self.bug:
            return fail(self.bug)
        if self.down or publication.stream in self.fail_streams:
            return fail(BrokerUnavailable("it is down"))
        duplicate = publication.id in self._ids
        if not duplicate:
            self.published.append(publication)
            if publication.id:
                self._ids.add(publication.id)
        if self.loses_answers:
            return fail(BrokerUnavailable("the answer was lost"))
        receipt = Receipt(len(self.published), "e", duplicate)
        if self.slow:
            waiting: Deferred[Receipt] = Deferred()
            self.waiting.append((waiting, receipt))
            return waiting
        return succeed(receipt)

    def broadcast_command(self, command: RemoteCommand) -> Deferred[None]:
        if self.down:
            return fail(BrokerUnavailable("it is down"))
        self.commands.append(command)
        return succeed(None)

    def answer(self) -> None:
        """Answer the oldest publication that waits."""
        waiting, receipt = self.waiting.pop(0)
        waiting.callback(receipt)
