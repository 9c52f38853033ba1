"""The driver's handle on the load client process."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.benchmarks.processes import CPUS, RunFailed, Server, spawn

__all__ = ["BASE", "EXT", "LoadClient", "load_client"]

BASE = "actioncable-v1-json"
EXT = "actioncable-v1-ext-json"


class LoadClient:
    """Sends commands to a load client and waits for the answers. RunFailed when something is amiss."""

    def __init__(self, child: subprocess.Popen[bytes], server: Server) -> None:
        self._child = child
        self._server = server

    def call(self, name: str, wait: float = 180.0, **arguments: Any) -> dict[str, Any]:
        """The client's answer to the command *name*."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"do": name, **arguments}).encode() + b"\n")
        self._child.stdin.flush()
        end = time.monotonic() + wait
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise RunFailed(f"the load client did not answer {name!r} within {wait:.0f} s")
            data = self._child.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                raise RunFailed("the load client ended")
            line += data
        answer: dict[str, Any] = json.loads(line)
        if answer.get("failures"):
            raise RunFailed(f"{name}: {answer['failures']}")
        return answer

    def connect(
        self,
        count: int,
        streams: Sequence[str],
        *,
        protocol: str = BASE,
        concurrency: int = 50,
        path: str | None = None,
        await_welcome: bool = True,
        channel: str = "$pubsub",
    ) -> dict[str, Any]:
        """*count* subscribers, spread evenly over *streams*, each confirmed. Answers ``seconds`` and ``busy``.

        The streams are public, or else rooms of the backend's *channel*.
        """
        return self.call(
            "connect",
            count=count,
            streams=list(streams),
            concurrency=concurrency,
            protocol=protocol,
            path=path or self._server.kind.path,
            await_welcome=await_welcome,
            channel=channel,
        )

    def finish(self, total: int, timeout: float = 30.0) -> dict[str, Any]:
        """The figures of a measurement in which exactly *total* deliveries were due, each in its place."""
        answer = self.call("finish", total=total, timeout=timeout, wait=timeout + 60)
        if answer["deliveries"] != total or answer["misordered"] or answer["lost"]:
            raise RunFailed(
                f"{answer['deliveries']} of {total} deliveries, {answer['misordered']} out of order, "
                f"connections lost: {answer['lost'] or 'none'}"
            )
        return answer

    def check(self) -> None:
        """RunFailed if any connection was lost since it was ready."""
        lost = self.call("lost")["lost"]
        if lost:
            raise RunFailed(f"connections lost: {lost}")


@contextmanager
def load_client(server: Server) -> Iterator[LoadClient]:
    """A load client for *server*; gone on leaving."""
    command = [sys.executable, "-m", "tests.benchmarks.load", str(server.port)]
    child = spawn(command, CPUS.client, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield LoadClient(child, server)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
