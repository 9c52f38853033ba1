"""The client's side of TLS, for whatever connects to a server of somebody else's."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

__all__ = ["Unverified", "trust_in"]


def trust_in(certificates: Iterable[x509.Certificate]) -> Any:
    """The ``trustRoot`` of Twisted's TLS options that these authorities are."""
    found = map(crypto.X509.from_cryptography, certificates)
    return ssl.trustRootFromCertificates([ssl.Certificate(each) for each in found])


@implementer(IOpenSSLClientConnectionCreator)
class Unverified:
    """Encrypts by *context*, and believes whoever answers for *host*."""

    def __init__(self, host: str, context: SSL.Context) -> None:
        self._context = context
        self._name = b"" if isIPAddress(host) or isIPv6Address(host) else host.encode("idna")

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Called by Twisted for each connection."""
        connection = SSL.Connection(self._context, None)
        if self._name:
            connection.set_tlsext_host_name(self._name)
        return connection
