"""What the admin page is served with: the page itself, which holds no secrets, and tickets for those with the key."""

# Twisted's requests carry no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

import orjson
from twisted.web.server import Request

from anycable_tx.admin.tickets import Tickets
from anycable_tx.metrics import Metrics
from anycable_tx.transports.endpoint import Answer, Endpoint

__all__ = ["ATTRS", "PageEndpoint", "TicketEndpoint"]

#: What goes with every line in the log.
ATTRS = {"context": "admin"}


class _AdminEndpoint(Endpoint):
    counter = "admin_refusals_total"
    attrs = ATTRS
    #: Response headers beside those of every answer.
    headers: dict[str, str] = {"Cache-Control": "no-store"}

    def render(self, request: Request) -> int:
        """Answer."""
        request.setHeader(b"x-content-type-options", b"nosniff")
        for name, value in self.headers.items():
            request.setHeader(name.encode(), value.encode())
        return super().render(request)


def _hash(kind: str, page: bytes) -> str:
    """The one inline element *kind* of the page, as a source of a content security policy."""
    [text] = re.findall(b"<%b>(.*?)</%b>" % (kind.encode(), kind.encode()), page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text).digest()).decode()}'"


class PageEndpoint(_AdminEndpoint):
    """The page, for everybody: it asks for the key. It may run nothing, load nothing and talk to nobody but us."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics, key="", origins=None)
        self._page = files("anycable_tx.admin").joinpath("page.html").read_bytes()
        policy = {
            "default-src": "'none'",
            "script-src": _hash("script", self._page),
            "style-src": _hash("style", self._page),
            "img-src": "data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        self.headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": "; ".join(f"{name} {source}" for name, source in policy.items()),
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }

    async def work(self, request: Request) -> Answer:
        """Always the same."""
        return Answer(200, b"" if request.method == b"HEAD" else self._page, b"text/html; charset=utf-8")


class TicketEndpoint(_AdminEndpoint):
    """A ticket, for a POST with ``Authorization: Bearer <admin_key>``. 401: no or another key."""

    methods = (b"POST",)
    max_body = 1024

    def __init__(self, metrics: Metrics, tickets: Tickets, *, key: str) -> None:
        super().__init__(metrics, key=key, origins=None)
        self._tickets = tickets

    async def work(self, request: Request) -> Answer:
        """A new one for each request."""
        return Answer(200, orjson.dumps({"ticket": self._tickets.make()}), b"application/json")
