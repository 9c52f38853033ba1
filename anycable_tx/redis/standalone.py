"""One master that has everything: at a fixed address, or wherever the sentinels say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from anycable_tx.redis.address import Host
from anycable_tx.redis.api import Arg, RedisUnavailable
from anycable_tx.redis.connection import Connection
from anycable_tx.redis.dialer import Dialer, Facts
from anycable_tx.redis.master import Master

__all__ = ["Standalone"]


class Standalone:
    """Sends everything to one Master.

    *cluster* is called with the host when that turns out to be a node of a cluster: then another kind of client is
    needed. *moved* is told when the master is another server than before: subscriptions belong there.
    """

    def __init__(
        self,
        dialer: Dialer,
        locate: Callable[[], Awaitable[Host]],
        *,
        keepalive: float,
        up: Callable[[], None],
        down: Callable[[], None],
        moved: Callable[[set[Host]], None],
        cluster: Callable[[Host], None],
    ) -> None:
        self._dialer = dialer
        self._locate = locate
        self._cluster = cluster
        self._up, self._moved = up, moved
        self._master = Master(
            dialer, locate, keepalive=keepalive, accept=self._accept, up=self._connected, down=down
        )  # fmt: skip

    def start(self) -> None:
        """Begin to connect."""
        self._master.start()

    def stop(self) -> None:
        """Close the connection."""
        self._master.stop()

    def look_again(self, host: Host) -> None:
        """The master is said to be *host* now."""
        if self._master.host != host or self._master.connection is None:
            self._master.leave(f"the master is {host} now")

    async def ready(self, within: float) -> None:
        """Wait until all is well, at most so many seconds."""
        await self._master.ready(within)

    def master(self, key: str) -> Master:
        """Who serves *key*."""
        return self._master

    async def send(self, key: str, *commands: tuple[Arg, ...]) -> list[Any]:
        """Their answers, a RedisError standing in an answer's place. Raises RedisUnavailable."""
        return await self._master.send(*commands)

    def problem(self) -> str:
        """Why nothing can be asked now; '' when all is well."""
        return self._master.why

    async def open_for_subscriptions(self) -> Connection:
        """A connection to the master. Raises RedisUnavailable."""
        host = await self._locate()
        connection = await self._dialer.open(host)
        try:
            role = (await self._dialer.ask_facts(connection)).role
            if role != "master":
                raise RedisUnavailable(f"{host} is no master")
        except BaseException:
            connection.abort("it is of no use")
            raise
        return connection

    def _accept(self, host: Host, facts: Facts) -> None:
        if facts.cluster:
            self._cluster(host)
            raise RedisUnavailable("it is a node of a cluster")

    def _connected(self) -> None:
        if self._master.host is not None:
            self._moved({self._master.host})
        self._up()
