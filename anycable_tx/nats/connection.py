"""One connection to one server: nats-py logs in and parses, and what arrives is handed straight on."""

# Much of nats-py's transport carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error
from twisted.logger import Logger

from anycable_tx.metrics import Metrics
from anycable_tx.nats.address import Server
from anycable_tx.nats.api import Message, NatsUnavailable
from anycable_tx.nats.headers import decode
from anycable_tx.nats.nkeys import Identity

__all__ = ["OUTPUT_LIMIT", "Connection", "Owner"]

#: So many bytes may wait to be sent; then the server does not take what it is sent.
OUTPUT_LIMIT = 32 * 1024 * 1024
#: Seconds for each step of logging in.
_STEP = 3
_READ = 65536
#: So many pings without any answer end the connection.
_UNANSWERED = 2
#: What a server says without closing the connection, in lower case.
_HARMLESS = ("permissions violation", "invalid subject", "maximum subscriptions exceeded")


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def received(self, sid: int, message: Message) -> None:
        """A message of the subscription *sid*."""

    def complained(self, text: str) -> None:
        """The server says that something is wrong, and goes on."""

    def told(self, info: dict[str, Any]) -> None:
        """The server said something about itself, after it did so at the beginning."""

    def lost(self, connection: Connection, why: str) -> None:
        """It is gone. Not called by ``close``."""


