"""A connection to one of the servers, for ever: whenever it is lost, another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from nats.errors import Error
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.nats.address import Server, parse
from anycable_tx.nats.api import Message
from anycable_tx.nats.connection import Connection
from anycable_tx.nats.nkeys import read
from anycable_tx.nats.pool import Pool
from anycable_tx.nats.tls import client_side
from anycable_tx.pause import GOOD, Pause

__all__ = ["Upkeep"]

_FIRST_PAUSE = 0.25


class Upkeep:
    """Connects as *settings* say. Raises ConfigurationError.

    *came* is told of each connection, *went* of its end and why; *received* gets the messages. ``connection`` is the
    one there is now.
    """

    log = Logger()

    def __init__(
        self,
        settings: Mapping[str, Any],
        reactor: Any,
        metrics: Metrics,
        *,
        came: Callable[[Connection], None],
        went: Callable[[str], None],
        received: Callable[[int, Message], None],
    ) -> None:
        self.servers = parse(settings)
        self._pool = Pool(self.servers, settings["nats_dont_randomize_servers"])
        self._settings = settings
        self._tls = client_side(settings)
        read(settings)  # a mistake in it is found now
        self._reactor = reactor
        self._metrics = metrics
        self._came, self._went, self.received = came, went, received
        self._pause = Pause(reactor, _FIRST_PAUSE)
        self._loop: asyncio.AbstractEventLoop
        self._work: Deferred[None] | None = None
        self._stopped = True
        self._connections = 0
        self._ended: Deferred[None] = Deferred()
        self._complaint = ""
        self.connection: Connection | None = None
        #: Why there is none.
        self.why = "not connected yet"

    def start(self) -> None:
        """Begin to connect."""
        self._stopped = False
        if any(each.tls for each in self.servers) and not self._settings["nats_tls_verify"]:
            self._warn("the servers' certificates are not checked: nats_tls_verify is off")
        # Before the reactor runs there is no loop for asyncio to find.
        self._reactor.callLater(0, self._begin)

    async def stop(self) -> None:
        """Close the connection, and leave nothing behind. It may be started again."""
        self._stopped = True
        work = self._work
        if work is not None:
            work.cancel()
            await work
        self._connections, self.why, self._complaint = 0, "stopped", ""

    def complained(self, text: str) -> None:
        """The server says that something is wrong, and goes on."""
        self._metrics.count("nats_errors_total")
        if text != self._complaint:
            self._warn(text)
        self._complaint = text

    def told(self, info: dict[str, Any]) -> None:
        """The server says that its cluster has changed, or that it is about to end."""
        connection = self.connection
        if connection is None:
            return
        self._learn(connection)
        if info.get("ldm") and self._pool.has_other(connection.server):
            connection.lose(f"{connection.server} is about to end")

    def lost(self, connection: Connection, why: str) -> None:
        """The connection is lost."""
        if connection is self.connection:
            self._forget(why)

    def _begin(self) -> None:
        if not self._stopped and self._work is None:
            self._loop = asyncio.get_running_loop()
            self._work = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        """Until it is cancelled."""
        last: Server | None = None
        try:
            while True:
                for server in self._pool.order(last):
                    connection = await self._connect(server)
                    if self._stopped:  # asyncio may lose a cancellation that comes together with an answer
                        await self._close(connection)
                        return
                    if connection is not None:
                        last = server
                        await self._use(connection)
                        break
                else:
                    await self._pause.wait()
        except (CancelledError, asyncio.CancelledError):
            pass
        finally:
            self._work = None

    async def _connect(self, server: Server) -> Connection | None:
        """One attempt."""
        try:
            # Who we are is read again: it may have been replaced.
            connection = Connection(
                server, self, self._reactor, self._metrics, tls=self._tls, identity=read(self._settings),
                ping_interval=self._settings["nats_ping_interval"],
            )  # fmt: skip
            await Deferred.fromFuture(self._loop.create_task(connection.open()))
            if not connection.why:
                return connection
            why = connection.why
        except (CancelledError, asyncio.CancelledError):
            raise
        except TimeoutError:
            why = f"{server} does not answer"
        except OSError as e:
            why = f"{server}: {e.strerror or e}"
        except Error as e:  # such as 'Authorization Violation'
            why = f"{server}: {str(e).removeprefix('nats: ')}"
        except ConfigurationError as e:
            why = str(e)
        except Exception:  # a mistake; and no reason to give up
            self._metrics.count("internal_errors_total")
            self.log.failure("NATS: unexpected error")
            why = f"{server}: an unexpected error"
        self._metrics.count("nats_failed_attempts_total")
        self._complain(why)
        return None

    async def _use(self, connection: Connection) -> None:
        """Until it is lost; and a while longer if it was of little use."""
        began = self._reactor.seconds()
        if self._connections:
            self._metrics.count("nats_reconnects_total")
        self._connections += 1
        self.connection, self.why = connection, ""
        self._learn(connection)
        self.log.info("NATS: connected to {server}", server=str(connection.server), attrs={"context": "nats"})
        try:
            self._came(connection)
            while self.connection is connection:
                await self._ended
        except CancelledError:
            self._forget("stopped")
            await self._close(connection)
            raise
        lasted = self._reactor.seconds() - began
        self._pause.lasted(lasted)
        if lasted < GOOD:
            await self._pause.wait()

    async def _close(self, connection: Connection | None) -> None:
        if connection is not None:
            await Deferred.fromFuture(self._loop.create_task(connection.close()))

    def _learn(self, connection: Connection) -> None:
        self._pool.learn(connection.server, connection.told.get("connect_urls") or ())

    def _forget(self, why: str) -> None:
        self.connection = None
        if not self._stopped:
            self._complain(why)
        self.why = why
        self._went(why)
        ended, self._ended = self._ended, Deferred()
        ended.callback(None)

    def _complain(self, why: str) -> None:
        if why != self.why:
            self._warn(why)
        self.why = why

    def _warn(self, text: str) -> None:
        self.log.warn("NATS: {text}", text=text, attrs={"context": "nats"})
