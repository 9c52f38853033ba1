"""The sentinels: who the master is, asked and listened to."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import TimeoutError as TookTooLong
from twisted.logger import Logger

from anycable_tx.background import Background, sleep
from anycable_tx.redis.address import Host
from anycable_tx.redis.api import RedisError, RedisUnavailable
from anycable_tx.redis.connection import Connection
from anycable_tx.redis.dialer import Dialer
from anycable_tx.redis.subscriber import ChannelSubscriber

__all__ = ["Sentinels"]

#: Seconds the sentinels have for their answers.
_PATIENCE = 2.0
_SWITCH = "+switch-master"


class Sentinels:
    """Knows the master called *name*. *moved* is told where it is whenever that was heard of, new or not.

    Of several answers the one of the latest election counts, so a sentinel that was cut off misleads nobody.
    Sentinels that the *hosts* know are asked as well.
    """

    log = Logger()

    def __init__(
        self, dialer: Dialer, hosts: tuple[Host, ...], name: str, *, interval: float, keepalive: float,
        moved: Callable[[Host], None],
    ) -> None:  # fmt: skip
        self._dialer = dialer
        self._name = name
        self._interval = interval
        self._keepalive = keepalive
        self._moved = moved
        self._background = Background(dialer.reactor, dialer.metrics)
        self._listeners: dict[Host, ChannelSubscriber] = {}
        self._hosts = list(hosts)

    def start(self) -> None:
        """Begin to listen, and to ask from time to time."""
        for host in self._hosts:
            self._listen(host)
        self._background.spawn(self._ask_for_ever())

    async def stop(self) -> None:
        """Leave the sentinels."""
        self._background.cancel_all()
        for listener in self._listeners.values():
            await listener.stop()
        self._listeners.clear()

    async def locate(self) -> Host:
        """Where the master is. Raises RedisUnavailable when no sentinel knows."""
        answers: list[tuple[int, Host]] = []
        problems: list[str] = []
        asking = DeferredList([Deferred.fromCoroutine(self._ask(h, answers, problems)) for h in self._hosts])
        try:
            await asking.addTimeout(_PATIENCE, self._dialer.reactor)
        except TookTooLong:
            problems.append(f"no answer within {_PATIENCE:g} s")
        if not answers:
            raise RedisUnavailable(f"no sentinel knows a master {self._name!r}: {'; '.join(sorted(problems))}")
        return max(answers)[1]

    async def _ask(self, host: Host, answers: list[tuple[int, Host]], problems: list[str]) -> None:
        try:
            connection = await self._dialer.open(host)
            try:
                master, others = await connection.send(
                    ("SENTINEL", "MASTER", self._name), ("SENTINEL", "SENTINELS", self._name)
                )
            finally:
                connection.close()
        except RedisUnavailable as e:
            problems.append(str(e))
            return
        if isinstance(master, RedisError):
            problems.append(f"{host}: {master}")
            return
        facts = _pairs(master)
        answers.append((int(facts.get("config-epoch", "0")), Host(facts["ip"], int(facts["port"]))))
        if isinstance(others, list):
            for other in map(_pairs, others):
                self._learn(Host(other["ip"], int(other["port"])))

    def _learn(self, host: Host) -> None:
        # A sentinel may know others by addresses of its own network; those that cannot be reached do no harm.
        if host not in self._hosts and host.name and len(self._hosts) < 16:
            self._hosts.append(host)
            self._listen(host)

    def _listen(self, host: Host) -> None:
        async def open() -> Connection:
            return await self._dialer.open(host)

        listener = self._listeners[host] = ChannelSubscriber(
            self._dialer, open, self._hear, keepalive=self._keepalive, up=_nothing, down=_nothing, purpose="sentinel"
        )  # fmt: skip
        listener.start()
        self._background.spawn(listener.subscribe([_SWITCH]))

    def _hear(self, channel: bytes, payload: bytes) -> None:
        """``+switch-master``: name, old address and port, new address and port."""
        words = payload.decode("utf-8", "replace").split(" ")
        if len(words) == 5 and words[0] == self._name and words[4].isdigit():
            host = Host(words[3], int(words[4]))
            self.log.info("Redis: the sentinels made {host} the master", host=str(host), attrs={"context": "redis"})
            self._moved(host)

    async def _ask_for_ever(self) -> None:
        while True:
            await sleep(self._dialer.reactor, self._interval)
            try:
                host = await self.locate()
            except RedisUnavailable as e:
                self.log.warn("Redis: {why}", why=str(e), attrs={"context": "redis"})
            else:
                self._moved(host)


def _pairs(flat: list[Any]) -> dict[str, str]:
    words = [word.decode("utf-8", "replace") for word in flat]
    return dict(zip(words[::2], words[1::2], strict=False))


def _nothing() -> None:
    pass
