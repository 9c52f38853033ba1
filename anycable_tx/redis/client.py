"""The shared client: one for each node, whatever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from twisted.logger import Logger

from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.redis.address import Host, parse
from anycable_tx.redis.api import Arg, Link, Redis, RedisError, Script, Subscriber
from anycable_tx.redis.cluster import Cluster
from anycable_tx.redis.connection import Connection
from anycable_tx.redis.dialer import Dialer
from anycable_tx.redis.link import OwnLink
from anycable_tx.redis.master import NotSent
from anycable_tx.redis.sentinel import Sentinels
from anycable_tx.redis.server_clock import ServerClock
from anycable_tx.redis.standalone import Standalone
from anycable_tx.redis.subscriber import ChannelSubscriber
from anycable_tx.redis.tls import client_side

__all__ = ["Client", "shared"]

#: So many seconds a start waits for the connections.
_PATIENCE = 5.0

_clients: WeakKeyDictionary[Any, Client] = WeakKeyDictionary()


def shared(context: ProviderContext) -> Redis:
    """The client of ``context.node``. Raises ConfigurationError."""
    client = _clients.get(context.node)
    if client is None:
        client = _clients[context.node] = Client(context.settings, context.reactor, context.metrics)
    return client


class Client:
    """``Redis``, as *settings* say. Raises ConfigurationError. ``log_name`` is where it is, without secrets."""

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> None:
        address = parse(settings)
        metrics.has("redis")
        self._reactor = reactor
        self._keepalive: float = settings["redis_keepalive_interval"]
        self._clock = ServerClock(reactor)
        tls = None
        if address.tls or address.sentinel_tls:
            tls = client_side(settings, settings["redis_tls_verify"] and not address.skip_verify)
        self._dialer = Dialer(
            reactor, metrics, self._clock, address.login, address.dial_timeout, tls if address.tls else None
        )  # fmt: skip
        self._users = 0
        self._been_up = False
        self._watchers: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._subscribers: dict[ChannelSubscriber, None] = {}
        self._sentinels: Sentinels | None = None
        if address.master:
            self._sentinels = Sentinels(
                replace(self._dialer, login=address.sentinel_login, tls=tls if address.sentinel_tls else None),
                address.sentinels, address.master, interval=settings["redis_sentinel_discovery_interval"],
                keepalive=self._keepalive, moved=self._look_again,
            )  # fmt: skip
        self._address = address
        self._topology = self._make_topology()
        self.log_name = address.log_name

    async def start(self) -> None:
        """Begin to connect, and wait up to five seconds for that."""
        self._users += 1
        if self._users == 1:
            if self._address.ignored:
                ignored = ", ".join(self._address.ignored)
                self.log.warn("redis_url: nobody knows {ignored}", ignored=ignored, attrs={"context": "redis"})
            if self._sentinels is not None:
                self._sentinels.start()
            self._topology.start()
        end = self._reactor.seconds() + _PATIENCE
        topology = None
        while topology is not self._topology:  # it may turn out to be a cluster
            topology = self._topology
            await topology.ready(end - self._reactor.seconds())

    async def stop(self) -> None:
        """Close everything. Counted: the last of those that started it stops it."""
        self._users -= 1
        if self._users:
            return
        for subscriber in list(self._subscribers):
            await subscriber.stop()
        if self._sentinels is not None:
            await self._sentinels.stop()
        self._topology.stop()
        self._been_up = False
        # It may be started again.
        self._topology = self._make_topology()

    async def execute(self, key: str, *args: Arg) -> Any:
        """The answer to one command. Raises RedisUnavailable or RedisError."""
        (answer,) = await self._send(key, args)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    async def pipeline(self, key: str, commands: Iterable[tuple[Arg, ...]]) -> list[Any]:
        """The answers to several commands in one round trip; a RedisError stands in the place of its answer."""
        return await self._send(key, *commands)

    async def run(self, script: Script, keys: list[str], *args: Arg) -> Any:
        """Run *script*: EVALSHA, or EVAL once where it is not known."""
        try:
            return await self.execute(keys[0], "EVALSHA", script.sha, len(keys), *keys, *args)
        except RedisError as e:
            if e.kind != "NOSCRIPT":
                raise
        return await self.execute(keys[0], "EVAL", script.source, len(keys), *keys, *args)

    def generation(self, key: str) -> str:
        """The ``run_id`` of the master that serves *key*, as read on connecting; '' while there is none."""
        try:
            return self._topology.master(key).run_id
        except NotSent:
            return ""

    def now(self) -> float:
        """The server's Unix time in seconds, estimated; never goes back."""
        return self._clock.now()

    def problem(self) -> str:
        """Why nothing can be asked now, '' when all is well; for readiness."""
        problem = self._topology.problem()
        return f"Redis: {problem}" if problem else ""

    def watch(self, *, up: Callable[[], None], down: Callable[[], None]) -> None:
        """Call *down* when a master is lost and *up* when all are there again (not for the first time)."""
        self._watchers.append((up, down))

    async def link(self, key: str) -> Link:
        """A connection of one's own to the master of *key*. Raises RedisUnavailable."""
        master = self._topology.master(key)
        if master.host is None or master.connection is None:
            raise NotSent(master.why)
        return OwnLink(await self._dialer.open(master.host))

    def subscriber(
        self, receive: Callable[[bytes, bytes], None], *, up: Callable[[], None], down: Callable[[], None]
    ) -> Subscriber:
        """A connection for subscriptions; *receive* gets channel and payload of each message, in order."""
        subscriber = ChannelSubscriber(
            self._dialer, self._open, receive, keepalive=self._keepalive, up=up, down=down,
            stopped=lambda it: self._subscribers.pop(it, None),
        )  # fmt: skip
        self._subscribers[subscriber] = None
        subscriber.start()
        return subscriber

    async def _send(self, key: str, *commands: tuple[Arg, ...]) -> list[Any]:
        topology = self._topology
        try:
            return await topology.send(key, *commands)
        except NotSent:
            if topology is self._topology:
                raise
        return await self._topology.send(key, *commands)

    def _make_topology(self) -> Standalone | Cluster:
        if len(self._address.hosts) > 1 and not self._address.master:
            return self._make_cluster(self._address.hosts)
        return Standalone(
            self._dialer, self._locate, keepalive=self._keepalive, up=self._came, down=self._went, moved=self._moved,
            cluster=self._found_cluster,
        )  # fmt: skip

    def _make_cluster(self, seeds: tuple[Host, ...]) -> Cluster:
        return Cluster(
            self._dialer, seeds, keepalive=self._keepalive, up=self._came, down=self._went, moved=self._moved
        )

    async def _locate(self) -> Host:
        return self._address.hosts[0] if self._sentinels is None else await self._sentinels.locate()

    async def _open(self) -> Connection:
        return await self._topology.open_for_subscriptions()

    def _look_again(self, host: Host) -> None:
        if isinstance(self._topology, Standalone):
            self._topology.look_again(host)

    def _found_cluster(self, host: Host) -> None:
        """The one server we were told of is a node of a cluster."""
        if isinstance(self._topology, Standalone) and self._users:
            standalone, self._topology = self._topology, self._make_cluster((host,))
            self.log.info("Redis: {host} is a node of a cluster", host=str(host), attrs={"context": "redis"})
            self._topology.start()
            standalone.stop()

    def _moved(self, hosts: set[Host]) -> None:
        for subscriber in list(self._subscribers):
            subscriber.keep_to(hosts)

    def _came(self) -> None:
        if self._been_up:
            for up, _ in self._watchers:
                up()
        self._been_up = True

    def _went(self) -> None:
        for _, down in self._watchers:
            down()
