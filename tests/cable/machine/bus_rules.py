"""What may happen to a bus and to a broker behind a network."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.cable.machine.bus import Port
from tests.cable.machine.rules import WHICH, Delivery

__all__ = ["FaultyDelivery"]

NODES = st.integers(0, 1)


class FaultyDelivery(Delivery):
    """Two nodes on one broker; the bus loses, repeats and reorders, and answers may take a while."""

    distributed = True

    def port(self, node: int) -> Port:
        return self.world.bus.ports[node]

    @rule()
    def the_bus_lags(self) -> None:
        self.world.bus.lagging = True

    @rule()
    def the_bus_catches_up(self) -> None:
        self.world.bus.lagging = False
        self.world.bus.flush()

    @precondition(lambda self: self.world.bus.busy)
    @rule(node=NODES, which=WHICH)
    def a_message_arrives(self, node: int, which: int) -> None:
        self.port(node).take(which)

    @precondition(lambda self: self.world.bus.busy)
    @rule(node=NODES, which=WHICH)
    def a_message_is_lost(self, node: int, which: int) -> None:
        self.port(node).drop(which)

    @precondition(lambda self: self.world.bus.busy)
    @rule(node=NODES, which=WHICH)
    def a_message_is_repeated(self, node: int, which: int) -> None:
        self.port(node).repeat(which)

    @rule(
        stream=WHICH,
        count=st.integers(2, 4),
        fault=st.sampled_from(["take", "drop", "repeat"]),
        node=NODES,
        which=WHICH,
        caught_up=st.booleans(),
    )
    def publish_while_the_bus_fails(
        self, stream: int, count: int, fault: str, node: int, which: int, caught_up: bool
    ) -> None:
        self.world.bus.lagging = True
        self.publish(stream, count, node)
        getattr(self.port(node), fault)(which)
        if caught_up:
            self.the_bus_catches_up()

    @rule(node=NODES, up=st.booleans())
    def the_bus_is_lost_or_restored(self, node: int, up: bool) -> None:
        port = self.port(node)
        if up and not port.up:
            port.restore()
        elif not up and port.up:
            port.lose()

    @rule(reads_late=st.booleans())
    def answers_take_a_while(self, reads_late: bool) -> None:
        self.world.gate.shut, self.world.gate.reads_late = True, reads_late

    @rule()
    def answers_come_at_once(self) -> None:
        self.world.gate.open()

    @precondition(lambda self: self.world.gate.waiting)
    @rule(which=WHICH, count=st.integers(1, 3))
    def answers_come(self, which: int, count: int) -> None:
        for _ in range(count):
            self.world.gate.let(which)
