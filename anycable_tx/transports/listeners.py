"""The listening ports: one per number, WebSocket and HTTP on the main one, HTTP on the others."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

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


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listeners:
    """Opens the ports, and closes them.

    Of *sockets*, which may listen already, those with the number of a port are used in its place; they are then ours.
    """

    log = Logger()

    def __init__(
        self,
        settings: Mapping[str, Any],
        reactor: Any,
        factory: CableFactory,
        sites: Sites,
        sockets: Iterable[socket.socket] = (),
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._factory = factory
        self._sites = sites
        self._ports: list[Any] = []
        #: Who takes the connections of ports that serve more than HTTP.
        self._carriers: dict[tuple[str, int], CableFactory] = {}
        self._certificate: Certificate | None = None
        self._inherited: dict[int, list[socket.socket]] = {}
        for sock in sockets:
            self._inherited.setdefault(sock.getsockname()[1], []).append(sock)

    def carry(self, host: str, port: int, factory: CableFactory) -> None:
        """Let *factory* have the connections of another port, which has routes too."""
        self._carriers[host, port] = factory

    def renew_certificate(self) -> None:
        """Read the certificate again, for new connections (CO-50). Raises ConfigurationError like ``open``."""
        if self._certificate is not None:
            self._certificate.load()

    def open(self) -> None:
        """Listen on every port that has something to serve. Raises ConfigurationError naming the address."""
        if self._settings["ssl_cert"]:
            self._certificate = Certificate(self._settings)
        main = "", self._settings["port"]
        others = [place for place in self._sites.ports() if place != main]
        self._check_inherited([main[1], *(port for _, port in others)])
        self._listen(*main, self._factory, direct=self._factory.direct)
        for host, port in others:
            carrier = self._carriers.get((host, port)) or self._sites.site_for(port, host)
            self._listen(host, port, carrier, direct=False)

    def _check_inherited(self, wanted: list[int]) -> None:
        """A socket that nobody accepts from would let its clients wait for ever."""
        for number, sockets in self._inherited.items():
            if number not in wanted:
                raise ConfigurationError(
                    f"LISTEN_FDS: nothing listens on the port of the inherited socket {_address(sockets[0])}; "
                    f"the ports are {', '.join(map(str, wanted))}"
                )

    def _listen(self, host: str, number: int, factory: Any, *, direct: bool) -> None:
        inherited = self._inherited.pop(number, [])
        for sock in inherited:
            self._keep(self._adopt(sock, factory, direct=direct))
        if not inherited:
            self._keep(self._bind(host or self._settings["host"], number, factory, direct=direct))

    def _keep(self, port: Any) -> None:
        self._ports.append(port)
        sock = getattr(port, "socket", None)  # not every reactor's ports show theirs
        if sock is not None:
            _tune(sock)

    def _adopt(self, sock: socket.socket, factory: Any, *, direct: bool) -> Any:
        """A port on an inherited socket. Connections that came before us wait there."""
        self.log.info("Listen on the inherited socket {address}", address=_address(sock))
        sock.setblocking(False)
        sock.listen(BACKLOG)  # one that is shared by workers listens when the first of them is ready
        with sock:  # the port has a descriptor of its own
            if direct:
                port = DirectPort._fromListeningDescriptor(self._reactor, sock.fileno(), sock.family, factory)
                port.startListening()
                return port
            if self._certificate is not None:
                factory = TLSMemoryBIOFactory(self._certificate, False, factory, self._reactor)
            return self._reactor.adoptStreamPort(sock.fileno(), sock.family, factory)

    def _bind(self, host: str, number: int, factory: Any, *, direct: bool) -> Any:
        interface = "127.0.0.1" if host == "localhost" else host
        try:
            if direct:
                port = DirectPort(number, factory, BACKLOG, interface, self._reactor)
                port.startListening()
                return port
            if self._certificate is not None:
                return self._reactor.listenSSL(number, factory, self._certificate, BACKLOG, interface)
            return self._reactor.listenTCP(number, factory, BACKLOG, interface)
        except (CannotListenError, OSError) as e:
            reason = getattr(e, "socketError", e)
            raise ConfigurationError(f"cannot listen on {host}:{number}: {reason}") from None

    async def close(self) -> None:
        """Accept no connections and no upgrades any more; open connections stay."""
        for factory in (self._factory, *self._carriers.values()):
            factory.accepting = False
        ports, self._ports = self._ports, []
        unused, self._inherited = self._inherited, {}
        for sockets in unused.values():
            for sock in sockets:
                sock.close()
        for port in ports:
            closing = port.stopListening()
            if closing is not None:
                await closing
