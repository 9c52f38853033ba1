"""Real servers, fault proxies and publishers for tests: child processes on free ports, gone when their block ends."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from random import randrange
from types import TracebackType
from typing import IO, Any, Self

from anycable_tx.testing.checker import EventLog

__all__ = [
    "BOUND",
    "Group",
    "ProcessFailed",
    "ProxyProcess",
    "PublishFailed",
    "Publisher",
    "Server",
    "free_port",
    "kept_port",
    "server",
    "wait_for",
]

HOST = "127.0.0.1"
#: Becomes the command that follows it, which the kernel kills should this process die without cleaning up
#: (1: PR_SET_PDEATHSIG, 9: SIGKILL).
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
BOUND = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT)
_TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
_given: set[int] = set()


class ProcessFailed(AssertionError):
    """A child process did not start, did not stop, or ended in another way than expected."""


class PublishFailed(AssertionError):
    """A publication was refused, or nobody answered for as long as the publisher was patient."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on; never the same one twice in a process."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


def kept_port() -> int:
    """A free port that stays so while its server is away; and a free one 10,000 above, where servers meet.

    Both are below those that the system gives to outgoing connections.
    """
    while True:
        port = randrange(10_000, 22_000)
        if port not in _given and _is_free(port) and _is_free(port + 10_000) and _keep(port):
            _given.add(port)
            return port


def _keep(port: int) -> bool:
    """Whether no other process keeps *port*; then this one does, to its end: it has the UDP port of that number."""
    with socket.socket(type=socket.SOCK_DGRAM) as held:
        try:
            held.bind((HOST, port))
        except OSError:
            return False
        held.detach()
        return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Return once *condition* holds. Raises ProcessFailed naming *what* was waited for."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise ProcessFailed(f"waited {timeout:g} s for {what}")
        time.sleep(0.05)


