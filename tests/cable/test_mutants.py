"""The delivery machines notice when the code is broken: each of these breakages makes one of them fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from anycable_tx.cable.attachments import Attachment
from anycable_tx.cable.messages import History
from anycable_tx.cable.positions import StreamPosition, Verdict
from anycable_tx.cable.session import Session
from anycable_tx.cable.stream_log import StreamLog
from anycable_tx.node import Node
from anycable_tx.transports.groups import SharedGroup
from tests.cable.machine import SETTINGS
from tests.cable.test_delivery_machine import OneNode, TwoNodes

#: Enough for every breakage by a wide margin, always the same examples; the first failure ends the run.
ENOUGH = settings(
    SETTINGS,
    max_examples=1500,
    derandomize=True,
    phases=[Phase.generate],
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
)


def groups_are_not_sealed(break_: Callable[[Any, str, Any], None]) -> None:
    """Who joins a group gets frames that were sent before."""
    join, seal = SharedGroup.join, SharedGroup._seal

    def careless(self: SharedGroup, attachment: Attachment) -> None:
        SharedGroup._seal = lambda self: None  # type: ignore[method-assign]
        try:
            join(self, attachment)
        finally:
            SharedGroup._seal = seal  # type: ignore[method-assign]

    break_(SharedGroup, "join", careless)


def nobody_waits_for_the_client(break_: Callable[[Any, str, Any], None]) -> None:
    """A resumed client gets live messages before it could ask for what it missed."""
    from anycable_tx.cable.live import open_barriers

    break_(Node, "await_history", lambda self, session: self.spawn(open_barriers(session)))


def an_answer_falls_short(break_: Callable[[Any, str, Any], None]) -> None:
    """The last message that was replayed comes once more."""
    answered = Attachment.answered

    def forgetful(self: Attachment, history: History) -> None:
        answered(self, history)
        assert self.barrier is not None
        if history.messages:
            self.barrier.cursor = self.barrier.cursor._replace(offset=self.barrier.cursor.offset - 1)

    break_(Attachment, "answered", forgetful)


def the_oldest_kept_message_is_refused(break_: Callable[[Any, str, Any], None]) -> None:
    """A client from which nothing is missing is refused."""
    break_(StreamLog, "_first", property(lambda self: self.last + 2 - len(self.entries)))


def a_hole_is_confirmed(break_: Callable[[Any, str, Any], None]) -> None:
    """A client that missed one message more than is kept is told that it has everything."""
    prove = StreamLog.prove

    def generous(self: StreamLog, request: Any, epoch: str, *rest: Any) -> Any:
        position = request.position
        if position is not None and position.epoch == epoch and position.offset + 2 == self._first:
            request = request._replace(position=position._replace(offset=position.offset + 1))
        return prove(self, request, epoch, *rest)

    break_(StreamLog, "prove", generous)


def the_excluded_get_the_replay(break_: Callable[[Any, str, Any], None]) -> None:
    """``exclude_socket`` is forgotten in history."""
    break_(Session, "is_excluded", lambda self, message: False)


def repeats_are_delivered(break_: Callable[[Any, str, Any], None]) -> None:
    """A message that the bus brings twice is handed on twice."""
    arrived = StreamPosition.arrived

    def careless(self: StreamPosition, message: Any) -> Verdict:
        repeated = message.offset and message.epoch == self.epoch and message.offset == self.last and not self.healing
        return Verdict.DELIVER if repeated else arrived(self, message)

    break_(StreamPosition, "arrived", careless)


@pytest.mark.parametrize(
    ("machine", "breakage"),
    [
        (OneNode, groups_are_not_sealed),
        (OneNode, nobody_waits_for_the_client),
        (OneNode, an_answer_falls_short),
        (OneNode, the_oldest_kept_message_is_refused),
        (OneNode, a_hole_is_confirmed),
        (OneNode, the_excluded_get_the_replay),
        (TwoNodes, repeats_are_delivered),
    ],
    ids=lambda value: value.__name__,
)
def test_the_breakage_is_noticed(
    machine: type[RuleBasedStateMachine],
    breakage: Callable[[Callable[[Any, str, Any], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breakage(monkeypatch.setattr)
    with pytest.raises(Exception):  # noqa: B017 - whatever the machine notices
        run_state_machine_as_test(machine, settings=ENOUGH)
