"""The load client: a separate process that holds all subscribers on raw sockets and one epoll.

The parent sends one JSON object a line on standard input and gets one line back for each (see ``Load.do_*``).
While a measurement runs, the loop only reads and notes the time of each read; frames are parsed when nothing is
waiting to be read, so the client does not slow down what it measures.

Run as ``python -m tests.benchmarks.load PORT``.
"""

from __future__ import annotations

import base64
import errno
import gc
import hashlib
import json
import os
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

from tests.benchmarks.payload import MARK, SEQ_END, TIME_END, TIME_START, command, identifier

__all__ = ["Connection", "Load", "frame"]

CONNECTING, HANDSHAKE, OPEN, READY, CLOSED = range(5)
READ_BYTES = 65536
PARSE_SLICE = 100


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A masked client frame of less than 64 KB."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    mask = os.urandom(4)
    key = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return bytes((0x80 | opcode,)) + length + mask + masked.to_bytes(size, "big")


class Connection:
    """One subscriber, which outlives its sockets: a resumed connection continues the count of its stream."""

    __slots__ = ("accept", "next", "position", "recv", "rest", "resuming", "sid", "socket", "state", "stream")

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.state = CLOSED
        self.rest = b""
        self.next = 0  # the number of the message that has to come next
        self.sid = ""
        self.position: dict[str, Any] = {}
        self.resuming = False


