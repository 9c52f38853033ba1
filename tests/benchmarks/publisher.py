"""Publishes over keep-alive HTTP connections: one request at a time on each."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

from tests.benchmarks.payload import Template
from tests.benchmarks.processes import RunFailed

__all__ = ["Publisher", "publish_at_rate"]


class Publisher:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._head = (
            f"POST /_broadcast HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        ).encode()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def post(self, body: bytes) -> None:
        """Send *body* and wait for the answer. RunFailed unless it is a 200 or 201."""
        self._socket.sendall(self._head % len(body) + body)
        head = self._until(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if status not in (b"200", b"201"):
            raise RunFailed(f"a publication was answered {status.decode()}")
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            self._until(b"0\r\n\r\n")
        else:
            self._exactly(int(fields.get(b"content-length", b"0")))

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise RunFailed("the server closed the publisher's connection")
        self._rest += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(mark)
        return head

    def _exactly(self, size: int) -> None:
        while len(self._rest) < size:
            self._more()
        self._rest = self._rest[size:]


def publish_at_rate(port: int, templates: Sequence[Template], rate: float, count: int, connections: int = 1) -> float:
    """Publish *count* messages, *rate* a second in all, the streams in turn; answers the rate that was reached.

    Every stream stays on one connection, so its order is the order of its stamps. A server that answers too slowly
    makes the rate drop: nothing is sent on a connection before the answer to what went before.
    """
    errors: list[Exception] = []
    start = time.monotonic() + 0.05

    def work(lane: int) -> None:
        mine = templates[lane::connections]
        publisher = Publisher(port)
        try:
            for turn in range(lane, count, connections):
                wait = start + turn / rate - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                publisher.post(mine[turn // connections % len(mine)].one(time.monotonic_ns()))
        except (OSError, RunFailed) as error:
            errors.append(error)
        finally:
            publisher.close()

    threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RunFailed(f"publishing failed: {errors[0]}")
    return count / max(time.monotonic() - start, count / rate)
