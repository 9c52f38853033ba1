"""The connection to one master: it comes back by itself, and what is sent through it meets a server that is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import uniform
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from anycable_tx.redis.address import Host
from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.dialer import Dialer, Facts
from anycable_tx.redis.connection import MAX_PENDING, REPLY_LIMIT, Connection

__all__ = ["GRACE", "Master", "Pause"]

#: So many seconds after a loss commands still wait for the connection to come back.
GRACE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: A connection that lasted so many seconds was a good one: the next loss is not part of the same trouble.
_GOOD = 5.0


class Pause:
    """How long to wait before the next attempt: doubling from 0.1 to 5 seconds, with jitter."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._next = _FIRST_PAUSE
        self._waiting: Deferred[None] | None = None

    def reset(self) -> None:
        """All is well again."""
        self._next = _FIRST_PAUSE

    async def wait(self) -> None:
        """Wait as long as it is time for, or until ``skip``."""
        seconds = uniform(self._next / 2, self._next)
        self._next = min(2 * self._next, _LONGEST_PAUSE)
        waiting: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, waiting.callback, None)
        self._waiting = waiting
        try:
            await waiting
        finally:
            self._waiting = None
            if timer.active():
                timer.cancel()

    def skip(self) -> None:
        """Do not wait any longer: something changed."""
        self.reset()
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)


class Master:
    """Keeps one connection to whichever server *locate* names; *accept* may refuse it by raising RedisUnavailable.

    *up* and *down* are told when it is there, and no longer.
    """

    log = Logger()

    def __init__(
        self,
        dialer: Dialer,
        locate: Callable[[], Awaitable[Host]],
        *,
        keepalive: float,
        accept: Callable[[Host, Facts], None] = lambda host, facts: None,
        up: Callable[[], None] = lambda: None,
        down: Callable[[], None] = lambda: None,
    ) -> None:
        self._dialer = dialer
        self._reactor = dialer.reactor
        self._locate = locate
        self._accept = accept
        self._keepalive = keepalive
        self._up, self._down = up, down
        self._pause = Pause(self._reactor)
        self._running: Deferred[None] | None = None
        self._timer: Any = None
        self._waiting: list[Deferred[None]] = []
        self._since = 0.0  # when the outage began
        self.connection: Connection | None = None
        self.host: Host | None = None
        self.run_id = ""
        self.why = "not connected yet"

    def start(self) -> None:
        """Begin to connect."""
        self._since = self._reactor.seconds()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._ended)

    def stop(self) -> None:
        """Close the connection; what waits fails."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        if self.connection is not None:
            connection = self.connection
            self._lose("the client was stopped", announce=False)
            connection.close()
        self._release()

    def leave(self, why: str) -> None:
        """Give up the connection, if there is one, and look for the master again at once."""
        self._pause.skip()
        if self.connection is not None:
            self.connection.abort(why)

    def ready(self, within: float) -> Deferred[None]:
        """Fires when there is a connection, or after so many seconds without one."""
        waiting: Deferred[None] = Deferred()
        if self.connection is not None or within <= 0:
            waiting.callback(None)
            return waiting
        self._waiting.append(waiting)
        timer = self._reactor.callLater(within, self._give_up, waiting)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            return result

        return waiting.addBoth(over)

    async def send(self, *commands: tuple[Arg, ...]) -> list[Any]:
        """Their answers, a RedisError standing in an answer's place. Raises RedisUnavailable."""
        if self.connection is None:
            if len(self._waiting) >= MAX_PENDING:
                self._dialer.metrics.count("redis_refused_commands_total", len(commands), reason="too_many_waiting")
                raise RedisUnavailable(self.why)
            await self.ready(self._since + GRACE - self._reactor.seconds())
            if self.connection is None:
                self._dialer.metrics.count("redis_refused_commands_total", len(commands), reason="not_connected")
                raise RedisUnavailable(self.why)
        connection = self.connection
        answers = await connection.send(*commands)
        for answer in answers:
            # An older server wraps it when a script met it.
            if isinstance(answer, RedisError) and "READONLY" in str(answer):
                connection.abort("it is a replica now")
                raise RedisUnavailable(f"{self.host} is a replica now")
        return answers

    async def _run(self) -> None:
        while True:
            try:
                host = await self._locate()
                connection = await self._dialer.open(host)
                try:
                    facts = await self._greet(host, connection)
                except BaseException:
                    connection.abort("it is not what was looked for")
                    raise
            except (RedisUnavailable, RedisError) as e:
                if str(e) != self.why:
                    self.log.warn("Redis: {why}", why=str(e), attrs={"context": "redis"})
                self.why = str(e)
                await self._pause.wait()
                continue
            began = self._reactor.seconds()
            self._set(host, connection, facts)
            why = await connection.ended()
            if self._reactor.seconds() - began >= _GOOD:
                self._pause.reset()
            self._lose(f"{host}: {why}")
            await self._pause.wait()

    async def _greet(self, host: Host, connection: Connection) -> Facts:
        facts = await self._dialer.ask_facts(connection)
        if facts.loading:
            raise RedisUnavailable(f"{host} is loading its data")
        self._accept(host, facts)
        return facts

    def _set(self, host: Host, connection: Connection, facts: Facts) -> None:
        if self.host is not None:
            self._dialer.metrics.count("redis_reconnects_total", reason="main")
        self.host, self.connection, self.run_id, self.why = host, connection, facts.run_id, ""
        self._schedule_keepalive()
        self._up()
        self._release()

    def _lose(self, why: str, announce: bool = True) -> None:
        self.connection, self.run_id, self.why = None, "", why
        self._since = self._reactor.seconds()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if announce:
            self.log.warn("Redis: lost {why}", why=why, attrs={"context": "redis"})
            self._down()

    def _schedule_keepalive(self) -> None:
        self._timer = self._reactor.callLater(self._keepalive, self._check)

    def _check(self) -> None:
        self._timer = None
        assert self.connection is not None
        checking = Deferred.fromCoroutine(self._check_role(self.connection))
        checking.addErrback(self._ended)

    async def _check_role(self, connection: Connection) -> None:
        sent = self._reactor.seconds()
        try:
            time, role = await connection.send(("TIME",), ("ROLE",), limit=REPLY_LIMIT)
        except RedisUnavailable:
            return
        if isinstance(time, list):
            self._dialer.clock.read(time, sent, self._reactor.seconds())
        if isinstance(role, list) and role[0] != b"master":
            connection.abort("it is a replica now")
        elif connection is self.connection:
            self._schedule_keepalive()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._give_up(each)

    def _give_up(self, waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)

    def _ended(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._dialer.metrics.count("internal_errors_total")
            self.log.failure("Redis: unexpected error", failure=failure)
