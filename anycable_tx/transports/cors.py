"""Which origins may connect, and the CORS headers of plain HTTP answers; pure."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["ANY", "Origins"]

#: Request headers a browser may send; the last five are ours.
ALLOWED_HEADERS = (
    "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization, "
    "Idempotency-Key, Last-Event-ID, X-JID, X-Signed, X-Anycable-Poll-ID"
)


class Origins:
    """The ``allowed_origins`` list: hosts with their port if any, ``*suffix``, or ``*`` for all.

    Entries are trimmed and compared in lower case; empty ones are dropped. An empty list allows everybody.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        hosts = [entry.strip().lower() for entry in entries]
        self._exact = frozenset(host for host in hosts if host and not host.startswith("*"))
        self._suffixes = tuple(host[1:] for host in hosts if len(host) > 1 and host.startswith("*"))
        self._any = "*" in hosts or not (self._exact or self._suffixes)

    def allows(self, origin: str | None) -> bool:
        """Whether a request with this ``Origin`` header (None: without one) may open a WebSocket.

        The *host[:port]* of the origin must equal an entry or end with the rest of a ``*`` entry. Without an
        origin the answer is no, unless everybody is allowed.
        """
        if self._any:
            return True
        if origin is None:
            return False
        try:
            host = urlsplit(origin.strip().lower()).netloc
        except ValueError:  # such as a broken IPv6 address
            return False
        return bool(host) and (host in self._exact or host.endswith(self._suffixes))

    def cors_headers(self, origin: str | None, methods: str = "POST, OPTIONS") -> dict[str, str]:
        """The CORS headers of an answer to a request with this ``Origin``.

        An allowed origin is echoed in lower case, with credentials; a request without one is told ``*`` (when
        everybody is allowed) without credentials. For any other the allow-origin header is absent.
        """
        headers = {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Expose-Headers": (
                "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, X-AnyCable-Version, X-Anycable-Poll-ID"
            ),
            "Vary": "Origin",
        }
        if origin is not None:
            if self.allows(origin):
                headers["Access-Control-Allow-Origin"] = origin.strip().lower()
                headers["Access-Control-Allow-Credentials"] = "true"
        elif self._any:
            headers["Access-Control-Allow-Origin"] = "*"
        return headers


#: Everybody.
ANY = Origins(())