class Load:
    """All connections to the server on *port*."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.by_fd: dict[int, Connection | None] = {0: None}
        self.epoll.register(0, select.EPOLLIN)
        self.commands: deque[dict[str, Any]] = deque()
        self._input = b""
        self.connections: list[Connection] = []
        self.unread: deque[tuple[Connection, int, bytes]] = deque()
        self.protocol = "actioncable-v1-json"
        self.path = "/cable"
        self.await_welcome = True
        self.measuring = False
        self.track_positions = False
        self.resume_until = 0
        self.perform_until = 0
        self.waiting: Iterator[Connection] = iter(())
        self.busy = 0
        self.completed = 0
        self.failures: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._reset()

    # -- commands

    def do_connect(
        self,
        count: int,
        streams: list[str],
        concurrency: int,
        protocol: str,
        path: str,
        await_welcome: bool = True,
        channel: str = "$pubsub",
        timeout: float = 60,
    ) -> dict[str, Any]:
        """Open *count* connections, *concurrency* at a time, each subscribed to one of *streams* in turn."""
        self.protocol, self.path, self.await_welcome = protocol, path, await_welcome
        names = {stream: identifier(stream, channel) for stream in streams}
        self.subscribe_frames = {
            stream: frame(json.dumps({"command": "subscribe", "identifier": name}).encode())
            for stream, name in names.items()
        }
        self.commands_of = {stream: command(name) for stream, name in names.items()}
        fresh = [Connection(streams[i % len(streams)]) for i in range(count)]
        self.connections += fresh
        return self._establish(fresh, concurrency, timeout)

    def do_start(self) -> dict[str, Any]:
        """Forget earlier deliveries and begin to measure."""
        self._reset()
        self.measuring = True
        return {}

    def do_reach(self, total: int, timeout: float) -> dict[str, Any]:
        """Wait until *total* deliveries were read since the start; answers when the last one was."""
        end = time.monotonic() + timeout
        self._pump(lambda: self.deliveries >= total, end)
        return {"deliveries": self.deliveries, "last": self.last}

    def do_finish(self, total: int, timeout: float, grace: float = 0.2) -> dict[str, Any]:
        """The same, then wait a little for what should not come, and answer everything that was seen."""
        self.do_reach(total, timeout)
        self._pump(lambda: False, time.monotonic() + grace)
        self.measuring = False
        self._pump(lambda: not self.unread, time.monotonic() + timeout)
        latencies = sorted(self.latencies)
        at = len(latencies) - 1
        return {
            "deliveries": self.deliveries,
            "misordered": self.misordered,
            "lost": dict(self.lost),
            "other": dict(self.other),
            "last": self.last,
            "p50": latencies[round(at * 0.5)] / 1e6 if latencies else 0.0,
            "p99": latencies[round(at * 0.99)] / 1e6 if latencies else 0.0,
            "busy": time.process_time() - self.cpu_before,
        }

    def do_perform(self, seconds: float, timeout: float = 30) -> dict[str, Any]:
        """Every connection performs commands for *seconds*, one at a time: the next when the last was echoed."""
        start = monotonic_ns()
        self.perform_until = start + round(seconds * 1e9)
        for connection in self.connections:
            self._perform(connection)
        self._pump(lambda: self.deliveries >= self.performed or bool(self.lost), time.monotonic() + seconds + timeout)
        self.perform_until = 0
        return {"performed": self.performed, "seconds": (self.last - start) / 1e9}

    def do_lost(self) -> dict[str, Any]:
        """Connections that were ready and are gone, by reason."""
        return {"lost": dict(self.lost)}

    def do_track(self) -> dict[str, Any]:
        """Remember each connection's position from now on (costs a JSON parse a delivery)."""
        self.track_positions = True
        return {}

    def do_cut(self) -> dict[str, Any]:
        """Drop every socket without a closing handshake."""
        for connection in self.connections:
            self._drop(connection)
        self.unread.clear()
        return {}

    def do_resume(self, concurrency: int, until: int, timeout: float = 60) -> dict[str, Any]:
        """Reconnect all, *concurrency* at a time; each must be restored and get its messages below number *until*."""
        self.resume_until = until
        for connection in self.connections:
            connection.resuming = True
        return self._establish(self.connections, concurrency, timeout)

    # -- the loop

    def serve(self) -> None:
        """Obey until standard input ends."""
        while True:
            self._pump(lambda: bool(self.commands), None)
            order = self.commands.popleft()
            name = order.pop("do")
            if name == "quit":
                return
            answer = getattr(self, "do_" + name)(**order)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    def _pump(self, done: Callable[[], bool], end: float | None) -> None:
        """Read and parse until *done* or *end* (monotonic seconds)."""
        poll, by_fd, unread = self.epoll.poll, self.by_fd, self.unread
        while not done():
            if end is not None and time.monotonic() >= end:
                return
            events = poll(0 if unread else 0.1)
            for fd, _ in events:
                connection = by_fd.get(fd)
                if connection is None:
                    if fd == 0:
                        self._read_commands()
                    continue
                if connection.state == CONNECTING:
                    self._connected(connection)
                    continue
                try:
                    data = connection.recv(READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    self.epoll.unregister(fd)
                    del by_fd[fd]
                unread.append((connection, monotonic_ns(), data))
            if events and self.measuring:
                continue
            for _ in range(min(len(unread), PARSE_SLICE) if self.measuring else len(unread)):
                self._parse(*unread.popleft())

    def _read_commands(self) -> None:
        data = os.read(0, 65536)
        if not data:
            raise SystemExit
        *lines, self._input = (self._input + data).split(b"\n")
        self.commands.extend(json.loads(line) for line in lines)

    def _reset(self) -> None:
        self.latencies = array("q")
        self.deliveries = self.misordered = self.performed = 0
        self.last = 0
        self.other: Counter[str] = Counter()
        self.cpu_before = time.process_time()

    # -- connecting

    def _establish(self, connections: list[Connection], concurrency: int, timeout: float) -> dict[str, Any]:
        """Bring each of *connections* to READY."""
        self.waiting, self.completed, self.busy = iter(connections), 0, 0
        self.failures = Counter()
        total = len(connections)
        cpu, start = time.process_time(), time.monotonic()
        for _ in range(min(concurrency, total)):
            self._open_next()
        self._pump(lambda: self.completed >= total, start + timeout)
        seconds = time.monotonic() - start
        if self.completed < total:
            self.failures["not ready in time"] += total - self.completed
        return {"seconds": seconds, "busy": time.process_time() - cpu, "failures": dict(self.failures)}

    def _open_next(self) -> None:
        connection = next(self.waiting, None)
        if connection is None:
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket, connection.recv = sock, sock.recv
        connection.rest = b""
        connection.state = CONNECTING
        error = sock.connect_ex(("127.0.0.1", self.port))
        self.by_fd[sock.fileno()] = connection
        if error == errno.EINPROGRESS:
            self.epoll.register(sock.fileno(), select.EPOLLOUT)
        else:
            self.epoll.register(sock.fileno(), select.EPOLLIN)
            self._send_handshake(connection)

    def _connected(self, connection: Connection) -> None:
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._failed(connection, f"connect: {os.strerror(error)}")
            return
        self.epoll.modify(connection.socket.fileno(), select.EPOLLIN)
        self._send_handshake(connection)

    def _send_handshake(self, connection: Connection) -> None:
        key = base64.b64encode(os.urandom(16))
        connection.accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        path = f"{self.path}?sid={connection.sid}" if connection.resuming else self.path
        connection.state = HANDSHAKE
        self._send(
            connection,
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Origin: http://127.0.0.1:{self.port}\r\nUser-Agent: anycable-tx-benchmark\r\n"
            f"Sec-WebSocket-Protocol: {self.protocol}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\n\r\n".encode(),
        )

    def _send(self, connection: Connection, data: bytes) -> None:
        try:
            sent = connection.socket.send(data)
        except OSError as error:
            self._failed(connection, f"send: {error.strerror}")
            return
        if sent != len(data):
            self._failed(connection, "send: the socket took only a part")

    def _ready(self, connection: Connection) -> None:
        connection.state = READY
        connection.resuming = False
        self.completed += 1
        self._open_next()

    def _failed(self, connection: Connection, reason: str) -> None:
        """Give up on *connection*; the rest goes on, and the run is reported as failed."""
        if connection.state == CLOSED:
            return
        establishing = connection.state != READY
        self._drop(connection)
        if establishing:
            self.failures[reason] += 1
            self.completed += 1
            self._open_next()
        else:
            self.lost[reason] += 1

    def _drop(self, connection: Connection) -> None:
        if connection.state == CLOSED:
            return
        connection.state = CLOSED
        self.by_fd.pop(connection.socket.fileno(), None)
        connection.socket.close()  # closing takes it out of the epoll

    # -- frames

    def _parse(self, connection: Connection, now: int, data: bytes) -> None:
        if connection.state == CLOSED:
            return
        if not data:
            self._failed(connection, "closed by the server")
            return
        if connection.rest:
            data = connection.rest + data
        if connection.state == HANDSHAKE:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                connection.rest = head
                return
            if not head.startswith(b"HTTP/1.1 101 ") or connection.accept not in head:
                self._failed(connection, "handshake: " + head.split(b"\r\n")[0].decode(errors="replace"))
                return
            connection.state = OPEN
            if not self.await_welcome:
                self._send(connection, self.subscribe_frames[connection.stream])
        at, end = 0, len(data)
        while end - at >= 2:
            size, body = data[at + 1], at + 2
            if size == 126:
                body = at + 4
                if body > end:
                    break
                size = data[at + 2] << 8 | data[at + 3]
            elif size == 127:
                body = at + 10
                if body > end:
                    break
                size = int.from_bytes(data[at + 2 : body], "big")
            stop = body + size
            if stop > end:
                break
            mark = data.find(MARK, body, stop)
            if mark >= 0:
                number = int(data[mark + TIME_END : mark + SEQ_END])
                if number != connection.next:
                    self.misordered += 1
                connection.next = number + 1
                self.deliveries += 1
                self.last = now
                self.latencies.append(now - int(data[mark + TIME_START : mark + TIME_END]))
                if self.track_positions:
                    self._note_position(connection, data[body:stop])
                if self.perform_until:
                    self._perform(connection)
            else:
                self._control(connection, data[at], data[body:stop])
            at = stop
        connection.rest = data[at:]

    def _perform(self, connection: Connection) -> None:
        now = monotonic_ns()
        if now < self.perform_until:
            self.performed += 1
            self._send(connection, frame(self.commands_of[connection.stream] % (now, connection.next)))

    def _note_position(self, connection: Connection, payload: bytes) -> None:
        message = json.loads(payload)
        connection.position = {
            "streams": {message["stream_id"]: {"epoch": message["epoch"], "offset": message["offset"]}}
        }

    def _control(self, connection: Connection, first: int, payload: bytes) -> None:
        """Everything that is not a delivery."""
        if first == 0x89:
            self._send(connection, frame(payload, 10))
            return
        if first & 0x0F not in (1, 2):
            self._failed(connection, f"frame {first:#x} {payload[:80]!r}")
            return
        message = json.loads(payload)
        kind = message.get("type")
        self.other[kind] += 1
        if kind == "welcome":
            self._welcomed(connection, message)
        elif kind == "confirm_subscription":
            if connection.state == OPEN:
                self._ready(connection)
        elif kind == "confirm_history":
            if connection.next != self.resume_until:
                self._failed(connection, f"history ended at message {connection.next}, not {self.resume_until}")
            else:
                self._ready(connection)
        elif kind != "ping":
            self._failed(connection, f"unexpected {payload[:120].decode(errors='replace')}")

    def _welcomed(self, connection: Connection, message: dict[str, Any]) -> None:
        connection.sid = message.get("sid", "")
        if not connection.resuming:
            self._send(connection, self.subscribe_frames[connection.stream])
            return
        name = identifier(connection.stream)
        if not message.get("restored") or name not in message.get("restored_ids", ()):
            self._failed(connection, "the session was not restored")
            return
        history = {"command": "history", "identifier": name, "history": connection.position}
        self._send(connection, frame(json.dumps(history).encode()))


def main(port: int) -> None:
    gc.disable()
    Load(port).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
