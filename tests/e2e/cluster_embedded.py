"""What the nodes of a cluster run share when that is NATS, embedded in each of them, and what can happen to it."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory

from anycable_tx.testing.processes import HOST, ProcessFailed, Server, free_port
from tests.e2e.readiness import wait_until_ready

__all__ = ["EmbeddedStore"]


class EmbeddedStore:
    """A NATS server in each node, of one cluster; what they keep outlives the nodes."""

    restarts: frozenset[str] = frozenset()
    times: dict[str, tuple[float, ...]] = {"rolling": (0.15,), "node": (0.8,)}
    ready_within = 60.0

    def __init__(self, kind: str, faults: frozenset[str], stack: ExitStack) -> None:
        self._directory = stack.enter_context(TemporaryDirectory(prefix="anycable-nats-"))
        self._ports: list[tuple[int, int]] = []

    def options(self, number: int) -> tuple[str, ...]:
        """Those of node *number*."""
        while len(self._ports) < max(number + 1, 3):
            self._ports.append((free_port(), free_port()))
        client, cluster = self._ports[number]
        routes = ",".join(f"nats://{HOST}:{port}" for _, port in self._ports if port != cluster)
        return (
            "--embed_nats", "--presets=broker", "--broadcast_adapter=http",
            f"--enats_addr=nats://{HOST}:{client}", f"--enats_cluster=nats://{HOST}:{cluster}",
            f"--enats_cluster_routes={routes}", f"--enats_server_name=node-{number}",
            f"--enats_store_dir={self._directory}/node-{number}",
        )  # fmt: skip

    def fault(self, what: str, nodes: list[Server]) -> None:
        """Stop each node and start it again, one after the other."""
        for node in nodes:
            if node.restart() != 0:
                raise ProcessFailed(f"a node did not end well:\n{node.log[-3000:]}")
            wait_until_ready(node, self.ready_within)

    def add(self, id: str, stream: str) -> bool | None:
        """None: there is no other way than HTTP."""
        return None
