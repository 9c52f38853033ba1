"""Whatever happens, in whatever order: nothing is lost, repeated, misordered or leaked without being told.

The node, its sessions and its fan-out against a list of messages. For many more examples than usual:
``ANYCABLE_TX_HYPOTHESIS=nightly pytest --timeout=0 tests/cable/test_delivery_machine.py``.
"""

from __future__ import annotations

from tests.cable.machine import SETTINGS
from tests.cable.machine.bus_rules import FaultyDelivery
from tests.cable.machine.rules import Delivery


class OneNode(Delivery):
    """A node without a bus: everything happens at once, and it is known exactly what may be refused."""


TestOneNode = OneNode.TestCase
TestOneNode.settings = SETTINGS


class TwoNodes(FaultyDelivery):
    """Two nodes that share a broker, on a bus with every fault there is."""


TestTwoNodes = TwoNodes.TestCase
TestTwoNodes.settings = SETTINGS
