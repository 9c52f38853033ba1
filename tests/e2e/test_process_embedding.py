"""The cable in a web site of somebody else's, and the example of it as its readers start it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anycable_tx.testing.client import CableClient
from anycable_tx.testing.processes import HOST, free_port
from tests.e2e.process import TWISTD, accepts, environment, until

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "docs" / "examples" / "embedding"
LOBBY = json.dumps({"channel": "$pubsub", "stream_name": "lobby"})


@contextmanager
def application(port: int, cwd: Path) -> Iterator[Path]:
    """The example on that port: its output. TERM ends it."""
    output = cwd / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", "-y", str(EXAMPLE / "chat.tac")],
            cwd=cwd, env=environment({"CHAT_ENDPOINT": f"tcp:{port}:interface={HOST}"}),
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        until(lambda: accepts(port) or process.poll() is not None, "the start")
        assert process.poll() is None, output.read_text()
        yield output
        process.send_signal(signal.SIGTERM)
        # twistd raises the signal again once everything has stopped.
        assert process.wait(20) == -signal.SIGTERM, output.read_text()
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        process.wait()


def say(port: int, text: str) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("POST", "/say", text)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_example_serves_pages_and_clients_on_one_port_and_resumes_sessions(tmp_path: Path) -> None:
    port = free_port()
    with application(port, tmp_path) as output:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        connection.request("GET", "/")
        page = connection.getresponse()
        assert (page.status, b"/cable" in page.read()) == (200, True)
        connection.request("GET", "/cable")  # the connection is kept when nothing was taken over
        assert connection.getresponse().status == 400
        connection.close()

        async def run() -> None:
            url = f"ws://{HOST}:{port}/cable"
            client = CableClient(url, since=False)
            await client.connect()
            lobby = await client.subscribe(LOBBY, streams=["lobby"])
            assert say(port, "hello") == 201
            assert await client.message(lobby) == {"text": "hello"}
            await client.cut()
            assert say(port, "meanwhile") == 201
            assert await client.resume()
            assert await client.message(lobby) == {"text": "meanwhile"}
            await client.close()

        asyncio.run(run())
        assert "Handle WebSocket connections at" not in output.read_text()
