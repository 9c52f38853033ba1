"""Child processes of the benchmark: started on their CPU, measured from outside, and gone when the benchmark ends."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CPUS", "ROOT", "Process", "RunFailed", "Server", "ServerKind", "product", "running", "spawn", "stock"]

ROOT = Path(__file__).resolve().parents[2]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class RunFailed(Exception):
    """A run whose figures mean nothing; the text says why."""


@dataclass(frozen=True)
class Cpus:
    """Where each part runs. With two CPUs the publisher, which mostly sleeps, shares the client's."""

    server: int
    client: int
    publisher: int


def _choose_cpus() -> Cpus:
    available = sorted(os.sched_getaffinity(0))
    return Cpus(available[0], available[min(1, len(available) - 1)], available[min(2, len(available) - 1)])


CPUS = _choose_cpus()


def spawn(command: Sequence[str], cpu: int, **popen: object) -> subprocess.Popen[bytes]:
    """Start *command* pinned to *cpu*; the kernel kills it should this process die without cleaning up."""

    def prepare() -> None:
        os.sched_setaffinity(0, {cpu})
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(command, cwd=ROOT, preexec_fn=prepare, start_new_session=True, **popen)  # type: ignore[call-overload,no-any-return]


class Process:
    """The CPU time and memory of a running process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._clock = (~pid << 3) | 2  # the kernel's CPU clock of another process, all threads, in nanoseconds

    def cpu(self) -> float:
        """Seconds of CPU (user and system) since it started."""
        return time.clock_gettime(self._clock)

    def rss(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise RunFailed(f"no Rss line for process {self.pid}")

    def settled_rss(self, timeout: float = 15.0) -> int:
        """Resident bytes once they have not moved by more than 0.1 % for two seconds."""
        end = time.monotonic() + timeout
        steady, last = 0, self.rss()
        while steady < 4 and time.monotonic() < end:
            time.sleep(0.5)
            now = self.rss()
            steady = steady + 1 if abs(now - last) <= last // 1000 else 0
            last = now
        return last

    def wait_until_idle(self, timeout: float = 20.0, share: float = 0.2) -> None:
        """Return once it uses less than *share* of a CPU."""
        end = time.monotonic() + timeout
        before = self.cpu()
        while time.monotonic() < end:
            time.sleep(0.3)
            now = self.cpu()
            if now - before < 0.3 * share:
                return
            before = now
        raise RunFailed(f"the server was still busy after {timeout:.0f} s")


@dataclass(frozen=True)
class ServerKind:
    """A server to measure. *command* gets the WebSocket port and the publishing port."""

    name: str
    command: Callable[[int, int], list[str]]
    sessions: bool = True
    path: str = "/cable"


def stock() -> ServerKind:
    """The stock Autobahn server."""
    script = [sys.executable, "-m", "tests.benchmarks.stock"]
    return ServerKind("stock", lambda port, http: [*script, str(port), str(http)], sessions=False)


def product(name: str, *options: str) -> ServerKind:
    """anycable-tx with *options* added to the ones every run has."""
    beside = Path(sys.executable).parent / "twistd"
    twistd = str(beside) if beside.exists() else shutil.which("twistd")
    if twistd is None:
        raise SystemExit("twistd was not found: install the project into this environment first")

    def command(port: int, http: int) -> list[str]:
        return [
            *(twistd, "-n", "--pidfile=", "anycable", "--presets=broker", "--public"),
            *(f"--port={port}", f"--http_broadcast_port={http}", *options),
        ]

    return ServerKind(name, command)


class Server(Process):
    """A started server: a Process with its two ports."""

    def __init__(self, pid: int, kind: ServerKind, port: int, http_port: int) -> None:
        super().__init__(pid)
        self.kind, self.port, self.http_port = kind, port, http_port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(kind: ServerKind, timeout: float = 30.0) -> Iterator[Server]:
    """A server of this *kind*, listening on both ports; killed on leaving. RunFailed if it does not start."""
    port, http_port = _free_port(), _free_port()
    with tempfile.TemporaryFile() as log:
        child = spawn(kind.command(port, http_port), CPUS.server, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            end = time.monotonic() + timeout
            while not (_accepts(port) and _accepts(http_port)):
                if child.poll() is not None or time.monotonic() > end:
                    raise RunFailed(f"{kind.name} did not start: {_tail(log)}")
                time.sleep(0.1)
            server = Server(child.pid, kind, port, http_port)
            server.wait_until_idle()
            try:
                yield server
            except (RunFailed, OSError) as failure:
                raise RunFailed(f"{failure}; the server's last words: {_tail(log)}") from failure
        finally:
            child.kill()
            child.wait()


def _tail(log: object, size: int = 1500) -> str:
    log.flush()  # type: ignore[attr-defined]
    end = log.seek(0, os.SEEK_END)  # type: ignore[attr-defined]
    log.seek(max(0, end - size))  # type: ignore[attr-defined]
    text: str = log.read().decode(errors="replace").strip()  # type: ignore[attr-defined]
    return text or "(nothing)"
