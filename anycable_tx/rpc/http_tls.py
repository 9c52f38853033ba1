"""TLS to an HTTP backend: whom to trust, and connections that are handed over once they are secure."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from anycable_tx.errors import ConfigurationError
from anycable_tx.rpc.authorities import read_authorities
from anycable_tx.tls import Unverified, trust_in

__all__ = ["Secured", "connection_creator"]


def connection_creator(settings: Mapping[str, Any], host: str) -> IOpenSSLClientConnectionCreator:
    """Makes the client's side of TLS 1.2 or newer to *host*, which has to show a certificate for that name.

    From *settings*: ``rpc_tls_root_ca`` (a file, or PEM text; '' for the system's authorities), and
    ``rpc_tls_verify``, which turns every check off (RA-9). Raises ConfigurationError for authorities that cannot
    be read, and for a *host* no certificate can name.
    """
    if not settings["rpc_tls_verify"]:
        return Unverified(host, ssl.CertificateOptions(verify=False).getContext())
    given = settings["rpc_tls_root_ca"]
    trust = trust_in(read_authorities(given)[1]) if given else ssl.platformTrust()
    try:
        return ssl.optionsForClientTLS(host, trustRoot=trust)
    except UnicodeError as e:
        raise ConfigurationError(f"rpc_host: no certificate can be for the name {host!r}: {e}") from None


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Holds the place of the real protocol until the handshake is over."""

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred(lambda _: self._abort())

    def handshakeCompleted(self) -> None:
        self.over.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.over.called:
            self.over.errback(reason)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]


@implementer(IStreamClientEndpoint)
class Secured:
    """An endpoint that speaks TLS over *endpoint*.

    Twisted's own calls a connection made before its handshake, and would take what is written then; here nobody
    can write before the peer was checked. So a failure of the handshake is a failure to connect.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, creator: IOpenSSLClientConnectionCreator, reactor: Any
    ) -> None:
        self._endpoint = endpoint
        self._creator = creator
        self._reactor = reactor

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """A Deferred of the protocol; cancelling it ends the attempt."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        waiting = Factory.forProtocol(_Handshake)
        waiting.noisy = False
        # With a clock given, the one of the global reactor is not asked for.
        secured = TLSMemoryBIOFactory(self._creator, True, waiting, clock=self._reactor)
        transport: Any = await self._endpoint.connect(secured)
        await transport.wrappedProtocol.over
        protocol: Any = factory.buildProtocol(transport.getPeer())
        transport.wrappedProtocol = protocol
        protocol.makeConnection(transport)
        return protocol
