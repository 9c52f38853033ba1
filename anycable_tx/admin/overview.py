"""What the admin page shows, read from the running server. Lists are cut, and so is the search in them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from anycable_tx import __version__
from anycable_tx.logs import shorten

if TYPE_CHECKING:
    from anycable_tx.cable.hub import LocalStream
    from anycable_tx.cable.session import Session
    from anycable_tx.server import Server

__all__ = ["LOOKED_AT", "SHOWN", "Filters", "Overview"]

T = TypeVar("T")

#: So many clients and streams are shown, the newest that fit the filter,
SHOWN = 100
#: among so many, the newest (P7).
LOOKED_AT = 10_000
#: So many subscriptions are shown of each client.
SUBSCRIPTIONS = 5

#: The totals from which the page makes rates.
TOTALS = {
    "publications": "publications_total",
    "deliveries": "server_msg_total",
    "connects": "connections_total",
    "commands": "client_msg_total",
}


class Filters(NamedTuple):
    """What one page wants to see: clients and streams with these texts in their names."""

    clients: str = ""
    streams: str = ""


class Overview:
    """Reads *server*. Nothing is collected in between."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._begun = server.reactor.seconds()

    def read(self, filters: Filters) -> dict[str, Any]:
        """Everything, as JSON has it."""
        server = self._server
        now, metrics = server.reactor.seconds(), server.metrics
        return {
            "now": now,
            "time": time.time(),
            "node": self._node(now),
            "parts": self._parts(),
            "totals": {name: metrics.value(counter) for name, counter in TOTALS.items()},
            "users": server.node.sessions.distinct(),
            "clients": self._clients(filters.clients, now),
            "streams": self._streams(filters.streams),
        }

    def _node(self, now: float) -> dict[str, Any]:
        server = self._server
        return {
            "id": server.settings["node_id"],
            "version": __version__,
            "uptime": now - self._begun,
            "pid": os.getpid(),
            "worker": server.settings["metrics_tags"].get("worker", ""),
            "not_ready": server.not_ready(),
        }

    def _parts(self) -> list[dict[str, str]]:
        server, settings, node = self._server, self._server.settings, self._server.node
        parts: list[tuple[str, str, Any]] = [("broker", settings["broker"], node.broker)]
        parts.append(("bus", settings["pubsub"], node.pubsub))
        parts += [
            ("broadcaster", *each) for each in zip(settings["broadcast_adapter"], server.broadcasters, strict=True)
        ]
        parts += [("controller", *each) for each in zip(settings["controllers"], server.controllers, strict=True)]
        if server.embedded is not None:
            parts.append(("server", "embedded NATS", server.embedded))
        return [{"kind": kind, "name": name, "problem": part.problem()} for kind, name, part in parts]

    def _clients(self, text: str, now: float) -> dict[str, Any]:
        sessions = self._server.node.sessions
        shown, more = _search(sessions.newest_first(), lambda s: text in s.identifiers or text in s.sid, bool(text))
        return {"total": len(sessions), "shown": [_client(session, now) for session in shown], "more": more}

    def _streams(self, text: str) -> dict[str, Any]:
        streams = self._server.node.hub.streams
        shown, more = _search(reversed(streams.values()), lambda s: text in s.name, bool(text))
        return {"total": len(streams), "shown": [_stream(stream) for stream in shown], "more": more}


def _search(found: Iterable[T], fits: Callable[[T], bool], filtered: bool) -> tuple[list[T], bool]:
    """The first SHOWN that fit, and whether there are, or may be, others."""
    iterator = iter(found)
    shown: list[T] = []
    for each in islice(iterator, LOOKED_AT):
        if filtered and not fits(each):
            continue
        if len(shown) == SHOWN:
            return shown, True
        shown.append(each)
    return shown, next(iterator, None) is not None


def _client(session: Session, now: float) -> dict[str, Any]:
    outlet: Any = session.outlet
    subscriptions = list(islice(session.subscriptions, SUBSCRIPTIONS))
    protocol = outlet.kind
    if protocol == "WebSocket":
        protocol += ", extended" if session.extended else ", base"
    # Behind a proxy, where the request is kept, it tells the client's own.
    address = session.env.headers.get("REMOTE_ADDR", "") if session.env is not None else ""
    return {
        "sid": session.sid,
        "identifiers": shorten(session.identifiers),
        "protocol": protocol,
        "address": shorten(address or outlet.address),
        "age": max(0.0, now - session.since),
        "subscriptions": [shorten(identifier) for identifier in subscriptions],
        "more": len(session.subscriptions) - len(subscriptions),
        "pending": outlet.backlog,
    }


def _stream(stream: LocalStream) -> dict[str, Any]:
    position = stream.position
    return {
        "name": shorten(stream.name),
        "subscribers": sum(map(len, stream.groups.values())),
        "waiting": len(stream.held),
        "offset": position.last,
        "epoch": position.epoch,
        "healing": position.healing,
    }
