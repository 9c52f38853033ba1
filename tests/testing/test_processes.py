"""Servers and publishers as child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import (
    HOST,
    ProcessFailed,
    Publisher,
    PublishFailed,
    Server,
    free_port,
    kept_port,
    server,
)

pytestmark = pytest.mark.e2e


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_runs_until_its_block_ends_and_leaves_nothing_behind() -> None:
    with server("--presets=broker", "--public") as running:
        assert running.process is not None
        pid, directory = running.process.pid, running.directory
        assert "Handle WebSocket connections" in running.log
    assert not alive(pid)
    assert not directory.exists()


def test_a_port_that_one_process_keeps_is_no_other_ones() -> None:
    kept = {kept_port() for _ in range(100)}
    script = (
        "import sys; from anycable_tx.testing.processes import _keep; print(sum(map(_keep, map(int, sys.argv[1:]))))"
    )
    others = subprocess.run([sys.executable, "-c", script, *map(str, kept)], capture_output=True, check=True)
    assert (len(kept), int(others.stdout)) == (100, 0)


def test_a_server_that_does_not_start_is_reported_with_its_words() -> None:
    with pytest.raises(ProcessFailed, match="no_such_option"), server("--no_such_option=1"):
        pass


def test_a_server_that_dies_fails_the_block_and_one_that_hangs_is_killed() -> None:
    with pytest.raises(ProcessFailed, match="exited with -9"), server("--public") as running:
        running.signal(signal.SIGKILL)
    hanging = Server("--public")
    hanging.start()
    assert hanging.process is not None
    pid = hanging.process.pid
    hanging.signal(signal.SIGSTOP)
    with pytest.raises(ProcessFailed, match="did not stop within"):
        hanging.stop(0.2)
    hanging.close()
    assert not alive(pid)


def test_the_environment_does_not_configure_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCABLE_NODE_ID", "inherited")
    with server("--public", env={"ANYCABLE_NODE_ID": "given"}) as running:
        assert "nodeid=given" in running.log


class Stub(HTTPServer):
    """Answers publications with the given statuses in turn; None closes the connection without an answer."""

    def __init__(self, *statuses: int | None):
        self.statuses = list(statuses)
        self.requests: list[tuple[str | None, Any]] = []
        self.connections = 0
        super().__init__((HOST, 0), _Answer)

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers["Idempotency-Key"], json.loads(body)))
        status = self.server.statuses.pop(0)
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def stub(*statuses: int | None) -> Iterator[Stub]:
    with Stub(*statuses) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield http
        finally:
            http.shutdown()
            thread.join()


def test_publications_share_a_connection_and_are_recorded() -> None:
    log = EventLog()
    with stub(201, 201) as http, Publisher(http.server_port, log=log) as publisher:
        first, second = publisher.publish("a", text="hi"), publisher.publish("b", id="x")
    assert http.connections == 1
    assert [key for key, _ in http.requests] == [first, second]
    assert [body["stream"] for _, body in http.requests] == ["a", "b"]
    assert json.loads(http.requests[0][1]["data"]) == {"id": first, "text": "hi"}
    assert [(e["event"], e["id"]) for e in log.events] == [
        ("publishing", first), ("published", first), ("publishing", "x"), ("published", "x"),
    ]  # fmt: skip


def test_a_broken_connection_and_a_503_are_tried_again_with_the_same_key() -> None:
    log = EventLog()
    with stub(None, 503, 201) as http, Publisher(http.server_port, log=log) as publisher:
        id = publisher.publish("a")
        assert publisher.retries == 2
    assert [key for key, _ in http.requests] == [id, id, id]
    assert [e["event"] for e in log.events] == ["publishing", "published"]


def test_a_refusal_is_final_and_an_outage_longer_than_patience_is_of_unknown_outcome() -> None:
    log = EventLog()
    with (
        stub(401) as http,
        Publisher(http.server_port, log=log) as refused,
        pytest.raises(PublishFailed, match="401"),
    ):
        refused.publish("a")
    with pytest.raises(PublishFailed, match=r"ConnectionRefusedError.* for 0\.1 s"):
        Publisher(free_port(), log=log, patience=0.1).publish("a")
    assert [e["event"] for e in log.events] == ["publishing", "publish_failed", "publishing", "publish_unknown"]