class Group:
    """Several servers that know each other while the block runs."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError


class Server:
    """One ``twistd -n anycable`` on ports of its own, started and stopped as often as wanted.

    *args* are options of the server. Variables of the environment that would configure one are not inherited;
    *env* adds to the rest. The server runs in a directory of its own, so it finds no configuration file there.
    """

    def __init__(self, *args: str, env: Mapping[str, str] | None = None):
        self.port = free_port()
        self.broadcast_port = free_port()
        self.args = (f"--host={HOST}", f"--port={self.port}", f"--http_broadcast_port={self.broadcast_port}", *args)
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="anycable-")
        self.directory = Path(self._directory.name)
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("ANYCABLE_") and k not in _CONFIGURING}
        self._env.update(env or {})

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://{HOST}:{self.port}/cable"

    @property
    def log(self) -> str:
        """Everything all runs of the server wrote so far."""
        path = self.directory / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def start(self, timeout: float = 20.0) -> None:
        """Start it; returns once ``/health`` answers 200. Raises ProcessFailed with the log's end otherwise."""
        command = [*_TWISTD, "-n", "--pidfile=", "anycable", *self.args]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, cwd=self.directory,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while not self._healthy():
            if self.process.poll() is not None:
                raise ProcessFailed(f"the server ended with {self.process.returncode}:\n{self._tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ProcessFailed(f"the server did not answer /health within {timeout} s:\n{self._tail()}")
            time.sleep(0.05)

    def stop(self, timeout: float = 30.0) -> int:
        """Send TERM and wait; answers the exit status. Raises ProcessFailed when it takes longer than *timeout*."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"the server did not stop within {timeout} s:\n{self._tail()}") from None
        self._bury()
        return status

    def kill(self) -> None:
        """Send KILL, to its children too, and wait."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self._bury()

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def restart(self) -> int:
        """``stop`` and ``start`` on the same ports; answers the exit status."""
        status = self.stop()
        self.start()
        return status

    def publisher(self, **options: Any) -> Publisher:
        """A Publisher to this server's broadcast port."""
        return Publisher(self.broadcast_port, **options)

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        self.kill()
        self._directory.cleanup()

    def _bury(self) -> None:
        """End what the server itself started and left running: its process group."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _tail(self) -> str:
        return "\n".join(self.log.splitlines()[-40:])


_CONFIGURING = {
    "PORT",
    "HOST",
    "REDIS_URL",
    "NATS_URL",
    "NATS_SERVERS",
    "FLY_APP_NAME",
    "FLY_REGION",
    "HEROKU_APP_ID",
}


@contextmanager
def server(*args: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A running Server. When the block ends well it is stopped, and must exit with 0 and without a traceback."""
    running = Server(*args, env=env)
    try:
        running.start()
        yield running
        status = running.stop()
        if status != 0:
            raise ProcessFailed(f"the server exited with {status}:\n{running._tail()}")
        if "Traceback" in running.log:
            raise ProcessFailed(
                f"the server logged a traceback:\n{running.log[running.log.index('Traceback') - 500 :]}"
            )
    finally:
        running.close()


class Publisher:
    """Publishes over one kept HTTP connection, and records what it did in an EventLog. Not for several threads."""

    def __init__(
        self, port: int, *, path: str = "/_broadcast", key: str | None = None, log: EventLog | None = None,
        patience: float = 15.0,
    ):  # fmt: skip
        """*patience*: how many seconds to go on trying while nobody answers or the server says 503."""
        self._port = port
        self._path = path
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._log = log
        self._patience = patience
        self._connection: http.client.HTTPConnection | None = None
        self.retries = 0

    def publish(self, stream: str, id: str | None = None, **fields: Any) -> str:
        """Publish the message ``{"id": id, **fields}``; returns its id once the server has answered 201.

        A connection that breaks and a 503 are tried again with the same Idempotency-Key. Raises PublishFailed
        for any other answer, or when patience ends.
        """
        id = id or uuid.uuid4().hex
        payload = {"stream": stream, "data": json.dumps({"id": id, **fields})}
        self._record("publishing", id, stream)
        deadline = time.monotonic() + self._patience
        while True:
            status = None
            try:
                status = self.post(payload, {"Idempotency-Key": id})
            except (OSError, http.client.HTTPException) as e:
                failure = f"{type(e).__name__}: {e}"
            if status == 201:
                self._record("published", id, stream)
                return id
            if status not in (None, 503):
                self._record("publish_failed", id, stream)
                raise PublishFailed(f"publishing to {stream!r} was answered with {status}")
            if time.monotonic() > deadline:
                self._record("publish_unknown", id, stream)
                raise PublishFailed(f"publishing to {stream!r}: {status or failure} for {self._patience} s")
            self.retries += 1
            time.sleep(0.05)

    def post(self, payload: Any, headers: Mapping[str, str] | None = None) -> int:
        """Post any JSON value once; answers the status. Raises OSError or HTTPException without an answer."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
        try:
            self._connection.request("POST", self._path, json.dumps(payload), {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            response.read()
            return response.status
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next publication opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _record(self, event: str, id: str, stream: str) -> None:
        if self._log is not None:
            self._log.record(event, id=id, stream=stream)


class ProxyProcess:
    """A fault proxy (``anycable_tx.testing.proxy``) as a child process; a context manager."""

    def __init__(self, target_port: int, *options: str):
        command = [sys.executable, "-m", "anycable_tx.testing.proxy", "--target", f"{HOST}:{target_port}", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        self.port: int = self._read()["port"]

    def url(self, path: str = "/cable") -> str:
        """Where clients connect to go through it."""
        return f"ws://{HOST}:{self.port}{path}"

    def do(self, name: str, **order: Any) -> Any:
        """Call the FaultProxy's method *name*; answers what that answered. Raises ProcessFailed if it refused."""
        self._stdin.write(json.dumps({"do": name, **order}).encode() + b"\n")
        self._stdin.flush()
        answer = self._read()
        if not answer.pop("ok"):
            raise ProcessFailed(f"the proxy refused {name}: {answer['error']}")
        return answer["connections"] if name == "connections" else answer["answer"]

    def close(self) -> None:
        """End it; its connections are reset."""
        self._stdin.close()
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ProcessFailed("the proxy did not end with its standard input") from None
        finally:
            self._stdout.close()
        if status != 0:
            raise ProcessFailed(f"the proxy ended with {status}")

    def __enter__(self) -> ProxyProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        if not select.select([self._stdout], [], [], 15)[0]:
            self._process.kill()
            raise ProcessFailed("the proxy did not answer within 15 s")
        line = self._stdout.readline()
        if not line:
            raise ProcessFailed("the proxy ended by itself")
        answer: dict[str, Any] = json.loads(line)
        return answer
