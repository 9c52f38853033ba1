"""What controllers are shown of an upgrade request: its URL, the chosen headers, the client's address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anycable_tx.cable.replies import RequestEnv
from anycable_tx.transports.handshake import Head
from anycable_tx.transports.proxies import TrustedProxies

__all__ = ["RequestEnvs"]

#: Never taken from a header: the host is in the URL, and backends that write names in capitals could not tell the
#: other one from the address we vouch for.
_RESERVED = frozenset(("host", "remote_addr"))
#: What ``X-Forwarded-Proto`` may say, and the scheme it stands for.
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class RequestEnvs:
    """Makes the RequestEnv of each upgrade (CP-18).

    Used from *settings*: ``headers`` (names in any case; ``host`` is never shown), ``proxy_cookies`` (names; empty:
    the whole Cookie header is shown), ``trusted_proxies`` (see TrustedProxies, whose ConfigurationError is raised)
    and ``jwt_param``. *scheme* is the one of the listener, ``http`` or ``https``.
    """

    def __init__(self, settings: Mapping[str, Any], scheme: str) -> None:
        names = dict.fromkeys(name.strip().lower() for name in settings.get("headers", ("cookie",)))
        self._names = tuple(name for name in names if name and name not in _RESERVED)
        self._cookies = frozenset(filter(None, map(str.strip, settings.get("proxy_cookies", ()))))
        self._proxies = TrustedProxies(settings.get("trusted_proxies", ())) or None
        self._token_header = f"x-{settings['jwt_param']}".lower()
        self._scheme = scheme

    def read(self, head: Head, token: str, peer: str) -> RequestEnv:
        """What is shown of the request *head*.

        *token* comes from the sub-protocols, '' for none; one in its own header wins. *peer* is the address at the
        other end of the TCP connection: ``REMOTE_ADDR``, unless it is a trusted proxy that names another (RA-35).
        """
        given = head.headers
        headers = {name: value for name in self._names if (value := given.get(name))}
        if self._cookies and "cookie" in headers:
            self._filter_cookies(headers)
        token = given.get(self._token_header) or token
        if token:
            headers[self._token_header] = token
        scheme = self._scheme
        if self._proxies is not None and self._proxies.trusts(peer):
            told = given.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
            scheme = _SCHEMES.get(told, scheme)
        headers["REMOTE_ADDR"] = self.address(head, peer)
        url = head.target
        if "://" not in url.partition("?")[0]:
            url = f"{scheme}://{given.get('host', '')}{url}"
        return RequestEnv(url, headers)

    def address(self, head: Head, peer: str) -> str:
        """The client's address: *peer*, unless that is a trusted proxy that names another (RA-35)."""
        if self._proxies is not None and self._proxies.trusts(peer):
            return self._proxies.client(head.headers.get("x-forwarded-for", "")) or peer
        return peer.removeprefix("::ffff:")  # an IPv4 client of a socket that is for both

    def _filter_cookies(self, headers: dict[str, str]) -> None:
        """Keep the listed cookies, each followed by a semicolon; without any, there is no header (RA-33)."""
        kept = ""
        for piece in headers.pop("cookie").split(";"):
            name, equals, value = piece.strip().partition("=")
            if equals and name in self._cookies:
                kept += f"{name}={value};"
        if kept:
            headers["cookie"] = kept
