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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anycable_tx.testing.nats_servers import NatsServer
from anycable_tx.testing.redis_servers import redis_server

__all__ = [
    "CPUS",
    "ROOT",
    "Process",
    "RunFailed",
    "Server",
    "ServerKind",
    "product",
    "rpc",
    "running",
    "spawn",
    "stock",
    "watched",
    "workers",
]

ROOT = Path(__file__).resolve().parents[2]
#: Where twistd finds the controller of the server ``in process``.
PLUGIN = Path(__file__).resolve().parent / "plugin"

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
_EVERY = frozenset(os.sched_getaffinity(0))


def spawn(command: Sequence[str], cpu: int | None, **popen: object) -> subprocess.Popen[bytes]:
    """Start *command* pinned to *cpu*, or on any; the kernel kills it should this process die without cleaning up."""

    def prepare() -> None:
        os.sched_setaffinity(0, _EVERY if cpu is None else {cpu})
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
    """A server to measure. *command* gets the WebSocket port and the publishing port.

    *baseline* is the name of the server that it is compared with: it takes part in the scenarios of that baseline.
    *backend*, ``grpc`` or ``http``, is the way in which it calls an application. *env* is added to the environment.
    *store*: ``redis`` or ``nats``, of which it has one of its own. *pinned*: does it run on one CPU? *scraped*: it is
    asked for its metrics each second. *extra*: it takes part only when it is named.
    """

    name: str
    command: Callable[[int, int], list[str]]
    sessions: bool = True
    path: str = "/cable"
    baseline: str = "stock"
    backend: str = ""
    store: str = ""
    pinned: bool = True
    scraped: bool = False
    extra: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


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
            *(twistd, "-n", "--pidfile=", "anycable", "--ignore_config_path", "--presets=broker", "--public"),
            *(f"--port={port}", f"--http_broadcast_port={http}", "--max_commands_rate=0", *options),
        ]

    return ServerKind(name, command)


def watched(name: str) -> ServerKind:
    """anycable-tx whose metrics are read and logged each second."""
    options = ("--metrics_http=/metrics", "--metrics_log", "--metrics_rotate_interval=1")
    return replace(product(name, *options), scraped=True, extra=True)


def rpc() -> list[ServerKind]:
    """anycable-tx with somebody to answer commands: a controller of its own, or an application it calls."""
    name = "in process"
    path = os.pathsep.join(filter(None, (str(PLUGIN), os.environ.get("PYTHONPATH"))))
    own = replace(product(name, "--controllers=noauth,streams,bench_echo"), env={"PYTHONPATH": path})
    backends = [replace(product(impl), backend=impl) for impl in ("grpc", "http")]
    return [replace(kind, baseline=name) for kind in (own, *backends)]


def brokers() -> list[ServerKind]:
    """anycable-tx with each broker."""
    kinds = [product("memory"), *(replace(product(store), store=store) for store in _STORES)]
    return [replace(kind, baseline="memory") for kind in kinds]


def workers() -> list[ServerKind]:
    """anycable-tx with one worker, and with two; both on any CPU, and with the same broker."""
    kinds = [product(f"workers: {count}", f"--workers={count}") for count in (1, 2)]
    return [replace(kind, baseline="workers: 1", store="nats", pinned=False) for kind in kinds]


@contextmanager
def _scraping(url: str) -> Iterator[None]:
    """Meanwhile *url* is read each second. RunFailed if that ever failed."""
    ending = threading.Event()
    failures: list[OSError] = []

    def scrape() -> None:
        while not failures and not ending.wait(1.0):
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    answer.read()
            except OSError as e:
                failures.append(e)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    if failures:
        raise RunFailed(f"metrics could not be read: {failures[0]}")


class Server(Process):
    """A started server: a Process, and those it started, with its two ports."""

    def __init__(self, pid: int, kind: ServerKind, port: int, http_port: int) -> None:
        super().__init__(pid)
        self.kind, self.port, self.http_port = kind, port, http_port

    def cpu(self) -> float:
        """Seconds of CPU of the process, and of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return super().cpu() + sum(Process(int(pid)).cpu() for pid in children)


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
def _listening(
    name: str, command: Sequence[str], cpu: int | None, ports: Sequence[int], timeout: float, **popen: object
) -> Iterator[int]:
    """The process id of a child that listens on *ports*; killed on leaving. RunFailed if it does not start."""
    with tempfile.TemporaryFile() as log:
        child = spawn(command, cpu, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **popen)
        try:
            end = time.monotonic() + timeout
            while not all(_accepts(port) for port in ports):
                if child.poll() is not None or time.monotonic() > end:
                    raise RunFailed(f"{name} did not start: {_tail(log)}")
                time.sleep(0.1)
            try:
                yield child.pid
            except (RunFailed, OSError) as failure:
                raise RunFailed(f"{failure}; last words of {name}: {_tail(log)}") from failure
        finally:
            child.kill()
            child.wait()


@contextmanager
def _backend(impl: str, timeout: float) -> Iterator[list[str]]:
    """The application behind the server, unless *impl* is empty; gives the options that make the server call it."""
    if not impl:
        yield []
        return
    port = _free_port()
    host = f"127.0.0.1:{port}"
    script = [sys.executable, "-m", "tests.benchmarks.backend", impl, str(port)]
    with _listening(f"the {impl} backend", script, CPUS.client, [port], timeout):
        yield [f"--rpc_host={host}" if impl == "grpc" else f"--rpc_host=http://{host}/_anycable"]


#: What keeps the data of brokers that nodes share: how it is started, and the options that make a server use it.
_STORES: dict[str, tuple[Callable[[], Any], Callable[[str], list[str]]]] = {
    "redis": (redis_server, lambda url: [f"--redis_url={url}", "--broker=redis", "--pubsub=redis"]),
    "nats": (NatsServer, lambda url: [f"--nats_servers={url}", "--broker=nats", "--pubsub=nats"]),
}


@contextmanager
def _store(name: str) -> Iterator[list[str]]:
    """What the broker keeps its data in, unless *name* is empty; gives the options that make the server use it."""
    if not name:
        yield []
        return
    start, options = _STORES[name]
    with ExitStack() as stack:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {CPUS.client})  # which what is started inherits, with all its threads
        try:
            server = stack.enter_context(start())
        finally:
            os.sched_setaffinity(0, own)
        yield options(server.url)


@contextmanager
def running(kind: ServerKind, timeout: float = 30.0) -> Iterator[Server]:
    """A server of this *kind*, listening on both ports; killed on leaving. RunFailed if it does not start."""
    port, http_port = _free_port(), _free_port()
    with _backend(kind.backend, timeout) as options, _store(kind.store) as more:
        command = [*kind.command(port, http_port), *options, *more]
        env = {**os.environ, **kind.env}
        cpu = CPUS.server if kind.pinned else None
        with _listening(kind.name, command, cpu, [port, http_port], timeout, env=env) as pid:
            server = Server(pid, kind, port, http_port)
            server.wait_until_idle()
            with _scraping(f"http://127.0.0.1:{port}/metrics") if kind.scraped else nullcontext():
                yield server


def _tail(log: object, size: int = 1500) -> str:
    log.flush()  # type: ignore[attr-defined]
    end = log.seek(0, os.SEEK_END)  # type: ignore[attr-defined]
    log.seek(max(0, end - size))  # type: ignore[attr-defined]
    text: str = log.read().decode(errors="replace").strip()  # type: ignore[attr-defined]
    return text or "(nothing)"
