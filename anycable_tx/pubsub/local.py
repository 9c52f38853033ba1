"""No bus: one node, which hands what it publishes to itself at once."""

from __future__ import annotations

from zope.interface import implementer

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.interfaces import INode, IPubSub, ProviderContext

__all__ = ["LocalPubSub", "create"]


@implementer(IPubSub)
class LocalPubSub:
    """Every published message is delivered before ``publish`` returns, in order, once."""

    announcement = ""
    distributed = False

    def __init__(self, node: INode) -> None:
        self._node = node

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        """Nothing to disconnect from."""

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    async def subscribe(self, stream: str) -> None:
        """Every message reaches the node anyway."""

    async def unsubscribe(self, stream: str) -> None:
        """See ``subscribe``."""

    async def publish(self, message: StreamMessage) -> None:
        """Deliver to this node."""
        self._node.deliver(message)

    async def publish_command(self, command: RemoteCommand) -> None:
        """Execute on this node."""
        self._node.execute(command)


def create(context: ProviderContext) -> LocalPubSub:
    """The provider's factory."""
    return LocalPubSub(context.node)
