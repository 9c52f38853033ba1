"""A broker of one's own. It keeps everything in the memory broker and has a label."""

from twisted.python.components import proxyForInterface

from anycable_tx.brokers import memory
from anycable_tx.interfaces import IBroker, ProviderContext


class AcmeBroker(proxyForInterface(IBroker, "keeper")):
    """Hands every call to *keeper*; a broker with a backend of its own has these methods itself."""

    def __init__(self, keeper: IBroker, label: str) -> None:
        super().__init__(keeper)
        self.label = label

    @property
    def announcement(self) -> str:
        """What is logged at the start."""
        return f"Using the Acme broker {self.label}: {self.keeper.announcement}"


def create(context: ProviderContext) -> IBroker:
    """Called once, when ``--broker=acme`` was chosen."""
    return AcmeBroker(memory.create(context), context.settings["acme_label"])
