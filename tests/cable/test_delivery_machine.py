"""Whatever happens, in whatever order: nothing is lost, repeated, misordered or leaked without being told.

The node, its sessions and its fan-out against a list of messages. For many more examples than usual:
``ANYCABLE_TX_HYPOTHESIS=nightly pytest --timeout=0 tests/cable/test_delivery_machine.py``.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.cable.machine import SETTINGS
from tests.cable.machine.bus_rules import FaultyDelivery
from tests.cable.machine.rules import COUNTS, WHO, Delivery


class OneNode(Delivery):
    """A node without a bus: everything happens at once, and it is known exactly what may be refused."""


TestOneNode = OneNode.TestCase
TestOneNode.settings = SETTINGS
TestOneNode.pytestmark = [
    pytest.mark.statement("P1", "P2", "P3", "P4"),
    # What is broadcast, and to whom.
    pytest.mark.statement("CP-53", "CP-57", "CP-78", "BR-7", "BR-9"),
    # History: whole or refused.
    pytest.mark.statement("CP-60", "CP-64", "CP-65", "CP-66", "CP-67", "CP-72", "CP-73", "BR-46", "BR-47"),
    # Sessions that come back, and those that may not.
    pytest.mark.statement("CP-90", "CP-95", "CP-97", "CP-99", "CP-102", "CP-103", "CP-104", "CP-106", "BR-51"),
]


class TwoNodes(FaultyDelivery):
    """Two nodes that share a broker, on a bus with every fault there is."""


TestTwoNodes = TwoNodes.TestCase
TestTwoNodes.settings = SETTINGS
TestTwoNodes.pytestmark = [pytest.mark.statement("P1", "P2", "P3", "P4", "CP-77", "BR-35", "BR-49", "BR-56")]


class TwoIdentifiers(Delivery):
    """A stream under two identifiers of a session.

    A client keeps one position for both, so what it lost under one of them may look as if it had it, and no server
    could tell: connections are only cut when it has read everything, and the server sees that they are.
    """

    channels = {"x": ("s0",), "y": ("s0",)}
    extra = ""
    cut = cut_and_come_back = come_back_and_be_late = connect_twice_at_once = slow_down_or_catch_up = None  # type: ignore[assignment]

    @rule(who=WHO, sends=COUNTS, returns=st.booleans())
    def cut_when_all_is_read(self, who: int, sends: int, returns: bool) -> None:
        client = self.some(who, lambda c: c.wire is not None)
        if client is None:
            return
        while self.world.turn() or client.read():
            pass
        if client.wire is not None:
            client.cut().lose()
            if returns:
                client.connect()
                client.read(1)
                client.send(sends)

    @rule(who=WHO, before=st.integers(0, 2), sends=COUNTS)
    def ask_for_one_of_them(self, who: int, before: int, sends: int) -> None:
        """A client comes back, asks under one identifier only, and comes back again."""
        client = self.some(who, lambda c: c.ready and c.extended)
        if client is None:
            return
        for asked in (1, sends):
            while self.world.turn() or client.read():
                pass
            if client.wire is None:
                return
            client.cut().lose()
            self.publish(0, before, 0)
            client.connect()
            client.read(1)
            client.send(asked)


TestTwoIdentifiers = TwoIdentifiers.TestCase
TestTwoIdentifiers.settings = SETTINGS
TestTwoIdentifiers.pytestmark = [pytest.mark.statement("CP-55")]
