"""The connection to one master: it comes back by itself, and it is left when the server is no master any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from anycable_tx.background import Background
from anycable_tx.pause import Pause
from anycable_tx.redis.address import Host
from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.connection import MAX_PENDING, Connection
from anycable_tx.redis.dialer import Dialer, Facts

__all__ = ["GRACE", "Master", "NotSent"]

#: For so many seconds after a loss commands wait for the connection to come back.
GRACE = 1.0


class NotSent(RedisUnavailable):
    """There was no connection: what was asked has certainly not been done."""


class Master:
    """Keeps one connection to the server *locate* names, as long as that is a master.

    *accept* may refuse it as well, by raising RedisUnavailable. *up* and *down* are told when the connection is
    there, and no longer. *keepalive*: how often, in seconds, an idle connection is tried.
    """

    log = Logger()

    def __init__(
        self,
        dialer: Dialer,
        locate: Callable[[], Awaitable[Host]],
        *,
        keepalive: float,
        accept: Callable[[Host, Facts], None],
        up: Callable[[], None],
        down: Callable[[], None],
    ) -> None:
        self._dialer = dialer
        self._metrics = dialer.metrics
        self._reactor = dialer.reactor
        self._locate = locate
        self._accept = accept
        self._keepalive = keepalive
        self._up, self._down = up, down
        self._pause = Pause(self._reactor)
        self._background = Background(self._reactor, self._metrics)
        self._timer: Any = None
        self._waiting: dict[Deferred[None], None] = {}
        self._since = 0.0  # when the outage began
        self._stopped = False
        self.connection: Connection | None = None
        #: The server that is, or was, connected to.
        self.host: Host | None = None
        self.run_id = ""
        self.why = "not connected yet"

    def start(self) -> None:
        """Begin to connect."""
        self._since = self._reactor.seconds()
        self._background.spawn(self._run())

    def stop(self) -> None:
        """Close the connection; what waits fails."""
        self._stopped = True
        self._background.cancel_all()
        connection = self.connection
        self._forget("the client was stopped")
        if connection is not None:
            connection.close()
        self._release()

    def leave(self, why: str) -> None:
        """Give up the connection, if there is one, and look for the master again at once."""
        self._pause.skip()
        if self.connection is not None:
            self.connection.abort(why)

    async def ready(self, within: float) -> None:
        """Wait until there is a connection, at most so many seconds."""
        if self.connection is not None or within <= 0 or self._stopped:
            return
        waiting: Deferred[None] = Deferred()
        self._waiting[waiting] = None
        timer = self._reactor.callLater(within, waiting.callback, None)
        try:
            await waiting
        finally:
            self._waiting.pop(waiting, None)
            if timer.active():
                timer.cancel()

    async def send(self, *commands: tuple[Arg, ...]) -> list[Any]:
        """Their answers, a RedisError standing in an answer's place. Raises RedisUnavailable."""
        if self.connection is None:
            await self._wait(len(commands))
        connection = self.connection
        if connection is None:
            self._metrics.count("redis_refused_commands_total", len(commands), reason="not_connected")
            raise NotSent(self.why)
        answers = await connection.send(*commands)
        for answer in answers:
            # Redis 6 wraps it when a script met it.
            if isinstance(answer, RedisError) and "READONLY" in str(answer):
                connection.abort("it is a replica now")
                raise RedisUnavailable(f"{connection.host} is a replica now")
        return answers

    async def _wait(self, amount: int) -> None:
        if len(self._waiting) >= MAX_PENDING:
            self._metrics.count("redis_refused_commands_total", amount, reason="too_many_waiting")
            raise NotSent(self.why)
        await self.ready(self._since + GRACE - self._reactor.seconds())

    async def _run(self) -> None:
        while True:
            try:
                connection, facts = await self._connect()
            except CancelledError:
                raise
            except Exception as e:
                if self._stopped:
                    return
                if not isinstance(e, RedisUnavailable):  # a mistake; and no reason to give up
                    self._metrics.count("internal_errors_total")
                    self.log.failure("Redis: unexpected error")
                self._complain(str(e))
                await self._pause.wait()
                continue
            began = self._reactor.seconds()
            self._set(connection, facts)
            why = await connection.ended()
            self._pause.lasted(self._reactor.seconds() - began)
            if self._stopped:
                return
            self._forget(f"{connection.host}: {why}")
            self.log.warn("Redis: {why}", why=self.why, attrs={"context": "redis"})
            self._down()
            await self._pause.wait()

    async def _connect(self) -> tuple[Connection, Facts]:
        host = await self._locate()
        connection = await self._dialer.open(host)
        try:
            facts = await self._dialer.ask_facts(connection)
            if facts.loading:
                raise RedisUnavailable("it is loading its data")
            self._accept(host, facts)
            if facts.role != "master":
                raise RedisUnavailable(f"it is no master but a {facts.role.replace('slave', 'replica')}")
            if not connection.alive:
                raise RedisUnavailable("the connection was lost")
        except (RedisUnavailable, RedisError) as e:
            connection.abort("it is of no use")
            self._metrics.count("redis_failed_attempts_total")
            raise RedisUnavailable(f"{host}: {e}") from e
        except BaseException:
            connection.abort("the attempt was given up")
            raise
        return connection, facts

    def _complain(self, why: str) -> None:
        """Log each reason once, not each attempt."""
        if why != self.why:
            self.log.warn("Redis: {why}", why=why, attrs={"context": "redis"})
        self.why = why

    def _set(self, connection: Connection, facts: Facts) -> None:
        if self.host is not None:
            self._metrics.count("redis_reconnects_total", reason="main")
            self.log.info("Redis: connected to {host}", host=str(connection.host), attrs={"context": "redis"})
        self.host, self.connection, self.run_id, self.why = connection.host, connection, facts.run_id, ""
        self._timer = self._reactor.callLater(self._keepalive, self._check)
        self._up()
        self._release()

    def _forget(self, why: str) -> None:
        self.connection, self.run_id, self.why = None, "", why
        self._since = self._reactor.seconds()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self.connection is not None:
            self._background.spawn(self._check_role(self.connection))

    async def _check_role(self, connection: Connection) -> None:
        """The keepalive: any answer shows that it lives."""
        sent = self._reactor.seconds()
        try:
            time, role = await connection.send(("TIME",), ("ROLE",))
        except RedisUnavailable:
            return  # it was given up
        if isinstance(time, list):
            self._dialer.clock.read(time, sent, self._reactor.seconds())
        if isinstance(role, list) and role[0] != b"master":
            connection.abort("it is a replica now")
        elif connection is self.connection:
            self._timer = self._reactor.callLater(self._keepalive, self._check)

    def _release(self) -> None:
        """Those who wait go on, in their order."""
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if not each.called:
                each.callback(None)
