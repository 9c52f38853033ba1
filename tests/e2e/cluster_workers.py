"""What the workers of one server share in a cluster run, and what can happen to them."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from anycable_tx.testing.processes import HOST, Server, kept_port, wait_for
from tests.e2e.readiness import wait_until_ready

__all__ = ["WorkersStore", "exists", "workers_of"]


class WorkersStore:
    """A server with several workers and the NATS that they embed by themselves; what they keep outlives them."""

    restarts: frozenset[str] = frozenset()
    times: dict[str, tuple[float, ...]] = {"worker": (0.2, 0.4, 0.6), "node": (0.8,)}
    ready_within = 60.0

    def __init__(self, kind: str, faults: frozenset[str], stack: ExitStack) -> None:
        self._directory = stack.enter_context(TemporaryDirectory(prefix="anycable-workers-"))
        self._options: dict[int, tuple[str, ...]] = {}
        self._victim = 0

    def options(self, number: int) -> tuple[str, ...]:
        """Those of server *number*."""
        if number not in self._options:
            self._options[number] = (
                "--workers=2", f"--enats_addr=nats://{HOST}:{kept_port()}",
                f"--enats_store_dir={self._directory}/{number}",
            )  # fmt: skip
        return self._options[number]

    def fault(self, what: str, nodes: list[Server]) -> None:
        """Kill one worker of each server, the next one each time, and wait for who replaces it."""
        for node in nodes:
            assert node.process is not None
            before = workers_of(node.process.pid)
            victim = before[self._victim % len(before)]
            os.kill(victim, signal.SIGKILL)
            replaced = node.log.count("a worker is ready") + 1
            wait_for(lambda node=node, n=replaced: node.log.count("a worker is ready") >= n, "the replacement")  # type: ignore[misc]
            wait_until_ready(node, self.ready_within)
        self._victim += 1

    def add(self, id: str, stream: str) -> bool | None:
        """None: there is no other way than HTTP."""
        return None


def workers_of(parent: int) -> list[int]:
    """The processes of the workers of a server, the oldest first."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if exists(int(pid)) and b"anycable_tx.workers" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(int(pid))
    return found


def exists(pid: int) -> bool:
    """Is there such a process, and is it no corpse?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
