"""What the nodes of a cluster run share when that is a Redis, and what can happen to it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from anycable_tx.redis.api import RedisError
from anycable_tx.redis.resp import Reader, encode
from anycable_tx.testing.processes import HOST, ProcessFailed, ProxyProcess, Server
from anycable_tx.testing.redis_servers import RedisServer, Sentinels

__all__ = ["RedisStore"]

#: A stall takes so many seconds.
_STALL = 8.0


class RedisStore:
    """One server that keeps what it was told, behind a proxy; or, for ``failover``, three with sentinels."""

    #: These begin new epochs, so history is refused once.
    restarts = frozenset({"redis", "failover"})
    times: dict[str, tuple[float, ...]] = {
        "bus": (0.15,), "stall": (0.25,), "node": (0.4, 0.65), "redis": (0.55,), "failover": (0.8,),
    }  # fmt: skip
    ready_within = 10.0

    def __init__(self, kind: str, faults: frozenset[str], stack: ExitStack) -> None:
        options = [
            "--presets=broker", "--broadcast_adapter=http,redisx", "--redis_keepalive_interval=2",
        ]  # fmt: skip
        self._sentinels: Sentinels | None = None
        self._proxy: ProxyProcess | None = None
        if "failover" in faults:
            self._sentinels = stack.enter_context(Sentinels(kind=kind))
            options += [f"--redis_sentinels={','.join(self._sentinels.sentinels)}", "--redis_min_replicas=1"]
            options += [f"--redis_url={self._sentinels.url}"]
        else:
            kept = ("--appendonly", "yes", "--appendfsync", "always")
            self._server = stack.enter_context(RedisServer(*kept, kind=kind))
            self._proxy = stack.enter_context(ProxyProcess(self._server.port))
            options += [f"--redis_url=redis://{HOST}:{self._proxy.port}"]
        self._options = tuple(options)
        self._line = _Line(self)
        stack.callback(self._line.close)

    def options(self, number: int) -> tuple[str, ...]:
        """Those of node *number*."""
        return self._options

    @property
    def master(self) -> RedisServer:
        """Who takes writes."""
        return self._server if self._sentinels is None else self._sentinels.master()

    @property
    def copies(self) -> int:
        """How many replicas have to have a publication."""
        return 0 if self._sentinels is None else 1

    def fault(self, what: str, nodes: list[Server]) -> None:
        """Do *what* to it."""
        faults: dict[str, Callable[[], None]] = {
            "bus": lambda: self.master.ask("CLIENT", "KILL", "TYPE", "pubsub"),
            "stall": self._stall,
            "redis": self._restart,
            "failover": self._restart,
        }
        faults[what]()

    def add(self, id: str, stream: str) -> bool:
        """Publish in the way that is not HTTP. False: it is not known whether that succeeded."""
        payload = {"stream": stream, "data": json.dumps({"id": id}), "meta": {"id": id}}
        try:
            self._line.ask("XADD", "__anycable__", "*", "payload", json.dumps(payload))
            return not self.copies or self._line.ask("WAIT", self.copies, 1000) >= self.copies
        except (OSError, RedisError, ProcessFailed):
            self._line.close()
            return False

    def _stall(self) -> None:
        """The connections of the nodes stay open, and nothing passes."""
        if self._proxy is not None:
            self._proxy.do("stall")
            time.sleep(_STALL)
            self._proxy.do("heal")

    def _restart(self) -> None:
        """Kill the master, and start it again: with sentinels as a replica of whoever is master then."""
        before = self.master
        before.kill()
        if self._sentinels is None:
            time.sleep(1.0)
            before.start()
            return
        deadline = time.monotonic() + 20
        while self.master is before:
            if time.monotonic() > deadline:
                raise ProcessFailed("the sentinels named no other master")
            time.sleep(0.1)
        before.start()
        before.ask("REPLICAOF", HOST, str(self.master.port))


class _Line:
    """A publisher's connection to Redis, which is opened again when it was lost."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._socket: socket.socket | None = None
        self._reader = Reader()

    def ask(self, *args: Any) -> Any:
        """The answer to one command. Raises OSError or RedisError."""
        if self._socket is None:
            self._socket = socket.create_connection((HOST, self._store.master.port), timeout=5)
            self._reader = Reader()
        self._socket.sendall(encode(args))
        while not (answers := self._reader.feed(self._received())):
            pass
        if isinstance(answers[0], RedisError):
            raise answers[0]
        return answers[0]

    def _received(self) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection to Redis was closed")
        return data

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
