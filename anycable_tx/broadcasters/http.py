"""Publications by HTTP: ``POST /_broadcast``, answered with 201 once they are stored."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from anycable_tx.broadcasters.publishing import Publishing, PublishingEndpoint
from anycable_tx.config.secrets import BROADCAST, derive_key
from anycable_tx.interfaces import IBroadcaster, ProviderContext
from anycable_tx.transports.cors import Origins

__all__ = ["HTTPBroadcaster", "create"]

_DERIVED = "auto-generated authorization secret from the application secret\n"


def create(context: ProviderContext) -> HTTPBroadcaster:
    """The broadcaster, its path already routed on its port."""
    return HTTPBroadcaster(context)


@implementer(IBroadcaster)
class HTTPBroadcaster:
    """Accepts publications at ``http_broadcast_path`` of ``http_broadcast_port``.

    With ``broadcast_key`` (unless ``public``) requests need ``Authorization: Bearer <key>``. Checked are, in this
    order: CORS and preflight, method, authorisation, body. The answers:

    * 201: stored (P6), or a body that is no publication (``broadcast_strict``: 422 with the reason);
    * 401, 413, 422: no or a wrong key, a body above ``http_broadcast_max_body`` bytes, not a POST;
    * 501: not stored within ``broadcast_hold`` seconds; it may be sent again, as after a lost connection.

    How repeated publications are recognised, says Publishing.
    """

    def __init__(self, context: ProviderContext) -> None:
        settings = context.settings
        key = "" if settings.get("public") else settings.get("broadcast_key", "")
        port, path = settings["http_broadcast_port"], settings["http_broadcast_path"]
        origins = None
        if settings.get("http_broadcast_cors"):
            origins = Origins(settings.get("allowed_origins", ()))
        self._publishing = Publishing(
            settings, context.reactor, context.node, context.metrics, BroadcastEndpoint.attrs
        )
        self._endpoint = BroadcastEndpoint(
            self._publishing,
            context.metrics,
            key="" if key == "none" else key,
            origins=origins,
            max_body=settings.get("http_broadcast_max_body", 8 * 1024 * 1024),
            strict=bool(settings.get("broadcast_strict", False)),
        )
        context.site.add_route(port, path, self._endpoint)
        scheme = "https" if settings.get("ssl_cert") else "http"
        derived = key and key == derive_key(settings.get("secret", ""), BROADCAST)
        self.announcement = (
            f"{_DERIVED if derived else ''}"
            f"Accept broadcast requests at {scheme}://{settings.get('host', 'localhost')}:{port}{path} "
            f"({'authorization required' if self._endpoint.key else 'no authorization'}"
            f"{', CORS enabled' if origins else ''})"
        )

    async def start(self) -> None:
        """Nothing to do: the path is routed, and requests come once the port is open."""

    def problem(self) -> str:
        """Nothing can be wrong."""
        return ""

    async def stop(self) -> None:
        """Take no more requests; done when those taken have ended, at the latest after ``broadcast_hold``."""
        self._endpoint.stopped = True
        await self._publishing.finished()


class BroadcastEndpoint(PublishingEndpoint):
    """The resource behind the path; see HTTPBroadcaster."""

    attrs: ClassVar[dict[str, str]] = {"context": "broadcast", "provider": "http"}
