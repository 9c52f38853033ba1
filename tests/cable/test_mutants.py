"""The delivery machines notice when the code is broken: each of these breakages makes one of them fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from anycable_tx.brokers.memory_sessions import Sessions
from anycable_tx.cable import admission, commands, live
from anycable_tx.cable.attachments import Attachment, Barrier
from anycable_tx.cable.hub import Hub, LocalStream
from anycable_tx.cable.messages import History
from anycable_tx.cable.positions import StreamPosition, Verdict
from anycable_tx.cable.session import Session
from anycable_tx.cable.stream_log import StreamLog
from anycable_tx.node import Node
from anycable_tx.transports.groups import SharedGroup
from tests.cable.machine import SETTINGS
from tests.cable.test_delivery_machine import OneNode, TwoIdentifiers, TwoNodes

Break = Callable[[Any, str, Any], None]

#: Always the same examples, many more than any breakage needs; the first failure ends the run.
ENOUGH = settings(
    SETTINGS,
    max_examples=1500,
    derandomize=True,
    phases=[Phase.generate],
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
)


def groups_are_not_sealed(break_: Break) -> None:
    """Who joins a group gets frames that were sent before."""
    join, seal = SharedGroup.join, SharedGroup._seal

    def careless(self: SharedGroup, attachment: Attachment) -> None:
        SharedGroup._seal = lambda self: None  # type: ignore[method-assign]
        try:
            join(self, attachment)
        finally:
            SharedGroup._seal = seal  # type: ignore[method-assign]

    break_(SharedGroup, "join", careless)


def nothing_is_settled(break_: Break) -> None:
    """What is written directly overtakes what was sent to the group before."""
    break_(Session, "settle", lambda self: None)


def who_leaves_a_group_still_gets_its_frames(break_: Break) -> None:
    """An unsubscribed stream goes on for what has not left yet."""
    leave = SharedGroup.leave

    def careless(self: SharedGroup, attachment: Attachment) -> None:
        index, slot = attachment.index, self.slots[attachment.index]
        leave(self, attachment)
        if self.waiting:
            self.slots[index] = slot

    break_(SharedGroup, "leave", careless)


def held_subscriptions_hear_everything(break_: Break) -> None:
    """Live messages do not wait for the answer to a history request."""
    hold = LocalStream.hold

    def careless(self: LocalStream, attachment: Attachment) -> None:
        hold(self, attachment)
        self.release(attachment)

    break_(LocalStream, "hold", careless)


def nobody_waits_for_the_client(break_: Break) -> None:
    """A resumed client gets live messages before it could ask for what it missed."""
    break_(Node, "await_history", lambda self, session: self.spawn(live.open_barriers(session)))


def barriers_open_without_reading_the_store(break_: Break) -> None:
    """What came while a subscription was held is skipped."""

    async def careless(subscription: Any, attachments: Any) -> None:
        for attachment in attachments:
            if attachment.held and subscription.session.is_open() and attachment in subscription.attachments:
                live._release(subscription, attachment)

    for module in (live, commands):
        break_(module, "go_live", careless)


def an_answer_leaves_the_cursor(break_: Break) -> None:
    """What was replayed comes once more."""
    break_(Barrier, "sent", lambda self, message: None)
    answered = Attachment.answered

    def forgetful(self: Attachment, history: History) -> None:
        assert self.barrier is not None
        cursor = self.barrier.cursor
        answered(self, history)
        self.barrier.cursor = cursor

    break_(Attachment, "answered", forgetful)


def the_cursor_is_taken_after_the_cut(break_: Break) -> None:
    """A session resumes where its streams are when it comes back, not where it left."""
    reattach = admission._reattach

    async def careless(subscription: Any, places: Any, registry: Any) -> None:
        await reattach(subscription, places, registry)
        for attachment in subscription.attachments:
            if attachment.barrier is not None:
                attachment.barrier.cursor = attachment.stream.position.position
                attachment.base = attachment.stream.position.last

    break_(admission, "_reattach", careless)


def a_late_answer_is_always_given(break_: Break) -> None:
    """A client that asks late is confirmed though live messages had already passed over what it missed."""
    request = Attachment.request

    def careless(self: Attachment, ask: Any) -> Any:
        if self.barrier is not None and self.barrier.restored and self.barrier.opened_from is not None:
            return live.HistoryRequest(self.barrier.cursor)
        return request(self, ask)

    break_(Attachment, "request", careless)


def positions_are_always_believed(break_: Break) -> None:
    """What a client had no chance to ask for is forgotten when it resumes again."""
    break_(Attachment, "doubt", property(lambda self: None))


def a_loss_is_not_told(break_: Break) -> None:
    """A barrier opens over a hole, and the client never hears of it."""
    approach = live._approach

    async def silent(*args: Any) -> bool:
        await approach(*args)
        return False

    break_(live, "_approach", silent)


def the_oldest_kept_message_is_refused(break_: Break) -> None:
    """A client from which nothing is missing is refused."""
    break_(StreamLog, "_first", property(lambda self: self.last + 2 - len(self.entries)))


def a_hole_is_confirmed(break_: Break) -> None:
    """A client that missed one message more than is kept is told that it has everything."""
    prove = StreamLog.prove

    def generous(self: StreamLog, request: Any, epoch: str, *rest: Any) -> Any:
        position = request.position
        if position is not None and position.epoch == epoch and position.offset + 2 == self._first:
            request = request._replace(position=position._replace(offset=position.offset + 1))
        return prove(self, request, epoch, *rest)

    break_(StreamLog, "prove", generous)


def the_excluded_get_the_replay(break_: Break) -> None:
    """``exclude_socket`` is forgotten in history."""
    break_(Session, "is_excluded", lambda self, message: False)


def the_excluded_get_it_live(break_: Break) -> None:
    """``exclude_socket`` is forgotten on the way to the groups."""
    break_(Hub, "_step_aside", lambda self, stream, sid: [])


def sessions_can_be_claimed_for_ever(break_: Break) -> None:
    """``sessions_ttl`` means nothing."""
    release = Sessions.release
    break_(Sessions, "release", lambda self, sid, record, now: release(self, sid, record, now + 1e6))


def a_banned_session_comes_back(break_: Break) -> None:
    """A remote disconnect leaves the session resumable."""
    break_(Sessions, "forget_all", lambda self, identifiers, now: 0)


def two_have_the_same_session(break_: Break) -> None:
    """A resume leaves the old connection alone."""

    async def careless(self: Node, sid: str) -> None:
        return None

    break_(Node, "take_over", careless)


def repeats_are_delivered(break_: Break) -> None:
    """A message that the bus brings twice is handed on twice."""
    arrived = StreamPosition.arrived

    def careless(self: StreamPosition, message: Any) -> Verdict:
        repeated = message.offset and message.epoch == self.epoch and message.offset == self.last and not self.healing
        return Verdict.DELIVER if repeated else arrived(self, message)

    break_(StreamPosition, "arrived", careless)


def gaps_are_ignored(break_: Break) -> None:
    """The node goes on behind a message that the bus has lost."""
    arrived = StreamPosition.arrived

    def careless(self: StreamPosition, message: Any) -> Verdict:
        if message.offset > self.last and message.epoch == self.epoch and not self.healing:
            self.last = message.offset
            return Verdict.DELIVER
        return arrived(self, message)

    break_(StreamPosition, "arrived", careless)


def a_restored_bus_is_trusted(break_: Break) -> None:
    """Nobody looks for what the bus has lost while it was away."""
    break_(Node, "bus_restored", lambda self: None)


def the_other_identifier_is_believed(break_: Break) -> None:
    """A subscription that was held is served from the position that another one has reached (D-15)."""
    break_(Attachment, "untouched", property(lambda self: False))


@pytest.mark.parametrize(
    ("machine", "breakage"),
    [
        (OneNode, groups_are_not_sealed),
        (OneNode, nothing_is_settled),
        (OneNode, who_leaves_a_group_still_gets_its_frames),
        (OneNode, held_subscriptions_hear_everything),
        (OneNode, nobody_waits_for_the_client),
        (OneNode, barriers_open_without_reading_the_store),
        (OneNode, an_answer_leaves_the_cursor),
        (OneNode, the_cursor_is_taken_after_the_cut),
        (OneNode, a_late_answer_is_always_given),
        (OneNode, positions_are_always_believed),
        (OneNode, a_loss_is_not_told),
        (OneNode, the_oldest_kept_message_is_refused),
        (OneNode, a_hole_is_confirmed),
        (OneNode, the_excluded_get_the_replay),
        (OneNode, the_excluded_get_it_live),
        (OneNode, sessions_can_be_claimed_for_ever),
        (OneNode, a_banned_session_comes_back),
        (OneNode, two_have_the_same_session),
        (TwoNodes, repeats_are_delivered),
        (TwoNodes, gaps_are_ignored),
        (TwoNodes, a_restored_bus_is_trusted),
        (TwoIdentifiers, the_other_identifier_is_believed),
    ],
    ids=lambda value: value.__name__,
)
def test_the_breakage_is_noticed(
    machine: type[RuleBasedStateMachine],
    breakage: Callable[[Break], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breakage(monkeypatch.setattr)
    with pytest.raises(Exception):  # noqa: B017 - whatever the machine notices
        run_state_machine_as_test(machine, settings=ENOUGH)
