"""A reactor for real sockets that a test turns, and a server that answers with whatever bytes a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class RealReactor(AsyncioSelectorReactor):
    """Beside the one of the process. It turns while ``result`` or ``until`` waits; ``pass_time`` skips time."""

    def __init__(self) -> None:
        self._skipped = 0.0
        self.loop = asyncio.new_event_loop()
        super().__init__(self.loop)
        self.startRunning(installSignalHandlers=False)

    def seconds(self) -> float:  # type: ignore[override]
        return self.loop.time() + self._skipped

    def pass_time(self, seconds: float) -> None:
        """Whatever is due within *seconds* is due now."""
        self._skipped += seconds
        self._reschedule()

    def result(self, work: Coroutine[Any, Any, Any] | Deferred[Any], patience: float = 10.0) -> Any:
        """What *work* comes to."""
        deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.until(lambda: results, patience)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def until(self, condition: Callable[[], Any], patience: float = 10.0) -> None:
        """Turn until *condition* holds."""

        async def wait() -> None:
            async with asyncio.timeout(patience):
                while not condition():  # noqa: ASYNC110 - there is no event for any condition
                    await asyncio.sleep(0.002)

        self.loop.run_until_complete(wait())

    def at_rest(self) -> bool:
        """Are there no connections, and no timers?"""
        return (
            not self.getWriters() and not self.getDelayedCalls() and set(self.getReaders()) <= self._internalReaders
        )

    def close(self) -> None:
        """End it and its threads."""
        self.stop()
        self.loop.run_forever()
        for reader in self.removeAll():
            reader.connectionLost(None)
        for reader in list(self._internalReaders):
            reader.connectionLost(None)
        self.loop.close()


class Received(NamedTuple):
    """A request as it came: its line, its headers in lower case, its body; and on which connection."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


class _Handler(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        number = next(self.server.numbers)
        with contextlib.suppress(OSError):
            while (request := self._read(number)) is not None:
                self.server.received.append(request)
                answer = self.server.script(request)
                if answer is None:
                    return
                self.wfile.write(answer)
                if self.server.hang_up:
                    return
        self.server.ended.append(number)

    def _read(self, number: int) -> Received | None:
        if self.server.patience:
            self.connection.settimeout(self.server.patience)
        try:
            line = self.rfile.readline().decode().strip()
        except TimeoutError:
            self.server.given_up += 1
            return None
        if not line:
            return None
        headers = {}
        while header := self.rfile.readline().decode("latin-1").strip():
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        return Received(line, headers, self.rfile.read(int(headers.get("content-length", 0))), number)


class RawServer(socketserver.ThreadingTCPServer):
    """Answers each request with the bytes that *script* returns for it, in a thread; None: closes the connection.

    With *patience*, connections on which nothing comes for so many seconds are closed, and counted in
    ``given_up``. With *tls*, it speaks TLS. With ``hang_up``, the end of an answer is the end of the connection.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    hang_up = False

    def __init__(
        self,
        script: Callable[[Received], bytes | None],
        *,
        port: int = 0,
        patience: float = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script, self.patience, self.tls = script, patience, tls
        self.numbers = iter(range(1_000_000))
        self.received: list[Received] = []
        self.ended: list[int] = []
        self.given_up = 0
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        self.url = f"{scheme}://{host}:{self.server_address[1]}/_anycable"

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    @property
    def connections(self) -> int:
        """How many connections brought requests."""
        return len({request.connection for request in self.received})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what many tests are about."""

    def __enter__(self) -> RawServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


def answer(body: bytes | str = b'{"status":1}', status: str = "200 OK", **headers: str) -> bytes:
    """An HTTP/1.1 response with its length."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data
