"""The shared client: one for each node, whatever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from twisted.logger import Logger

from anycable_tx.interfaces import ProviderContext
from anycable_tx.redis.address import Host, parse
from anycable_tx.redis.api import Arg, Link, Redis, RedisError, RedisUnavailable, Script, Subscriber
from anycable_tx.redis.dialer import Dialer
from anycable_tx.redis.link import OwnLink
from anycable_tx.redis.master import Master
from anycable_tx.redis.server_clock import ServerClock
from anycable_tx.redis.subscriber import ChannelSubscriber
from anycable_tx.redis.connection import Connection

__all__ = ["Client", "shared"]

#: So many seconds a start waits for the connection.
_PATIENCE = 5.0

_clients: WeakKeyDictionary[Any, Client] = WeakKeyDictionary()


def shared(context: ProviderContext) -> Redis:
    """The client of ``context.node``. Raises ConfigurationError."""
    client = _clients.get(context.node)
    if client is None:
        client = _clients[context.node] = Client(context.settings, context.reactor, context.metrics)
    return client


class Client:
    """``Redis`` as *settings* say. Raises ConfigurationError."""

    log = Logger()

    def __init__(self, settings: Any, reactor: Any, metrics: Any) -> None:
        address = parse(settings)
        self._users = 0
        self._keepalive = settings["redis_keepalive_interval"]
        self._clock = ServerClock(reactor)
        self._dialer = Dialer(reactor, metrics, self._clock, address.login, address.dial_timeout)
        self._host = address.hosts[0]
        self._master = Master(self._dialer, self._locate, keepalive=self._keepalive, up=self._came, down=self._went)
        self._watchers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._subscribers: set[ChannelSubscriber] = set()
        self._been_up = False
        self.log_name = address.log_name

    async def start(self) -> None:
        """Begin to connect, and wait up to five seconds for that."""
        self._users += 1
        if self._users == 1:
            self._master.start()
        await self._master.ready(_PATIENCE)

    async def stop(self) -> None:
        """Close everything. Counted: the last of those that started it stops it."""
        self._users -= 1
        if self._users:
            return
        for subscriber in list(self._subscribers):
            await subscriber.stop()
        self._master.stop()

    async def execute(self, key: str, *args: Arg) -> Any:
        """The answer to one command. Raises RedisUnavailable or RedisError."""
        (answer,) = await self._master.send(args)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    async def pipeline(self, key: str, commands: Iterable[tuple[Arg, ...]]) -> list[Any]:
        """The answers to several commands in one round trip; a RedisError stands in the place of its answer."""
        return await self._master.send(*commands)

    async def run(self, script: Script, keys: list[str], *args: Arg) -> Any:
        """Run *script*: EVALSHA, or EVAL once where it is not known."""
        key = keys[0] if keys else ""
        try:
            return await self.execute(key, "EVALSHA", script.sha, len(keys), *keys, *args)
        except RedisError as e:
            if e.kind != "NOSCRIPT":
                raise
        return await self.execute(key, "EVAL", script.source, len(keys), *keys, *args)

    def generation(self, key: str) -> str:
        """The ``run_id`` of the master that serves *key*, '' while there is none."""
        return self._master.run_id

    def now(self) -> float:
        """The server's Unix time in seconds, estimated; never goes back."""
        return self._clock.now()

    def problem(self) -> str:
        """Why nothing can be asked now, '' when all is well."""
        return f"Redis: {self._master.why}" if self._master.why else ""

    def watch(self, *, up: Callable[[], None], down: Callable[[], None]) -> None:
        """Call *down* when a master is lost and *up* when all are there again."""
        self._watchers.append((up, down))

    async def link(self, key: str) -> Link:
        """A connection of one's own to the master of *key*. Raises RedisUnavailable."""
        host = self._master.host
        if host is None or self._master.connection is None:
            raise RedisUnavailable(self._master.why)
        return OwnLink(await self._dialer.open(host))

    def subscriber(
        self, receive: Callable[[bytes, bytes], None], *, up: Callable[[], None], down: Callable[[], None]
    ) -> Subscriber:
        """A connection for subscriptions; *receive* gets channel and payload of each message, in order."""
        subscriber = ChannelSubscriber(
            self._dialer, self._open, receive, keepalive=self._keepalive, up=up, down=down,
            stopped=self._subscribers.discard,
        )  # fmt: skip
        self._subscribers.add(subscriber)
        subscriber.start()
        return subscriber

    async def _locate(self) -> Host:
        return self._host

    async def _open(self) -> Connection:
        return await self._dialer.open(self._host)

    def _came(self) -> None:
        if self._been_up:
            for up, _ in self._watchers:
                up()
        self._been_up = True

    def _went(self) -> None:
        for _, down in self._watchers:
            down()
