"""The admin page as a part of the server: a path for people, and a node of its own for the pages they have open.

That the pages are clients of another node is what keeps them apart: no stream, channel or limit of the server's
clients is theirs, and nothing of theirs can be reached from a client's connection, whatever everybody is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.logger import globalLogPublisher

from anycable_tx.admin.endpoints import PageEndpoint, TicketEndpoint
from anycable_tx.admin.overview import Overview
from anycable_tx.admin.pages import Pages
from anycable_tx.admin.tickets import Tickets
from anycable_tx.cable.session import Session
from anycable_tx.controllers.chain import Chain
from anycable_tx.interfaces import ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.node import Node
from anycable_tx.providers import create, find
from anycable_tx.transports.factory import CableFactory
from anycable_tx.transports.groups import Flusher

if TYPE_CHECKING:
    from anycable_tx.server import Server

__all__ = ["AdminConsole"]

#: How the pages' node differs: nothing is kept, nobody is limited, and the transport knows nothing of other origins.
_APART = {
    "broker": "none",
    "pubsub": "none",
    "disconnect_mode": "never",
    "allowed_origins": (),
    "max_conn": 0,
    "max_conn_per_address": 0,
}


class _PagesNode(Node):
    """Keeps nothing and opens no stream, so it needs no timer: it is never started."""

    def changed(self, session: Session) -> None:
        """There is no record."""


class AdminConsole:
    """Serves the page of *server* at ``admin_path``, to those who know ``admin_key``."""

    def __init__(self, settings: Mapping[str, Any], reactor: Any, server: Server) -> None:
        host = settings["admin_host"] if settings["admin_host"] != settings["host"] else ""
        port = settings["admin_port"] or settings["port"]
        path: str = settings["admin_path"].rstrip("/")
        apart = {**settings, **_APART, "path": [f"{path}/cable"]}
        shared = (host, port) == ("", settings["port"])
        # Numbers are about clients; the pages that look at them are not among those.
        metrics = Metrics()
        flusher = server.flusher if shared else Flusher(reactor, metrics)
        self.node = _PagesNode(apart, reactor, metrics, flusher)
        self.node.pubsub = create(find("pubsub", "none"), ProviderContext(apart, reactor, self.node, metrics))
        context = ProviderContext(apart, reactor, self.node, metrics, pubsub=self.node.pubsub)
        self.node.broker = create(find("broker", "none"), context)
        tickets = Tickets(settings["admin_key"])
        header = f"x-{settings['jwt_param']}".lower()
        self.pages = Pages(self.node, server.node, tickets, Overview(server), header)
        self.node.controllers = Chain([self.pages], metrics)
        #: What accepts on its own port, if it has one.
        self.factory: CableFactory | None = None
        if shared:
            server.factory.side_doors[f"{path}/cable"] = self.node
        else:
            site = server.sites.site_for(port, host)
            self.factory = CableFactory(apart, reactor, self.node, flusher, site, direct=False)
            server.listeners.carry(host, port, self.factory)
        page = PageEndpoint(server.metrics)
        for name in {path or "/", f"{path}/"}:
            server.sites.add_route(port, name, page, host)
        ticket = TicketEndpoint(server.metrics, tickets, key=settings["admin_key"])
        server.sites.add_route(port, f"{path}/ticket", ticket, host)
        server.metrics.has("admin")
        scheme = "https" if settings["ssl_cert"] else "http"
        self.announcement = f"Handle admin requests at {scheme}://{host or settings['host']}:{port}{path or '/'}"

    async def start(self) -> None:
        """Warnings are remembered from now on."""
        globalLogPublisher.addObserver(self.pages.warnings)
        if self.factory is not None:
            self.factory.start()

    async def stop(self) -> None:
        """Close the pages."""
        for session in self.node.sessions:
            session.disconnect(1001, "Server restart", "server_restart", reconnect=True)
        await self.pages.stop()
        await self.node.stop()
        if self.factory is not None:
            self.factory.stop()
        globalLogPublisher.removeObserver(self.pages.warnings)
