"""The listening ports: one per number, WebSocket and HTTP on the main one, HTTP on the others."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFDSet

from anycable_tx.errors import ConfigurationError
from anycable_tx.transports.direct import DirectPort
from anycable_tx.transports.factory import CableFactory
from anycable_tx.transports.site import Sites

__all__ = ["Listeners", "direct_path_applies"]

BACKLOG = 4096
#: A connection on which nothing was heard for so many seconds is probed, so that a peer that is gone without a word
#: is noticed even where nobody is pinged.
KEEPALIVE = 15
#: For TLS 1.2: forward secrecy and authenticated encryption, the older modes last. Those of TLS 1.3 are all good.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"


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
        self._context = tls_context(self._settings)

    def getContext(self) -> SSL.Context:
        """What a new connection uses; it keeps it whatever is loaded later."""
        return self._context


def tls_context(settings: Mapping[str, Any]) -> SSL.Context:
    """TLS 1.2 or newer with the configured certificate. Raises ConfigurationError naming a file it cannot use."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # idle connections keep no buffers
    try:
        key = "ssl_cert"
        with open(settings["ssl_cert"], "rb"):  # what is wrong with a file, Python tells better
            context.use_certificate_chain_file(settings["ssl_cert"])
        key = "ssl_key"
        with open(settings["ssl_key"], "rb") as file:
            load_pem_private_key(file.read(), None)  # for a passphrase, OpenSSL would ask at the terminal
    except (OSError, SSL.Error, TypeError, ValueError, UnsupportedAlgorithm) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not a usable PEM file"
        raise ConfigurationError(f"{key}: cannot use {settings[key]!r}: {reason}") from None
    try:
        context.use_privatekey_file(settings["ssl_key"])
        context.check_privatekey()
    except SSL.Error:
        raise ConfigurationError(
            f"ssl_key: cannot use {settings['ssl_key']!r}: it is not the key of {settings['ssl_cert']!r}"
        ) from None
    return context


def _tune(listening: socket.socket) -> None:
    """Set what accepted sockets inherit: small frames leave at once, and dead peers are noticed."""
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), KEEPALIVE)


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
        main = "", self._settings["port"]
        self._listen(*main, self._factory, direct=self._factory.direct)
        for host, port in self._sites.ports():
            if (host, port) != main:
                self._listen(host, port, self._sites.site_for(port, host), direct=False)

    def _listen(self, host: str, number: int, factory: Any, *, direct: bool) -> None:
        host = host or self._settings["host"]
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
        sock = getattr(port, "socket", None)  # not every reactor's ports show theirs
        if sock is not None:
            _tune(sock)

    async def close(self) -> None:
        """Accept no connections and no upgrades any more; open connections stay."""
        self._factory.accepting = False
        ports, self._ports = self._ports, []
        for port in ports:
            closing = port.stopListening()
            if closing is not None:
                await closing
