"""A connection in subscribed mode that comes back by itself, with all its channels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from anycable_tx.redis.api import RedisError, RedisUnavailable
from anycable_tx.redis.dialer import Dialer
from anycable_tx.redis.master import Pause
from anycable_tx.redis.connection import REPLY_LIMIT, Connection

__all__ = ["ChannelSubscriber"]

#: So many channels are asked for with one command.
_BATCH = 256
_GOOD = 5.0


class ChannelSubscriber:
    """``Subscriber`` on a connection that *open* makes; see ``Redis.subscriber`` for the callbacks."""

    log = Logger()

    def __init__(
        self,
        dialer: Dialer,
        open: Callable[[], Awaitable[Connection]],
        receive: Callable[[bytes, bytes], None],
        *,
        keepalive: float,
        up: Callable[[], None],
        down: Callable[[], None],
        stopped: Callable[[ChannelSubscriber], None] = lambda subscriber: None,
    ) -> None:
        self._dialer = dialer
        self._reactor = dialer.reactor
        self._open = open
        self._receive = receive
        self._keepalive = keepalive
        self._up, self._down, self._stopped = up, down, stopped
        self._pause = Pause(self._reactor)
        self._connection: Connection | None = None
        self._wanted: dict[bytes, None] = {}
        self._confirmed: set[bytes] = set()
        #: Who waits for a channel to be confirmed, or (in ``_leaving``) for the confirmation that it is left.
        self._joining: dict[bytes, list[_Wait]] = {}
        self._leaving: dict[bytes, list[_Wait]] = {}
        self._is_up = False
        self._connections = 0
        self._timer: Any = None
        self._why = ""
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._report)

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed all of them; while there is no connection, when there is one again."""
        names = [channel.encode() for channel in channels]
        missing = [name for name in dict.fromkeys(names) if name not in self._confirmed or name in self._leaving]
        if not missing:
            return
        wait = _Wait(len(missing))
        for name in missing:
            self._joining.setdefault(name, []).append(wait)
        fresh = [name for name in missing if name not in self._wanted]
        self._wanted.update(dict.fromkeys(missing))
        self._tell(b"SUBSCRIBE", fresh)
        await wait.done

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed, or the connection is gone."""
        names = [name for name in dict.fromkeys(c.encode() for c in channels) if name in self._wanted]
        for name in names:
            del self._wanted[name]
            for wait in self._joining.pop(name, ()):
                wait.one()
        if self._connection is None or not names:
            return
        wait = _Wait(len(names))
        for name in names:
            self._leaving.setdefault(name, []).append(wait)
        self._tell(b"UNSUBSCRIBE", names)
        await wait.done

    async def stop(self) -> None:
        """Close it for good."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        connection = self._connection
        self._lose(announce=False)
        if connection is not None:
            connection.close()
        joining, self._joining = self._joining, {}
        for waits in joining.values():
            for wait in waits:
                wait.one()
        self._stopped(self)

    def move(self, why: str) -> None:
        """Leave the connection and look for a better one at once."""
        self._pause.skip()
        if self._connection is not None:
            self._connection.abort(why)

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._open()
            except (RedisUnavailable, RedisError) as e:
                self._complain(str(e))
                await self._pause.wait()
                continue
            began = self._reactor.seconds()
            self._set(connection)
            why = await connection.ended()
            if self._reactor.seconds() - began >= _GOOD:
                self._pause.reset()
            self._complain(f"the connection for subscriptions: {why}")
            self._lose()
            await self._pause.wait()

    def _set(self, connection: Connection) -> None:
        if self._connections:
            self._dialer.metrics.count("redis_reconnects_total", reason="subscriber")
        self._connections += 1
        self._connection = connection
        connection.push = self._push
        self._timer = self._reactor.callLater(self._keepalive, self._ping)
        self._tell(b"SUBSCRIBE", list(self._wanted))
        self._settle()

    def _lose(self, announce: bool = True) -> None:
        self._connection = None
        self._confirmed.clear()
        leaving, self._leaving = self._leaving, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        was_up, self._is_up = self._is_up, False
        if was_up and announce:
            self._down()
        for waits in leaving.values():
            for wait in waits:
                wait.one()

    def _tell(self, command: bytes, names: list[bytes]) -> None:
        if self._connection is None:
            return
        for begin in range(0, len(names), _BATCH):
            self._connection.tell(command, *names[begin : begin + _BATCH])

    def _push(self, answer: Any) -> None:
        if not isinstance(answer, list) or len(answer) != 3:
            if isinstance(answer, RedisError) and self._connection is not None:
                self._connection.abort(str(answer))
            return  # a pong
        kind, channel, payload = answer
        if kind == b"message":
            try:
                self._receive(channel, payload)
            except Exception:
                self._dialer.metrics.count("internal_errors_total")
                self.log.failure("Redis: unexpected error in a receiver")
        elif kind == b"subscribe":
            self._confirmed.add(channel)
            for wait in self._joining.pop(channel, ()):
                wait.one()
            self._settle()
        elif kind == b"unsubscribe" and channel is not None:
            self._confirmed.discard(channel)
            waits = self._leaving.get(channel)
            if waits:
                waits.pop(0).one()
                if not waits:
                    del self._leaving[channel]

    def _settle(self) -> None:
        if not self._is_up and self._connection is not None and len(self._confirmed) >= len(self._wanted):
            self._is_up = True
            self._why = ""
            self._up()

    def _ping(self) -> None:
        assert self._connection is not None
        self._connection.tell(b"PING")
        self._timer = self._reactor.callLater(REPLY_LIMIT, self._check, self._reactor.seconds())

    def _check(self, asked: float) -> None:
        assert self._connection is not None
        if self._connection.heard < asked:
            self._timer = None
            self._dialer.metrics.count("redis_stalls_total")
            self._connection.abort(f"no answer for {REPLY_LIMIT:g} s")
        else:
            self._timer = self._reactor.callLater(max(0.0, self._keepalive - REPLY_LIMIT), self._ping)

    def _complain(self, why: str) -> None:
        if why != self._why:
            self.log.warn("Redis: {why}", why=why, attrs={"context": "redis"})
        self._why = why

    def _report(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._dialer.metrics.count("internal_errors_total")
            self.log.failure("Redis: unexpected error", failure=failure)


class _Wait:
    """Fires when so many things have happened."""

    def __init__(self, missing: int) -> None:
        self._missing = missing
        self.done: Deferred[None] = Deferred()

    def one(self) -> None:
        """One of them has happened."""
        self._missing -= 1
        if not self._missing and not self.done.called:
            self.done.callback(None)
