"""The opening handshake, without I/O: read the request head, check the upgrade, make the answer."""

from __future__ import annotations

import binascii
from hashlib import sha1
from typing import NamedTuple
from urllib.parse import parse_qsl

from anycable_tx import __version__
from anycable_tx.transports.cors import Origins

__all__ = ["BASE", "EXTENDED", "Head", "Refusal", "Upgrade", "negotiate", "parse_head", "refusal_response"]

BASE = "actioncable-v1-json"
EXTENDED = "actioncable-v1-ext-json"
_TOKEN = "anycable-token."
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OPENING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"X-AnyCable-Version: %b\r\nSec-WebSocket-Accept: " % __version__.encode()
)
_DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Refusal(Exception):
    """The request cannot become a WebSocket connection; ``status`` is the HTTP answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Head(NamedTuple):
    """A request head. Header names are lower case; of a repeated header that is no list the first value counts."""

    method: str
    target: str
    path: str
    query: str
    headers: dict[str, str]

    def parameters(self) -> dict[str, str]:
        """The query parameters; of a repeated one the last value counts."""
        return dict(parse_qsl(self.query, keep_blank_values=True)) if self.query else {}


class Upgrade(NamedTuple):
    """An accepted upgrade: the answer to write, and what was negotiated."""

    response: bytes
    extended: bool
    deflate: bool
    token: str


def parse_head(head: bytes) -> Head:
    """The request head without its final empty line. Raises Refusal if it is not an HTTP request."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise Refusal(400, "malformed request line")
    method, target, _ = parts
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name[0] in " \t" or name[-1] in " \t":
            raise Refusal(400, "malformed header")
        name, value = name.lower(), value.strip()
        if name not in headers:
            headers[name] = value
        elif name.startswith("sec-websocket-") or name in ("connection", "upgrade", "x-forwarded-for"):
            headers[name] += "," + value
    path, _, query = target.partition("?")
    if "://" in path:  # the absolute form
        path = "/" + path.split("://", 1)[1].partition("/")[2]
    return Head(method, target, path, query, headers)


def _has_token(headers: dict[str, str], name: str, token: str) -> bool:
    value = headers.get(name, "").lower()
    return value == token or any(part.strip() == token for part in value.split(","))


def negotiate(head: Head, origins: Origins, *, compression: bool) -> Upgrade:
    """Check the upgrade and negotiate the protocol. Raises Refusal with the status to answer.

    The server prefers the base protocol when a client offers both; unknown offers are ignored (CP-3 to CP-8).
    """
    headers = head.headers
    if not _has_token(headers, "connection", "upgrade"):
        raise Refusal(400, "missing Connection: upgrade")
    if not _has_token(headers, "upgrade", "websocket"):
        raise Refusal(400, "missing Upgrade: websocket")
    if head.method != "GET":
        raise Refusal(405, "method not allowed")
    if headers.get("sec-websocket-version") != "13":
        raise Refusal(400, "unsupported WebSocket version")
    if not origins.allows(headers.get("origin")):
        raise Refusal(403, "origin not allowed")
    key = headers.get("sec-websocket-key", "").encode("latin-1")
    try:
        valid = len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        valid = False
    if not valid:
        raise Refusal(400, "bad Sec-WebSocket-Key")
    token = ""
    offers = [offer.strip() for offer in headers.get("sec-websocket-protocol", "").split(",")]
    for offer in offers:
        if offer.startswith(_TOKEN):
            token = offer[len(_TOKEN) :]
            break
    extended = False
    answer = _OPENING + binascii.b2a_base64(sha1(key + _MAGIC).digest(), newline=False) + b"\r\n"
    if BASE in offers:
        answer += b"Sec-WebSocket-Protocol: actioncable-v1-json\r\n"
    elif EXTENDED in offers:
        extended = True
        answer += b"Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n"
    deflate = compression and _offers_deflate(headers.get("sec-websocket-extensions", ""))
    if deflate:
        answer += _DEFLATE
    return Upgrade(answer + b"\r\n", extended, deflate, token)


def _offers_deflate(header: str) -> bool:
    """True if one offer can be accepted: a smaller server window would not fit the frames all share."""
    for offer in header.split(","):
        name, *parameters = [part.strip() for part in offer.split(";")]
        if name == "permessage-deflate" and not any(
            p.startswith("server_max_window_bits") and p.partition("=")[2].strip('" ') != "15" for p in parameters
        ):
            return True
    return False


def refusal_response(refusal: Refusal) -> bytes:
    """The HTTP answer to a request that cannot be upgraded."""
    text = f"{_REASONS[refusal.status]}\n"
    return (
        f"HTTP/1.1 {refusal.status} {_REASONS[refusal.status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"X-Content-Type-Options: nosniff\r\nSec-Websocket-Version: 13\r\nContent-Length: {len(text)}\r\n"
        f"Connection: close\r\n\r\n{text}"
    ).encode()
