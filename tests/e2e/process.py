"""The server as its users start it: whole command lines, both outputs apart, daemons too."""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from anycable_tx.testing.processes import HOST, free_port

#: What a record begins with.
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DBG|INF|WRN|ERR) ")
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
COMMAND = (sys.executable, "-c", "from anycable_tx.main import main; main()")
#: Providers that misbehave.
RIGGED = {"PYTHONPATH": str(Path(__file__).parent / "rigged")}


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """This process's, without what would configure a server."""
    names = ("ANYCABLE_", "PORT", "HOST", "REDIS_URL", "FLY_", "HEROKU_")
    return {k: v for k, v in os.environ.items() if not k.startswith(names)} | dict(env or {})


def ended(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        command, cwd=cwd, env=environment(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )


def until(condition: Callable[[], bool], what: str, within: float = 15.0) -> None:
    """Wait for it. Raises AssertionError naming *what* did not happen."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def post(port: int, body: str, key: str | None = None, path: str = "/_broadcast") -> int:
    """The status of a publication."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Does anybody listen there?"""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


class Process:
    """A server in the foreground, in *cwd*. A context manager: nothing is left when the block ends.

    *options* are the server's, *twistd* twistd's own. It gets ports of its own.
    """

    def __init__(
        self,
        *options: str,
        cwd: Path,
        twistd: tuple[str, ...] = ("-n", "--pidfile="),
        command: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        broadcast: bool = True,
    ) -> None:
        self.port, self.broadcast_port = free_port(), free_port()
        own = [f"--host={HOST}", f"--port={self.port}"]
        own += [f"--http_broadcast_port={self.broadcast_port}"] * broadcast
        self._command = [*(command or (*TWISTD, *twistd, "anycable")), *own, *options]
        self._cwd = cwd
        self._env = environment(env)
        self._out, self._err = cwd / f"out-{self.port}", cwd / f"err-{self.port}"
        self.url = f"ws://{HOST}:{self.port}/cable"

    def __enter__(self) -> Process:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                self._command, cwd=self._cwd, env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ready(self) -> Process:
        """Wait until it serves."""
        until(lambda: "Handle readiness" in self.out or not self.running, "the start")
        assert self.running, self.out + self.err
        return self

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, within: float = 15.0) -> int:
        """Its exit status. Nothing of it may be left. Raises TimeoutExpired."""
        status = self._process.wait(within)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
            raise AssertionError("a process was left behind")
        return status

    def stop(self, number: int = signal.SIGTERM, within: float = 15.0) -> float:
        """Send a signal and wait for the end, which must be clean; answers how long that took."""
        begun = time.monotonic()
        self.send(number)
        status = self.wait(within)
        took = time.monotonic() - begun
        assert (status, self.err) == (0, ""), f"status {status}\n{self.out}{self.err}"
        assert "Traceback" not in self.out, self.out
        return took

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def out(self) -> str:
        """What it wrote to standard output."""
        return self._out.read_text("utf-8")

    @property
    def err(self) -> str:
        """What it wrote to standard error."""
        return self._err.read_text("utf-8")

    @property
    def running(self) -> bool:
        """Has it not ended?"""
        return self._process.poll() is None


@contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile daemons become children of this process, so that their exit status can be seen."""
    prctl = ctypes.CDLL(None).prctl
    subreaper = 36
    prctl(subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(subreaper, 0, 0, 0, 0)


def status_of(pid: int, within: float = 15.0) -> int:
    """The exit status of an adopted daemon, once it has ended."""
    reports: list[int] = []

    def gone() -> bool:
        reaped, report = os.waitpid(pid, os.WNOHANG)
        reports.append(report)
        return reaped == pid

    until(gone, "the end of the daemon", within)
    return os.waitstatus_to_exitcode(reports[-1])
