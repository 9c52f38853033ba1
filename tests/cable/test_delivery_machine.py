"""Whatever happens, in whatever order: nothing is lost, repeated, misordered or leaked without being told.

The node, its sessions and its fan-out against a list of messages. For many more examples than usual:
``ANYCABLE_TX_HYPOTHESIS=nightly pytest --timeout=0 tests/cable/test_delivery_machine.py``.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.cable.machine import SETTINGS
from tests.cable.machine.bus_rules import FaultyDelivery
from tests.cable.machine.rules import COUNTS, WHO, Delivery


class OneNode(Delivery):
    """A node without a bus: everything happens at once, and it is known exactly what may be refused."""


TestOneNode = OneNode.TestCase
TestOneNode.settings = SETTINGS


class TwoNodes(FaultyDelivery):
    """Two nodes that share a broker, on a bus with every fault there is."""


TestTwoNodes = TwoNodes.TestCase
TestTwoNodes.settings = SETTINGS


class TwoIdentifiers(Delivery):
    """A stream under two identifiers of a session.

    A client keeps one position for both, so what it lost under one of them may look as if it had it: connections
    are only cut when it has read everything.
    """

    channels = {"x": ("s0",), "y": ("s0",)}
    extra = ""
    cut = cut_and_come_back = come_back_and_be_late = connect_twice_at_once = slow_down_or_catch_up = None  # type: ignore[assignment]

    @rule(who=WHO, sends=COUNTS, noticed=st.booleans(), returns=st.booleans())
    def cut_when_all_is_read(self, who: int, sends: int, noticed: bool, returns: bool) -> None:
        client = self.some(who, lambda c: c.wire is not None)
        if client is None:
            return
        while self.world.turn() or client.read():
            pass
        if client.wire is not None:
            wire = client.cut()
            if noticed:
                wire.lose()
            if returns:
                client.connect()
                client.read(1)
                client.send(sends)


TestTwoIdentifiers = TwoIdentifiers.TestCase
TestTwoIdentifiers.settings = SETTINGS
