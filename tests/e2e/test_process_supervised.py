"""The server under a supervisor that listens for it and waits to be told, as systemd does."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.process import HOST, TWISTD, environment, get

pytestmark = pytest.mark.e2e

#: Puts the descriptors in the first argument where they are expected, and becomes the rest of its arguments.
HAND_OVER = """
import fcntl, os, sys
given = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 100) for n in sys.argv[1].split(",")]
for place, descriptor in enumerate(given, 3):
    os.dup2(descriptor, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)))
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def supervised(sockets: list[socket.socket], cwd: Path, *options: str) -> Iterator[tuple[Path, socket.socket]]:
    """A server that is given *sockets*: its output, and where it tells how it is. TERM ends it, with status 0."""
    out = cwd / "out"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, out.open("wb") as output:
        notices.bind(str(cwd / "notify"))
        notices.settimeout(20)
        descriptors = [sock.fileno() for sock in sockets]
        process = subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, ",".join(map(str, descriptors)), *TWISTD, "-n", "--pidfile=",
             "anycable", "--public", *options],
            cwd=cwd, env=environment({"NOTIFY_SOCKET": str(cwd / "notify")}), pass_fds=descriptors,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield out, notices
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, out.read_text()
        finally:
            process.kill()
            process.wait()
    (cwd / "notify").unlink()


@pytest.mark.parametrize("path", ["--fast_path", "--fast_path=false"])
def test_inherited_sockets_are_served_and_a_restart_refuses_nobody(path: str, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0), backlog=16) as main, socket.create_server((HOST, 0)) as other:
        port, publications = main.getsockname()[1], other.getsockname()[1]
        options = (f"--port={port}", f"--http_broadcast_port={publications}", path)
        early = http.client.HTTPConnection(HOST, port, timeout=20)
        with closing(early):
            early.request("GET", "/health")  # nobody accepts yet
            with supervised([main, other], tmp_path, *options) as (out, notices):
                assert notices.recv(100) == b"READY=1"
                assert early.getresponse().status == 200
                assert get(publications, "/")[0] == 404
            assert f"Listen on the inherited socket {HOST}:{port}" in out.read_text()
        with closing(http.client.HTTPConnection(HOST, port, timeout=20)) as between:
            between.request("GET", "/health")  # it waits for the next process
            with supervised([main, other], tmp_path, *options) as (_, notices):
                assert notices.recv(100) == b"READY=1"
                assert between.getresponse().status == 200
                between.close()
        # The supervisor still listens.
        socket.create_connection((HOST, port), 5).close()


def test_the_supervisor_is_told_of_the_stop(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as main, socket.create_server((HOST, 0)) as other:
        options = (f"--port={main.getsockname()[1]}", f"--http_broadcast_port={other.getsockname()[1]}")
        with supervised([main, other], tmp_path, *options) as (_, notices):
            assert notices.recv(100) == b"READY=1"
            kept = notices.dup()
        with kept:
            kept.settimeout(5)
            assert kept.recv(100) == b"STOPPING=1"


def test_a_socket_that_nothing_would_accept_from_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as stray:
        address = f"{HOST}:{stray.getsockname()[1]}"
        command = [sys.executable, "-c", HAND_OVER, str(stray.fileno()), *TWISTD, "-n", "--pidfile=", "anycable"]
        done = subprocess.run(
            [*command, "--public"], cwd=tmp_path, env=environment(None), pass_fds=[stray.fileno()],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"nothing listens on the port of the inherited socket {address}" in done.stdout
    assert "the ports are 8080, 8090" in done.stdout
