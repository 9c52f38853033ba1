"""New connections: reaching a server, logging in, and asking it who it is."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError
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
from anycable_tx.redis.connection import Connection
from anycable_tx.redis.server_clock import ServerClock
from anycable_tx.rpc.http_tls import Secured

__all__ = ["Dialer", "Facts"]


@dataclass(frozen=True)
class Facts:
    """What a server says about itself; ``role`` is ``master``, ``slave`` or ``sentinel``."""

    run_id: str
    role: str
    loading: bool
    cluster: bool


@dataclass(frozen=True)
class Dialer:
    """Opens connections, within *timeout* seconds. *tls* gives the client's side of TLS to a host; None: no TLS."""

    reactor: Any
    metrics: Metrics
    clock: ServerClock
    login: Login
    timeout: float
    tls: Callable[[str], IOpenSSLClientConnectionCreator] | None = None

    async def open(self, host: Host) -> Connection:
        """A connection that is logged in. Raises RedisUnavailable naming *host* and what is wrong."""
        try:
            connection = await self._connect(host)
            try:
                await self._log_in(connection)
            except BaseException:
                connection.abort("the login failed")
                raise
        except (RedisUnavailable, RedisError) as e:
            self.metrics.count("redis_failed_attempts_total")
            raise RedisUnavailable(f"{host}: {e}") from e
        return connection

    async def ask_facts(self, connection: Connection) -> Facts:
        """Who answers; sets the clock. Raises RedisUnavailable, or RedisError when it does not let us in."""
        sent = self.reactor.seconds()
        info, role, time = await connection.send(("INFO",), ("ROLE",), ("TIME",))
        for answer in (info, role, time):
            # Any other error says that we may not ask this, or that the server is busy.
            if isinstance(answer, RedisError) and answer.kind in ("NOAUTH", "LOADING", "MASTERDOWN", "DENIED"):
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

    async def _connect(self, host: Host) -> Connection:
        factory = Factory.forProtocol(lambda: Connection(self.reactor, self.metrics, host))
        factory.noisy = False
        too_long = False

        def give_up() -> None:
            nonlocal too_long
            too_long = True
            connecting.cancel()

        timer = self.reactor.callLater(self.timeout, give_up)
        try:
            connecting = self._endpoint(host).connect(factory)
            connection: Any = await connecting
        except CancelledError:
            if too_long:
                raise RedisUnavailable(f"no connection within {self.timeout:g} s") from None
            raise
        except Exception as e:
            why = f"no connection within {self.timeout:g} s" if too_long else _explain(e)
            raise RedisUnavailable(why) from e
        finally:
            if timer.active():
                timer.cancel()
        return connection  # type: ignore[no-any-return]

    async def _log_in(self, connection: Connection) -> None:
        login = self.login
        commands: list[tuple[Arg, ...]] = []
        if login.password is not None:
            commands.append(("AUTH", login.user, login.password) if login.user else ("AUTH", login.password))
        if login.client_name:
            commands.append(("CLIENT", "SETNAME", login.client_name))
        if login.db:
            commands.append(("SELECT", login.db))
        for answer in await connection.send(*commands):
            if isinstance(answer, RedisError):
                raise answer

    def _endpoint(self, host: Host) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint
        if not host.port:
            return UNIXClientEndpoint(self.reactor, host.name, timeout=self.timeout)
        if isIPAddress(host.name):
            endpoint = TCP4ClientEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        elif isIPv6Address(host.name):
            endpoint = TCP6ClientEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        else:
            endpoint = HostnameEndpoint(self.reactor, host.name, host.port, timeout=self.timeout)
        return endpoint if self.tls is None else Secured(endpoint, self.tls(host.name), self.reactor)


def _explain(e: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(e, SSL.Error) and e.args and isinstance(e.args[0], list):
        return ", ".join(str(reason) for *_, reason in e.args[0])
    if isinstance(e, VerificationError):
        return "its certificate is not for this name"
    return str(e) or type(e).__name__
