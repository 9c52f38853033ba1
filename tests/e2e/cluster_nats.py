"""What the nodes of a cluster run share when that is NATS: three servers, and what can happen to these."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from anycable_tx.testing.nats_servers import NatsCluster
from anycable_tx.testing.processes import ProcessFailed, Server, wait_for

__all__ = ["NatsStore"]

#: A stalled server answers nothing for so many seconds, and a killed one is away for so many.
_STALL, _AWAY = 15.0, 5.0
_LOG = "AC_H_default_"


class NatsStore:
    """Three servers with JetStream, each of which keeps everything.

    Only an operator who deletes the log begins a new epoch.
    """

    restarts = frozenset({"deleted"})
    times: dict[str, tuple[float, ...]] = {
        "rolling": (0.08, 0.3), "leader": (0.5,), "stall": (0.62,), "node": (0.55, 0.8), "deleted": (0.93,),
    }  # fmt: skip
    ready_within = 30.0

    def __init__(self, kind: str, faults: frozenset[str], stack: ExitStack) -> None:
        self._cluster = stack.enter_context(NatsCluster())
        self._options = (
            "--broker=nats", "--broadcast_adapter=http", f"--nats_servers={self._cluster.url}",
            "--nats_ping_interval=2",
        )  # fmt: skip

    def options(self, number: int) -> tuple[str, ...]:
        """Those of node *number*."""
        return self._options

    def fault(self, what: str, nodes: list[Server]) -> None:
        """Do *what* to it: restart one server after the other, kill the leader, let it stall, or delete the log."""
        faults: dict[str, Callable[[], None]] = {
            "rolling": self._roll, "leader": self._kill, "stall": self._stall, "deleted": self._delete,
        }  # fmt: skip
        faults[what]()

    def add(self, id: str, stream: str) -> bool | None:
        """None: there is no other way than HTTP."""
        return None

    def _roll(self) -> None:
        for server in self._cluster.servers:
            server.stop()
            server.start(30)
            self._recover()

    def _kill(self) -> None:
        leader = self._cluster.leader(self._log())
        leader.kill()
        time.sleep(_AWAY)
        leader.start(30)
        self._recover()

    def _stall(self) -> None:
        leader = self._cluster.leader(self._log())
        leader.stall()
        try:
            time.sleep(_STALL)
        finally:
            leader.resume()
        self._recover()

    def _delete(self) -> None:
        answer = self._cluster.ask_api(f"STREAM.DELETE.{self._log()}")
        if not answer.get("success"):
            raise ProcessFailed(f"the log was not deleted: {answer}")

    def _log(self) -> str:
        (name,) = (name for name in self._streams() if name.startswith(_LOG))
        return name

    def _streams(self) -> dict[str, dict[str, object]]:
        """All streams of JetStream, and what their leaders say of them."""
        answer = self._cluster.ask_api("STREAM.LIST")
        return {stream["config"]["name"]: stream for stream in answer.get("streams") or []}

    def _recover(self) -> None:
        """Wait, as whoever operates it has to, until every server has everything."""

        def whole() -> bool:
            try:
                found = [stream.get("cluster") for stream in self._streams().values()]
            except ProcessFailed:
                return False
            replicas = [each["replicas"] for each in found if isinstance(each, dict) and each.get("leader")]
            return len(replicas) == len(found) > 0 and all(
                each["current"] and not each.get("offline") for one in replicas for each in one
            )

        wait_for(whole, "all replicas of all streams", 60)
