"""A TCP proxy that breaks connections on purpose: cut, stall, drop, slow down, refuse.

In a process that has a reactor::

    proxy = FaultProxy(reactor, "127.0.0.1", 8080)
    port = await proxy.start()
    proxy.cut()

or as a child process, ``python -m anycable_tx.testing.proxy --listen 0 --target 127.0.0.1:8080``, which prints
``{"port": N}`` and then obeys one JSON object a line, e.g. ``{"do": "slow", "rate": 1000, "connection": 3}``, and
answers each with a line, ``{"ok": true, ...}`` or ``{"ok": false, "error": ...}``. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import socket
import sys
import termios
from collections.abc import Coroutine, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from struct import calcsize, unpack
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["DIRECTIONS", "FaultProxy", "main"]

#: "up" is from the client to the server, "down" the other way.
DIRECTIONS = ("up", "down")
_TICK = 0.05


@dataclass
class _Rules:
    """What is wrong with one direction of one connection."""

    stalled: bool = False
    dropping: bool = False
    rate: float | None = None
    budget: int | None = None


@implementer(IPushProducer)
class _Pipe:
    """Carries bytes in one direction. Reads no more while anything holds it back."""

    def __init__(self, reactor: Any, link: _Link, source: Any, sink: Any, rules: _Rules):
        self._reactor = reactor
        self._link = link
        self._source = source
        self._sink = sink
        self.rules = rules
        self._buffer = bytearray()
        self._held_by: set[str] = set()
        self._timer: Any = None
        self._ended = False

    def start(self) -> None:
        self._sink.registerProducer(self, True)
        self.apply()

    def apply(self) -> None:
        """The rules changed."""
        self._hold("rules", self.rules.stalled)
        if self.rules.dropping:
            self._buffer.clear()
        if self.rules.budget == 0:
            self._link.abort()
        else:
            self._flush()

    def receive(self, data: bytes) -> None:
        if not self.rules.dropping:
            self._buffer += data
            self._flush()

    def finish(self) -> None:
        """The source has closed. A direction that drops keeps that to itself."""
        self._ended = True
        if not self.rules.dropping:
            self._flush()

    def stop(self) -> None:
        self._ended = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        if self.rules.stalled or self._timer is not None:
            return
        if self._buffer:
            rate, size = self.rules.rate, len(self._buffer)
            if rate is not None:
                size = min(size, max(1, int(rate * _TICK)))
                self._timer = self._reactor.callLater(size / rate, self._tick)
            self._write(size)
        self._hold("rate", bool(self._buffer))
        if self._ended and not self._buffer:
            self._sink.unregisterProducer()
            self._sink.loseConnection()

    def _tick(self) -> None:
        self._timer = None
        self._flush()

    def _write(self, size: int) -> None:
        budget = self.rules.budget
        if budget is not None:
            size = min(size, budget)
            self.rules.budget = budget - size
        self._sink.write(bytes(self._buffer[:size]))
        del self._buffer[:size]
        if self.rules.budget == 0:
            self._buffer.clear()
            self._sink.unregisterProducer()
            self._sink.registerProducer(_CutWhenWritten(self._reactor, self._link, self._sink), False)

    def _hold(self, reason: str, held: bool) -> None:
        before = bool(self._held_by)
        (self._held_by.add if held else self._held_by.discard)(reason)
        if bool(self._held_by) != before and not self._ended:
            (self._source.pauseProducing if held else self._source.resumeProducing)()

    def pauseProducing(self) -> None:
        self._hold("sink", True)

    def resumeProducing(self) -> None:
        self._hold("sink", False)

    def stopProducing(self) -> None:
        """The sink is gone; its protocol says so too."""


@implementer(IPullProducer)
class _CutWhenWritten:
    """Asked for more once at registration and again when all is written; cuts once the kernel has delivered it."""

    def __init__(self, reactor: Any, link: _Link, sink: Any):
        self._reactor = reactor
        self._link = link
        self._sink = sink
        self._asked = False
        self._timer: Any = None

    def resumeProducing(self) -> None:
        if self._asked:
            self._cut()
        self._asked = True

    def stopProducing(self) -> None:
        """The sink is gone before everything was delivered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        self._timer = None
        descriptor = self._sink.fileno()
        if descriptor < 0:
            return  # it was cut meanwhile
        (unsent,) = unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(calcsize("i"))))
        if unsent:
            self._timer = self._reactor.callLater(0.002, self._cut)
        else:
            self._link.abort()


