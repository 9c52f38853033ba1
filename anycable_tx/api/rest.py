"""The REST API: which paths there are, on which port, and who may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anycable_tx.api.endpoints import ATTRS, HistoryEndpoint, PublishEndpoint, UsersEndpoint
from anycable_tx.broadcasters.publishing import Publishing
from anycable_tx.node import Node
from anycable_tx.transports.cors import Origins
from anycable_tx.transports.site import Sites

__all__ = ["RestAPI", "has_api"]

_OPEN = "API server is running without authentication"


def has_api(settings: Mapping[str, Any]) -> bool:
    """Is there an API? Nobody is let in without a key, unless a port of its own was given or everything is public."""
    return bool(settings["api_path"]) and bool(settings["api_port"] or settings["api_secret"] or settings["public"])


class RestAPI:
    """Routes the endpoints below ``api_path``: publish, presence, history.

    With ``api_secret``, given or derived, requests need ``Authorization: Bearer <secret>``, in public mode too.
    """

    def __init__(self, settings: Mapping[str, Any], reactor: Any, node: Node, sites: Sites) -> None:
        key: str = settings["api_secret"]
        origins = Origins(settings["api_cors_hosts"]) if settings["api_cors_headers"] else None
        self._publishing = Publishing(settings, reactor, node, node.metrics, ATTRS)
        publish = PublishEndpoint(
            self._publishing,
            node.metrics,
            key=key,
            origins=origins,
            max_body=settings["api_max_body"],
            strict=settings["api_strict"],
        )
        self._endpoints = {
            "/publish": publish,
            "/presence/{stream}/users": UsersEndpoint(node, key=key, origins=origins),
            "/streams/{stream}/history": HistoryEndpoint(node, key=key, origins=origins),
        }
        host = settings["api_host"] if settings["api_host"] != settings["host"] else ""
        port, path = settings["api_port"] or settings["port"], settings["api_path"].rstrip("/")
        for name, endpoint in self._endpoints.items():
            sites.add_route(port, path + name, endpoint, host)
        scheme = "https" if settings["ssl_cert"] else "http"
        self.announcement = (
            f"Handle API requests at {scheme}://{host or settings['host']}:{port}{path} "
            f"({'authorization required' if key else 'no authorization'}"
            f"{', CORS enabled' if origins else ''})"
            f"{'' if key else chr(10) + _OPEN}"
        )

    async def start(self) -> None:
        """Nothing to do: the paths are routed, and requests come once the port is open."""

    async def stop(self) -> None:
        """Take no more requests; done when publications on their way have ended."""
        for endpoint in self._endpoints.values():
            endpoint.stopped = True
        await self._publishing.finished()