class Connection(Client):
    """Logged in once ``open`` is done; over when the owner is told so, or with ``close``.

    What nats-py has for more than that is not used: a task and a queue for each subscription, a task that writes, and
    reconnecting to where the same things wait to be sent. *tls* is used when the server wants it, and has to be when
    its address says so.
    """

    log = Logger()

    def __init__(
        self, server: Server, owner: Owner, reactor: Any, metrics: Metrics, *, tls: ssl.SSLContext,
        identity: Identity | None, ping_interval: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.server = server
        self._owner = owner
        self._reactor = reactor
        self._metrics = metrics
        self._tls = tls
        self._identity = identity
        self._interval = ping_interval
        self._socket = self._transport = _Transport()
        self._loop: asyncio.AbstractEventLoop
        #: Why it is over, if it is.
        self.why = ""
        self._over = False
        self._output: list[bytes] = []
        self._output_size = 0
        self._flush_due = False
        self._answers: deque[Callable[[], None] | None] = deque()
        self._heard = False
        self._unanswered = 0
        self._timer: Any = None
        self._told = ""

    async def open(self) -> None:
        """Log in. Raises OSError, TimeoutError or nats.errors.Error. To be run by asyncio."""
        server, identity = self.server, self._identity
        self._loop = asyncio.get_running_loop()
        login: dict[str, Any] = {}
        if identity is not None:
            login["signature_cb"] = identity.sign
            if identity.jwt:
                login["user_jwt_cb"] = identity.jwt.encode
            else:
                self._public_nkey = identity.key
        elif server.password is not None:
            login.update(user=server.user, password=server.password)
        elif server.token:
            login["token"] = server.token
        try:
            await self.connect(
                f"nats://{server}", error_cb=_nothing, name="anycable-tx", allow_reconnect=False,
                connect_timeout=_STEP, tls=self._tls, tls_hostname=server.tls_name or server.host, **login,
            )  # fmt: skip
            if not self.is_connected:
                raise ConnectionError("the server closed the connection")
        except BaseException:
            self._end()
            raise
        self._heard = True
        self._timer = self._reactor.callLater(self._interval, self._check)

    @property
    def told(self) -> dict[str, Any]:
        """What the server said of itself."""
        return self._server_info

    def send(self, *parts: bytes) -> None:
        """Send *parts* at the end of this turn of the loop. Raises NatsUnavailable when too much waits already."""
        size = sum(map(len, parts))
        if self._output_size + size > OUTPUT_LIMIT - self._socket.waiting():
            raise NatsUnavailable(f"NATS: {self.server} does not take what it is sent")
        self._output_size += size
        self.tell(*parts)

    def tell(self, *parts: bytes) -> None:
        """Send them however much waits: for what belongs to the connection itself."""
        self._output += parts
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def ping(self, answered: Callable[[], None] | None = None) -> None:
        """Call *answered* when the server has everything that was sent before; never, if the connection is lost."""
        self._answers.append(answered)
        self.tell(b"PING\r\n")

    def lose(self, why: str) -> None:
        """Give it up at once, and tell the owner."""
        if not self._over:
            self.why = self._told or why
            self._end()
            self._owner.lost(self, self.why)

    async def close(self) -> None:
        """Give it up; done when nothing is left of it. To be run by asyncio."""
        self._end()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_STEP):
                await self._socket.wait_closed()

    def _end(self) -> None:
        self._over = True
        self._status = Client.CLOSED
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._output.clear()
        self._answers.clear()
        if self._reading_task is not None:
            self._reading_task.cancel()
        self._socket.abort()

    def _flush(self) -> None:
        self._flush_due = False
        output, self._output, self._output_size = self._output, [], 0
        if not (self._over or self._socket.is_closing()):  # that it closes is told by who reads
            self._socket.write(b"".join(output))

    def _check(self) -> None:
        """Ping, and give up where nothing is heard: nothing else tells of a server that just stands there."""
        self._unanswered = 0 if self._heard else self._unanswered + 1
        self._heard = False
        if self._unanswered >= _UNANSWERED:
            self._metrics.count("nats_stalls_total")
            self.lose(f"{self.server} has not answered {_UNANSWERED} pings")
            return
        self._timer = self._reactor.callLater(self._interval, self._check)
        self.ping()

    # What follows takes the place of methods of nats-py's, which calls them.

    async def _select_next_server(self) -> None:
        # One attempt: what comes after that is not for this connection to say.
        (server,) = self._server_pool
        await self._connect_to_server(server)
        self._current_server = server

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if not initial_connection:
            self._server_info.update(info)
            self._owner.told(info)
            return
        if info.get("tls_available"):
            info["tls_required"] = True  # then it is used
        if self.server.tls and not info.get("tls_required"):
            raise ConnectionError("it has no TLS, which its address asks for")

    async def _read_loop(self) -> None:
        why = f"{self.server} closed the connection"
        try:
            while not self._over and (data := await self._socket.read(_READ)):
                self._heard = True
                await self._ps.parse(data)
                await asyncio.sleep(0)  # whatever else there is to do has its turn before the next piece
        except (OSError, Error) as e:
            why = f"{self.server}: {e}"
        except Exception:  # whatever the server sent, nats-py could not read it
            self._metrics.count("internal_errors_total")
            self.log.failure("NATS: unexpected error")
            why = f"{self.server} could not be understood"
        self.lose(why)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if self._over:
            return
        name = subject.decode("utf-8", "replace")
        if headers:
            self._owner.received(sid, Message(name, data, *decode(headers)))
        else:
            self._owner.received(sid, Message(name, data, {}))

    async def _process_ping(self) -> None:
        if not self._over:
            self.tell(b"PONG\r\n")

    async def _process_pong(self) -> None:
        if self._answers and (answered := self._answers.popleft()) is not None:
            answered()

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("'")
        if any(each in text for each in _HARMLESS):
            self._owner.complained(text)
        else:
            self._told = f"{self.server}: {text}"  # it closes the connection itself

    async def _ping_interval(self) -> None:
        pass  # see _check

    async def _flusher(self) -> None:
        pass  # see _flush


class _Transport(TcpTransport):
    """Can be given up at once, whatever waits to be sent."""

    def __bool__(self) -> bool:
        return True  # else it would be replaced when it is to connect

    def abort(self) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def is_closing(self) -> bool:
        """Nothing that is written now is sent; there are loops where that is an error."""
        return self._io_writer is not None and self._io_writer.transport.is_closing()

    def waiting(self) -> int:
        """So many bytes have not been taken by the network."""
        return 0 if self._io_writer is None else self._io_writer.transport.get_write_buffer_size()


async def _nothing(error: Exception) -> None:
    """What is wrong is raised as well."""