class _End(Protocol):
    """One of the two sockets of a connection."""

    transport: Any
    pipe: _Pipe | None = None

    def __init__(self, link: _Link, side: str, buffer_bytes: int | None):
        self._link = link
        self.side = side
        self._buffer_bytes = buffer_bytes

    def connectionMade(self) -> None:
        transport = self.transport
        transport.setTcpNoDelay(True)
        if self._buffer_bytes is not None:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                transport.getHandle().setsockopt(socket.SOL_SOCKET, option, self._buffer_bytes)
        transport.pauseProducing()
        self._link.opened(self)

    def dataReceived(self, data: bytes) -> None:
        if self.pipe is not None:
            self.pipe.receive(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._link.lost(self, clean=isinstance(reason.value, ConnectionDone))


class _Link:
    """One proxied connection: a client's socket, the server's and a pipe each way."""

    def __init__(self, proxy: FaultProxy, number: int, rules: dict[str, _Rules]):
        self._proxy = proxy
        self.number = number
        self.rules = rules
        self.ends: list[_End] = []
        self.pipes: dict[str, _Pipe] = {}

    def opened(self, end: _End) -> None:
        self.ends.append(end)
        if end.side == "client":
            self._proxy._connect(self)
            return
        if len(self.ends) == 1:  # the client left while the target was being connected
            self.abort()
            return
        client, server = self.ends
        for direction, source, sink in (("up", client, server), ("down", server, client)):
            pipe = _Pipe(self._proxy.reactor, self, source.transport, sink.transport, self.rules[direction])
            source.pipe = self.pipes[direction] = pipe
        for end in self.ends:
            end.transport.resumeProducing()
        for pipe in self.pipes.values():
            pipe.start()

    def lost(self, end: _End, clean: bool) -> None:
        self.ends.remove(end)
        if end.pipe is not None and clean:
            end.pipe.finish()
        elif not (end.pipe is not None and end.pipe.rules.dropping):
            self.abort()
        if not self.ends:
            for pipe in self.pipes.values():
                pipe.stop()
            self._proxy._links.pop(self.number, None)

    def abort(self, side: str = "both") -> None:
        """Reset the connection, or one side of it: the other side is then left open and silent."""
        if side != "both":
            for rules in self.rules.values():
                rules.dropping = True
        for end in list(self.ends):
            if side in ("both", end.side):
                end.transport.unregisterProducer()
                end.transport.abortConnection()


class FaultProxy:
    """Forwards connections to one address and breaks them when told.

    Every fault takes the number of a connection (1, 2, ... in the order of their arrival; ``connections`` tells
    which are open), or None for all that are open and, except ``cut``, all to come. ``direction`` is "up",
    "down" or "both".
    """

    def __init__(self, reactor: Any, host: str, port: int, buffer_bytes: int | None = None):
        """Forward to *host*:*port*; *buffer_bytes* bounds the kernel's buffers, so that slowness is felt soon."""
        self.reactor = reactor
        self._target = TCP4ClientEndpoint(reactor, host, port)
        self._buffer_bytes = buffer_bytes
        self._rules = {direction: _Rules() for direction in DIRECTIONS}
        self._links: dict[int, _Link] = {}
        self._count = 0
        self._port: Any = None
        self.port = 0

    @property
    def connections(self) -> list[int]:
        """The numbers of the open connections."""
        return sorted(self._links)

    async def start(self, port: int = 0) -> int:
        """Listen on *port* of 127.0.0.1 (0: a free one) and answer which."""
        self._port = self.reactor.listenTCP(port, _Listener(self), interface="127.0.0.1")
        self.port = self._port.getHost().port
        return self.port

    async def stop(self) -> None:
        """Listen no more and reset every connection."""
        await self.refuse()
        self.cut()

    async def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._port is not None:
            port, self._port = self._port, None
            await port.stopListening()

    async def accept(self) -> None:
        """Undo ``refuse``, on the same port."""
        if self._port is None:
            await self.start(self.port)

    def cut(self, connection: int | None = None, side: str = "both") -> int:
        """Reset (RST) open connections; answers how many. *side* "client" or "server" leaves the other half open."""
        links = list(self._chosen(connection))
        for link in links:
            link.abort(side)
        return len(links)

    def cut_after(self, size: int, direction: str = "down", connection: int | None = None) -> None:
        """Forward exactly *size* more bytes of *direction*, on each connection, then reset it."""
        self._set(connection, direction, budget=size)

    def stall(self, connection: int | None = None, direction: str = "both") -> None:
        """Keep connections open, read nothing and forward nothing: the senders' windows fill."""
        self._set(connection, direction, stalled=True)

    def drop(self, direction: str = "both", connection: int | None = None) -> None:
        """Read everything and forward nothing, not even the end of the connection."""
        self._set(connection, direction, dropping=True)

    def slow(self, rate: float, direction: str = "both", connection: int | None = None) -> None:
        """Forward at most *rate* bytes a second."""
        if rate <= 0:
            raise ValueError(f"rate: {rate!r} bytes a second; accepted is any number above 0")
        self._set(connection, direction, rate=rate)

    def heal(self, connection: int | None = None) -> None:
        """No faults any more. What was dropped is not sent again; what was stalled is."""
        self._set(connection, "both", stalled=False, dropping=False, rate=None, budget=None)

    def _set(self, connection: int | None, direction: str, **changes: Any) -> None:
        directions = DIRECTIONS if direction == "both" else (direction,)
        if direction not in (*DIRECTIONS, "both"):
            raise ValueError(f"direction: {direction!r}; accepted are up, down, both")
        targets = [link.rules for link in self._chosen(connection)]
        if connection is None:
            targets.append(self._rules)
        for rules in targets:
            for name in directions:
                for key, value in changes.items():
                    setattr(rules[name], key, value)
        for link in self._chosen(connection):
            for pipe in list(link.pipes.values()):
                pipe.apply()

    def _chosen(self, connection: int | None) -> Iterable[_Link]:
        if connection is None:
            return list(self._links.values())
        if connection not in self._links:
            raise ValueError(f"connection: {connection!r} is not open; open are {self.connections}")
        return [self._links[connection]]

    def _accepted(self) -> _End:
        self._count += 1
        link = self._links[self._count] = _Link(self, self._count, deepcopy(self._rules))
        return _End(link, "client", self._buffer_bytes)

    def _connect(self, link: _Link) -> None:
        factory = Factory.forProtocol(lambda: _End(link, "server", self._buffer_bytes))
        self._target.connect(factory).addErrback(lambda failure: link.abort())


class _Listener(Factory):
    noisy = False

    def __init__(self, proxy: FaultProxy):
        self._proxy = proxy

    def buildProtocol(self, addr: Any) -> Any:
        return self._proxy._accepted()


@dataclass
class _Control:
    """Obeys the JSON lines of the command."""

    proxy: FaultProxy
    done: Deferred[None] = field(default_factory=Deferred)

    async def obey(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            name = order.pop("do")
            if name == "connections":
                return {"ok": True, "connections": self.proxy.connections}
            if name not in ("cut", "cut_after", "stall", "drop", "slow", "heal", "refuse", "accept"):
                raise ValueError(f"do: {name!r} is not known")
            answer = getattr(self.proxy, name)(**order)
            if isinstance(answer, Coroutine):
                answer = await answer
            return {"ok": True, "answer": answer}
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            return {"ok": False, "error": f"{type(e).__name__}: {e}"}


class _Lines(LineReceiver):
    delimiter = b"\n"

    def __init__(self, control: _Control):
        self._control = control

    def say(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())  # type: ignore[no-untyped-call]

    def lineReceived(self, line: bytes) -> None:
        Deferred.fromCoroutine(self._control.obey(line)).addCallback(self.say)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._control.done.called:
            self._control.done.callback(None)


async def _run(reactor: Any, options: argparse.Namespace) -> None:
    host, _, port = options.target.rpartition(":")
    proxy = FaultProxy(reactor, host, int(port), options.buffer_bytes)
    control = _Control(proxy)
    lines = _Lines(control)
    await proxy.start(options.listen)
    StandardIO(lines, reactor=reactor)  # type: ignore[no-untyped-call]
    lines.say({"port": proxy.port})
    await control.done
    await proxy.stop()


def main(argv: list[str] | None = None) -> None:
    """The command of the module's first lines. Ends the process."""
    parser = argparse.ArgumentParser(
        prog="python -m anycable_tx.testing.proxy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--listen", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--target", required=True, help="host:port to forward to")
    parser.add_argument("--buffer-bytes", type=int, help="size of the kernel's socket buffers")
    options = parser.parse_args(argv)
    task.react(lambda reactor: Deferred.fromCoroutine(_run(reactor, options)))


if __name__ == "__main__":
    main(sys.argv[1:])
