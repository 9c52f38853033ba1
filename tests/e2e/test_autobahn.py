"""The public test cases of the Autobahn suite, against the transport with an echo behind it.

They are run by kosoku, in a process of its own: it brings modules that are named like Autobahn's.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anycable_tx.testing.processes import BOUND, HOST, free_port, wait_for

pytestmark = pytest.mark.e2e

SERVER = Path(__file__).with_name("echo_server.py")
#: 1 to 7 and 10: frames, pings, reserved bits, opcodes, fragments, UTF-8, closing. 12 and 13: compression, of which
#: there are many alike. What needs a server window of less than 15 bits is declined, because all clients share
#: compressed frames.
CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.1.1", "12.1.6", "12.4.2")
WINDOWS = ("13.1.1", "13.2.1", "13.4.1", "13.6.1", "13.7.1")
#: Large messages, whole and in pieces.
SIZES = ("9.1.3", "9.2.3", "9.3.5", "9.4.5", "9.5.4", "9.6.4", "9.7.3", "9.8.3")


@contextmanager
def echoing(way: str) -> Iterator[int]:
    """The echo server; answers its port."""
    port = free_port()
    with subprocess.Popen([*BOUND, sys.executable, str(SERVER), str(port), way], stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: not process.poll() and _accepts(port), "the echo server")
            yield port
        finally:
            process.kill()
        assert process.stderr is not None
        complaints = process.stderr.read().decode()
    assert "Traceback" not in complaints, complaints


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.mark.statement("F18")
@pytest.mark.parametrize("way", ["direct", "plain"])
def test_the_public_cases_pass(way: str, tmp_path: Path) -> None:
    cases = [argument for case in (*CASES, *WINDOWS, *SIZES) for argument in ("-i", case)]
    with echoing(way) as port:
        run = "from kosoku._cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", run, "-p", "4", "-o", str(tmp_path / "report"), *cases, f"{HOST}:{port}"],
            capture_output=True,
            text=True,
            timeout=110,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases passed" in done.stdout + done.stderr
