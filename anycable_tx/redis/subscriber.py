"""A connection in subscribed mode that comes back by itself, with all its channels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from anycable_tx.background import Background
from anycable_tx.pause import Pause
from anycable_tx.redis.address import Host
from anycable_tx.redis.api import RedisError, RedisUnavailable
from anycable_tx.redis.connection import REPLY_LIMIT, Connection
from anycable_tx.redis.dialer import Dialer

__all__ = ["ChannelSubscriber"]

#: So many channels are asked for with one command.
_BATCH = 256


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
        purpose: str = "subscriber",
    ) -> None:
        self._dialer = dialer
        self._reactor = dialer.reactor
        self._open = open
        self._receive = receive
        self._keepalive = keepalive
        self._up, self._down, self._stopped = up, down, stopped
        self._purpose = purpose
        self._background = Background(self._reactor, dialer.metrics)
        self._is_stopped = False
        self._pause = Pause(self._reactor)
        self._connection: Connection | None = None
        self._wanted: dict[bytes, None] = {}
        #: Channel -> how many commands about it are not answered yet. The last answer tells how things stand.
        self._unanswered: dict[bytes, int] = {}
        self._confirmed: set[bytes] = set()
        #: What is still to be confirmed before the connection is as good as the one before.
        self._missing: set[bytes] = set()
        self._joining: dict[bytes, list[_Wait]] = {}
        self._leaving: dict[bytes, list[_Wait]] = {}
        self._is_up = False
        self._connections = 0
        self._timer: Any = None
        self._why = ""

    def start(self) -> None:
        """Begin to connect."""
        self._background.spawn(self._run())

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed all of them; while there is no connection, when there is one again."""
        if self._is_stopped:
            raise RedisUnavailable("the subscriber was stopped")
        names = [name for name in dict.fromkeys(c.encode() for c in channels) if not self._is_confirmed(name)]
        if not names:
            return
        wait = _Wait(len(names))
        for name in names:
            self._joining.setdefault(name, []).append(wait)
        fresh = [name for name in names if name not in self._wanted]
        self._wanted.update(dict.fromkeys(fresh))
        self._tell(b"SUBSCRIBE", fresh)
        await wait.done
        if self._is_stopped:
            raise RedisUnavailable("the subscriber was stopped")

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Done when Redis has confirmed, or the connection is gone."""
        names = [name for name in dict.fromkeys(c.encode() for c in channels) if name in self._wanted]
        for name in names:
            del self._wanted[name]
            self._missing.discard(name)
            _release(self._joining.pop(name, ()))
        if self._connection is None or not names:
            return
        wait = _Wait(len(names))
        for name in names:
            self._leaving.setdefault(name, []).append(wait)
        self._tell(b"UNSUBSCRIBE", names)
        self._settle()
        await wait.done

    async def stop(self) -> None:
        """Close it for good."""
        self._is_stopped = True
        self._background.cancel_all()
        connection = self._connection
        self._forget()
        if connection is not None:
            connection.close()
        joining, self._joining = self._joining, {}
        for waits in joining.values():
            _release(waits)
        self._stopped(self)

    def move(self, why: str) -> None:
        """Leave the connection, which is of no use, and look for a better one at once."""
        self._pause.skip()
        if self._connection is not None:
            self._connection.abort(why)

    def keep_to(self, servers: set[Host]) -> None:
        """Leave the connection unless it is to one of *servers*."""
        if self._connection is None:
            self._pause.skip()
        elif self._connection.host not in servers:
            self.move("subscriptions belong elsewhere now")

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._open()
            except CancelledError:
                raise
            except Exception as e:
                if self._is_stopped:
                    return
                if not isinstance(e, (RedisUnavailable, RedisError)):  # a mistake; and no reason to give up
                    self._dialer.metrics.count("internal_errors_total")
                    self.log.failure("Redis: unexpected error")
                self._complain(str(e))
                await self._pause.wait()
                continue
            began = self._reactor.seconds()
            self._set(connection)
            why = await connection.ended()
            self._pause.lasted(self._reactor.seconds() - began)
            if self._is_stopped:
                return
            self._complain(f"the connection for subscriptions: {why}")
            self._lose()
            await self._pause.wait()

    def _set(self, connection: Connection) -> None:
        if self._connections:
            self._dialer.metrics.count("redis_reconnects_total", reason=self._purpose)
        self._connections += 1
        self._connection = connection
        connection.push = self._push
        self._timer = self._reactor.callLater(self._keepalive, self._ping)
        self._missing = set(self._wanted)
        self._tell(b"SUBSCRIBE", list(self._wanted))
        self._settle()

    def _lose(self) -> None:
        was_up, self._is_up = self._is_up, False
        self._forget()
        if was_up:
            self._down()

    def _forget(self) -> None:
        self._connection = None
        self._confirmed.clear()
        self._unanswered.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        leaving, self._leaving = self._leaving, {}
        for waits in leaving.values():
            _release(waits)

    def _tell(self, command: bytes, names: list[bytes]) -> None:
        if self._connection is None:
            return
        for begin in range(0, len(names), _BATCH):
            batch = names[begin : begin + _BATCH]
            for name in batch:
                self._unanswered[name] = self._unanswered.get(name, 0) + 1
            self._connection.tell(command, *batch)

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
        elif kind in (b"subscribe", b"unsubscribe") and channel in self._unanswered:
            self._answered(kind, channel)

    def _answered(self, kind: bytes, channel: bytes) -> None:
        self._unanswered[channel] -= 1
        if not self._unanswered[channel]:
            del self._unanswered[channel]
        if kind == b"unsubscribe":
            self._confirmed.discard(channel)
            waits = self._leaving[channel]
            waits.pop(0).one()
            if not waits:
                del self._leaving[channel]
            return
        self._confirmed.add(channel)
        if channel not in self._unanswered:
            self._missing.discard(channel)
            _release(self._joining.pop(channel, ()))
            self._settle()

    def _is_confirmed(self, channel: bytes) -> bool:
        return channel in self._confirmed and channel not in self._unanswered

    def _settle(self) -> None:
        """Say so when everything is as it was before the connection was lost."""
        if not self._is_up and not self._missing and self._connection is not None:
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


def _release(waits: Iterable[_Wait]) -> None:
    for wait in waits:
        wait.one()
