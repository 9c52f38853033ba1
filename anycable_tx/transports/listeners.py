"""The listening ports: one per number, WebSocket and HTTP on the main one, HTTP on the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFDSet

from anycable_tx.errors import ConfigurationError
from anycable_tx.transports.direct import DirectPort
from anycable_tx.transports.factory import CableFactory
from anycable_tx.transports.site import Sites

__all__ = ["Listeners", "direct_path_applies"]

BACKLOG = 4096


def direct_path_applies(settings: Mapping[str, Any], reactor: Any) -> bool:
    """Can frames be handed to sockets directly? Not through TLS, and only where it was measured: Linux."""
    return bool(
        settings["fast_path"]
        and not settings["ssl_cert"]
        and sys.platform == "linux"
        and IReactorFDSet.providedBy(reactor)
    )


class Certificate(ssl.ContextFactory):
    """The TLS context of all ports, for connections made from now on."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.load()

    def load(self) -> None:
        """Read the files. Raises ConfigurationError naming the one that cannot be used; then nothing changes."""
        self._context = tls_options(self._settings).getContext()

    def getContext(self) -> SSL.Context:
        """What a new connection uses; it keeps it whatever is loaded later."""
        return self._context


def tls_options(settings: Mapping[str, Any]) -> ssl.CertificateOptions:
    """TLS 1.2 or newer with the configured certificate. Raises ConfigurationError naming a file it cannot use."""
    try:
        key = "ssl_key"
        with open(settings["ssl_key"], "rb") as file:
            private = crypto.load_privatekey(crypto.FILETYPE_PEM, file.read())
        key = "ssl_cert"
        with open(settings["ssl_cert"], "rb") as file:
            pems = file.read().split(b"-----BEGIN CERTIFICATE-----")[1:]
        chain = [crypto.load_certificate(crypto.FILETYPE_PEM, b"-----BEGIN CERTIFICATE-----" + pem) for pem in pems]
        options = ssl.CertificateOptions(
            privateKey=private,
            certificate=chain[0],
            extraCertChain=chain[1:],
            raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
        )
        options.getContext()
    except (OSError, crypto.Error, SSL.Error, IndexError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not a usable PEM file"
        raise ConfigurationError(f"{key}: cannot use {settings[key]!r}: {reason}") from None
    return options


class Listeners:
    """Opens the ports, and closes them."""

    def __init__(self, settings: Mapping[str, Any], reactor: Any, factory: CableFactory, sites: Sites) -> None:
        self._settings = settings
        self._reactor = reactor
        self._factory = factory
        self._sites = sites
        self._ports: list[Any] = []
        self._certificate: Certificate | None = None

    def renew_certificate(self) -> None:
        """Read the certificate again, for new connections (CO-50). Raises ConfigurationError like ``open``."""
        if self._certificate is not None:
            self._certificate.load()

    def open(self) -> None:
        """Listen on every port that has something to serve. Raises ConfigurationError naming the address."""
        if self._settings["ssl_cert"]:
            self._certificate = Certificate(self._settings)
        main = self._settings["port"]
        self._listen(main, self._factory, direct=self._factory.direct)
        for port in self._sites.ports():
            if port != main:
                self._listen(port, self._sites.site_for(port), direct=False)

    def _listen(self, number: int, factory: Any, *, direct: bool) -> None:
        host = self._settings["host"]
        interface = "127.0.0.1" if host == "localhost" else host
        try:
            if direct:
                port = DirectPort(number, factory, BACKLOG, interface, self._reactor)
                port.startListening()
            elif self._certificate is not None:
                port = self._reactor.listenSSL(number, factory, self._certificate, BACKLOG, interface)
            else:
                port = self._reactor.listenTCP(number, factory, BACKLOG, interface)
        except (CannotListenError, OSError) as e:
            reason = getattr(e, "socketError", e)
            raise ConfigurationError(f"cannot listen on {host}:{number}: {reason}") from None
        self._ports.append(port)

    async def close(self) -> None:
        """Accept no connections and no upgrades any more; open connections stay."""
        self._factory.accepting = False
        ports, self._ports = self._ports, []
        for port in ports:
            closing = port.stopListening()
            if closing is not None:
                await closing
