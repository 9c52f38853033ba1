"""New connections: reaching a server, logging in, and asking it who it is."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from anycable_tx.metrics import Metrics
from anycable_tx.redis.address import Host, Login
from anycable_tx.redis.api import Arg, RedisError, RedisUnavailable
from anycable_tx.redis.server_clock import ServerClock
from anycable_tx.redis.connection import Connection
from anycable_tx.rpc.http_tls import Secured

__all__ = ["Dialer", "Facts"]


@dataclass(frozen=True)
class Facts:
    """What a server says about itself."""

    run_id: str
    role: str
    loading: bool
    cluster: bool


@dataclass(frozen=True)
class Dialer:
    """Opens connections. *tls* gives the client's side of TLS to a host; None: no TLS."""

    reactor: Any
    metrics: Metrics
    clock: ServerClock
    login: Login
    timeout: float
    tls: Callable[[str], IOpenSSLClientConnectionCreator] | None = None

    async def open(self, host: Host) -> Connection:
        """A connection that is logged in. Raises RedisUnavailable naming *host* and what is wrong."""
        factory = Factory.forProtocol(lambda: Connection(self.reactor, self.metrics))
        factory.noisy = False
        try:
            connecting: Deferred[Connection] = self._endpoint(host).connect(factory)
            connection = await connecting.addTimeout(self.timeout, self.reactor)
        except Exception as e:
            self.metrics.count("redis_failed_attempts_total")
            raise RedisUnavailable(f"{host}: {e or type(e).__name__}") from e
        try:
            await self._log_in(connection)
        except (RedisUnavailable, RedisError) as e:
            connection.abort("the login failed")
            self.metrics.count("redis_failed_attempts_total")
            raise RedisUnavailable(f"{host}: {e}") from e
        except BaseException:  # we are stopping
            connection.abort("the login was given up")
            raise
        return connection

    async def _log_in(self, connection: Connection) -> None:
        login = self.login
        commands: list[tuple[Arg, ...]] = []
        if login.password is not None:
            commands.append(("AUTH", login.user, login.password) if login.user else ("AUTH", login.password))
        if login.client_name:
            commands.append(("CLIENT", "SETNAME", login.client_name))
        if login.db:
            commands.append(("SELECT", login.db))
        if commands:
            for answer in await connection.send(*commands):
                if isinstance(answer, RedisError):
                    raise answer

    async def ask_facts(self, connection: Connection) -> Facts:
        """Who answers on *connection*; sets the clock. Raises RedisUnavailable, or RedisError if it does not know us."""
        sent = self.reactor.seconds()
        info, role, time = await connection.send(("INFO",), ("ROLE",), ("TIME",))
        for answer in (info, role, time):
            if isinstance(answer, RedisError) and answer.kind in ("NOAUTH", "LOADING", "MASTERDOWN"):
                raise answer
        if isinstance(time, list):
            self.clock.read(time, sent, self.reactor.seconds())
        lines = info.decode("utf-8", "replace").splitlines() if isinstance(info, bytes) else ()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return Facts(
            # Where we may not read it, each connection counts as a new server: that is safe.
            run_id=facts.get("run_id") or f"connection-{id(connection):x}-{sent:.6f}",
            role=role[0].decode() if isinstance(role, list) else facts.get("role", "master"),
            loading=facts.get("loading") == "1",
            cluster=facts.get("cluster_enabled") == "1",
        )

    def _endpoint(self, host: Host) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint
        if not host.port:
            endpoint = UNIXClientEndpoint(self.reactor, host.name, timeout=self.timeout)
        elif isIPAddress(host.name):
            endpoint = TCP4ClientEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        elif isIPv6Address(host.name):
            endpoint = TCP6ClientEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        else:
            endpoint = HostnameEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        if self.tls is not None and host.port:
            endpoint = Secured(endpoint, self.tls(host.name), self.reactor)
        return endpoint
