"""Groups: who gets which frames, in which order, whatever joins, leaves or settles meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from anycable_tx.metrics import Metrics
from anycable_tx.transports.direct import SLOW, DirectFlusher, DirectGroup
from anycable_tx.transports.frames import DEFLATE, PLAIN
from anycable_tx.transports.groups import SLICE, Flusher
from tests.transports.support import TurningClock, inflate


class Pipe:
    """A connection: its own socket, its own transport and its own outlet. What it takes is bounded on demand."""

    def __init__(self) -> None:
        self.taken = b""
        self.queued = b""
        self.room = 1 << 30
        self.broken = False
        self.written: list[bytes] = []

    # the socket

    def send(self, data: bytes) -> int:
        if self.broken:
            raise ConnectionResetError
        assert not self.queued, "a direct send overtakes what is queued"
        if not self.room:
            raise BlockingIOError
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)

    # the outlet

    @property
    def slot(self) -> Any:
        return SLOW if self.queued and self.member.is_direct else self

    def write(self, data: bytes) -> None:
        """As the outlet: write through; as the slot of the shared variant: the same."""
        self.written.append(data)
        if self.queued:
            self.queue(data)
            return
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        if part != data:
            self.queue(data[len(part) :])

    def queue(self, data: bytes) -> None:
        self.queued += data
        self.show()

    def show(self) -> None:
        """The slot may have changed."""
        if self.member.is_direct:
            self.member.home.slow(self.member, self.slot)

    def drain(self) -> None:
        """The reader takes everything."""
        self.room = 1 << 30
        self.taken, self.queued = self.taken + self.queued, b""
        self.show()

    member: Member

    def texts(self) -> list[str]:
        """The messages, whole."""
        data, found = self.taken + self.queued, []
        while data:
            assert data[0] == 0x81
            found.append(data[2 : 2 + data[1]].decode())
            data = data[2 + data[1] :]
        return found


class Member:
    """The attachment of a pipe; it stands for its subscription and session too."""

    def __init__(self, pipe: Pipe | None = None) -> None:
        self.index = -1
        self.home: Any = None
        self.outlet = pipe or Pipe()
        self.outlet.member = self
        self.subscription = self.session = self

    def join(self, group: Any) -> Member:
        self.home = group
        group.join(self)
        return self

    @property
    def is_direct(self) -> bool:
        return isinstance(self.home, DirectGroup)

    def texts(self) -> list[str]:
        return self.outlet.texts()


class World:
    """A flusher on a clock."""

    def __init__(self, kind: type[Flusher]) -> None:
        self.clock = TurningClock()
        self.metrics = Metrics()
        self.flusher = kind(self.clock, self.metrics)
        self.group = self.flusher.group(PLAIN)

    def members(self, count: int, group: Any = None) -> list[Member]:
        return [Member().join(self.group if group is None else group) for _ in range(count)]

    def turn(self) -> None:
        self.clock.advance(0)

    def rest(self) -> None:
        for _ in range(100):
            if not self.flusher.pending:
                return
            self.turn()
        raise AssertionError("the flusher never comes to rest")


KINDS = {"direct": DirectFlusher, "shared": Flusher}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_what_is_sent_in_a_turn_leaves_in_one_piece_in_the_next(world):
    [member] = world.members(1)
    world.group.send(b"a")
    world.group.send(b"b")
    assert member.outlet.taken == b""
    assert world.flusher.pending
    world.turn()
    assert member.outlet.taken == b"\x81\x01a\x81\x01b"
    assert not world.flusher.pending


def test_frames_and_bytes_are_counted_for_every_member(world):
    world.members(3)
    world.group.send(b"abcd")
    assert world.metrics.value("server_msg_total") == 3
    assert world.metrics.value("data_sent_total") == 12


def test_nothing_is_encoded_for_nobody(world):
    world.group.send(b"a")
    assert not world.flusher.pending
    [member] = world.members(1)
    world.rest()
    assert member.texts() == []


def test_a_big_group_is_served_in_slices(world):
    members = world.members(SLICE * 3)
    world.group.send(b"a")
    for turn in range(1, 4):
        world.turn()
        assert SLICE * turn - 10 <= sum(bool(m.outlet.taken) for m in members) <= SLICE * turn
    world.rest()
    assert all(m.texts() == ["a"] for m in members)


def test_a_small_group_does_not_wait_for_a_big_one(world):
    world.members(SLICE * 4)
    other = world.flusher.group(PLAIN)
    [member] = world.members(1, other)
    world.group.send(b"big")
    other.send(b"small")
    world.turn()
    world.turn()
    assert member.texts() == ["small"]
    assert world.flusher.pending


def test_frames_sent_during_a_flush_follow_it(world):
    members = world.members(SLICE * 2)
    world.group.send(b"a")
    world.turn()
    world.group.send(b"b")
    world.group.send(b"c")
    world.rest()
    assert all(m.texts() == ["a", "b", "c"] for m in members)


def test_a_member_gets_nothing_that_was_sent_before_it_joined(world):
    [early] = world.members(1)
    world.group.send(b"a")
    [late] = world.members(1)
    world.group.send(b"b")
    world.rest()
    assert (early.texts(), late.texts()) == (["a", "b"], ["b"])


def test_a_member_that_joins_in_the_middle_of_a_flush_gets_none_of_it(world):
    members = world.members(SLICE * 2)
    world.group.send(b"a")
    world.turn()
    [late] = world.members(1)
    world.group.send(b"b")
    world.rest()
    assert late.texts() == ["b"]
    assert all(m.texts() == ["a", "b"] for m in members)


def test_nothing_reaches_a_member_that_left_before_its_turn(world):
    members = world.members(SLICE * 2)
    gone = members.pop()
    world.group.send(b"a")
    world.turn()
    world.group.leave(gone)
    world.rest()
    assert gone.texts() == []
    assert all(m.texts() == ["a"] for m in members)
    assert len(world.group) == len(members) == len(world.group.members())


def test_many_leave_and_join_in_the_middle_of_a_flush(world):
    members = world.members(SLICE * 3)
    world.group.send(b"a")
    world.turn()
    for member in members[::2]:
        world.group.leave(member)
    late = world.members(SLICE)
    world.group.send(b"b")
    world.turn()
    for member in late[::2]:
        world.group.leave(member)
    world.rest()
    assert all(m.texts() == ["a", "b"] for m in members[1::2])
    assert all(m.texts() in ([], ["a"]) for m in members[::2])
    assert all(m.texts() == ["b"] for m in late[1::2])


def test_the_places_of_departed_members_are_closed_up(world):
    members = world.members(100)
    for member in members[:90]:
        world.group.leave(member)
    assert len(world.group.slots) < 30
    world.group.send(b"a")
    world.rest()
    assert [bool(m.texts()) for m in members] == [False] * 90 + [True] * 10


@pytest.mark.statement("CP-136")
def test_a_settled_member_is_given_at_once_what_it_is_owed(world):
    first, second = world.members(2)
    world.group.send(b"a")
    world.group.send(b"b")
    world.group.settle(second)
    assert (first.texts(), second.texts()) == ([], ["a", "b"])
    world.group.send(b"c")
    world.rest()
    assert first.texts() == second.texts() == ["a", "b", "c"]


@pytest.mark.statement("CP-136")
def test_settling_gives_only_what_the_flush_has_not_given_yet(world):
    members = world.members(SLICE * 2)
    world.group.send(b"a")
    world.turn()
    world.group.send(b"b")
    for member in (members[0], members[-1]):
        world.group.settle(member)
        assert member.texts() == ["a", "b"]
        world.group.settle(member)
        assert member.texts() == ["a", "b"]
    world.rest()
    assert all(m.texts() == ["a", "b"] for m in members)
    world.group.send(b"c")
    world.rest()
    assert all(m.texts() == ["a", "b", "c"] for m in members)


def test_settling_without_anything_owed_writes_nothing(world):
    [member] = world.members(1)
    world.group.settle(member)
    assert member.outlet.written == []


def test_everything_can_be_let_go_at_once(world):
    members = world.members(SLICE * 3)
    world.group.send(b"a")
    world.turn()
    world.group.send(b"b")
    world.flusher.flush()
    assert all(m.texts() == ["a", "b"] for m in members)
    world.rest()
    world.group.send(b"c")
    world.rest()
    assert members[0].texts() == ["a", "b", "c"]


def test_compressed_groups_send_frames_that_need_no_context(world):
    group = world.flusher.group(DEFLATE)
    [member] = world.members(1, group)
    group.send(b"a" * 100)
    world.rest()
    assert member.outlet.taken[0] == 0xC1
    assert inflate(member.outlet.taken[2:]) == b"a" * 100


@pytest.mark.parametrize("room", [0, 1, 3, 5])
def test_what_a_socket_does_not_take_is_queued_and_nothing_overtakes_it(world, room):
    members = world.members(3)
    slow = members[1]
    slow.outlet.room = room
    for text in (b"a", b"b", b"c"):
        world.group.send(text)
        world.rest()
    assert len(slow.outlet.taken) == room
    slow.outlet.drain()
    world.group.send(b"d")
    world.rest()
    assert all(m.texts() == ["a", "b", "c", "d"] for m in members)


def test_a_broken_socket_disturbs_nobody_else():
    world = World(DirectFlusher)
    members = world.members(5)
    for member in members[::2]:
        member.outlet.broken = True
    world.group.send(b"a")
    world.rest()
    assert [m.outlet.taken != b"" for m in members] == [False, True, False, True, False]


def test_a_member_whose_slot_changes_while_it_is_out_of_the_group_disturbs_nobody():
    world = World(DirectFlusher)
    first, second = world.members(2)
    world.group.leave(first)
    world.group.slow(first, SLOW)
    world.group.send(b"a")
    world.rest()
    assert second.outlet.taken == b"\x81\x01a"
    world.group.leave(second)
    world.group.slow(second, SLOW)


def test_an_error_in_one_group_does_not_stop_the_others(world):
    class Bad(Pipe):
        def send(self, data: bytes) -> int:
            raise RuntimeError("bug")

        write = send

    Member(Bad()).join(world.group)
    other = world.flusher.group(PLAIN)
    [member] = world.members(1, other)
    world.group.send(b"a")
    other.send(b"b")
    with pytest.raises(RuntimeError):
        world.turn()
    world.rest()
    assert member.texts() == ["b"]
    other.send(b"c")
    world.rest()
    assert member.texts() == ["b", "c"]


class Order(RuleBasedStateMachine):
    """Whatever happens, a member has got exactly what was sent between its join and its leave, in order."""

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.owed: dict[Member, list[str]] = {}
        self.gone: dict[Member, list[str]] = {}
        self.number = 0

    @rule(kind=st.sampled_from(sorted(KINDS)))
    def begin(self, kind: str) -> None:
        if self.world is None:
            self.world = World(KINDS[kind])

    def ready(self) -> World:
        if self.world is None:
            self.world = World(DirectFlusher)
        return self.world

    @rule(target=members, count=st.sampled_from([1, 1, 1, SLICE // 2]))
    def join(self, count: int) -> Member:
        found = self.ready().members(count)
        self.owed.update((member, []) for member in found)
        return found[-1]

    @rule(member=consumes(members))
    def leave(self, member: Member) -> None:
        self.ready().group.leave(member)
        self.gone[member] = self.owed.pop(member)
        assert member.texts() == self.gone[member][: len(member.texts())]
        self.gone[member] = member.texts()

    @rule(count=st.integers(1, 3))
    def send(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            self.ready().group.send(b"%d" % self.number)
            for owed in self.owed.values():
                owed.append(str(self.number))

    @rule(member=members)
    def settle(self, member: Member) -> None:
        self.ready().group.settle(member)
        assert member.texts() == self.owed[member]

    @rule(member=members, room=st.integers(0, 5))
    def stall(self, member: Member, room: int) -> None:
        member.outlet.room = room

    @rule(member=members)
    def drain(self, member: Member) -> None:
        member.outlet.drain()

    @rule()
    def turn(self) -> None:
        self.ready().turn()

    @invariant()
    def nothing_is_out_of_order(self) -> None:
        for member, owed in self.owed.items():
            found = member.texts()
            assert found == owed[: len(found)]
        for member, had in self.gone.items():
            assert member.texts() == had

    def teardown(self) -> None:
        self.ready().rest()
        for member, owed in self.owed.items():
            assert member.texts() == owed


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestOrder.pytestmark = [pytest.mark.statement("CP-136")]
