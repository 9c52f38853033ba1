"""An application's side of the calls, for tests: what it was asked is kept, and its answers can be set."""

from __future__ import annotations

import json
import threading
from typing import Any

__all__ = ["Application", "Asked", "confirmation"]

#: (method, request in the shape of the HTTP body, the session's sid)
Asked = tuple[str, dict[str, Any], str]


def confirmation(identifier: str, kind: str = "confirm_subscription") -> str:
    """The frame that confirms (or, with ``reject_subscription``, refuses) a subscription."""
    return json.dumps({"type": kind, "identifier": identifier})


class Application:
    """Lets everybody in, subscribes every channel to the stream of its ``room``, and echoes.

    Override or replace ``connect``, ``command``, ``disconnect`` and ``restore``: each is given request and sid
    and returns the reply, both in the shape of the HTTP bodies; None means that there is no such method. They are
    called from the server's threads, and may sleep or raise (the reply is then status ERROR with the text). ``asked``
    holds every call in the order of arrival.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._lock = threading.Lock()

    def handle(self, method: str, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        """What a server calls: keep the call and answer it."""
        with self._lock:
            self.asked.append((method, request, sid))
        try:
            reply: dict[str, Any] | None = getattr(self, method)(request, sid)
        except Exception as e:
            return {"error_msg": str(e)}
        return reply

    def of(self, method: str) -> list[dict[str, Any]]:
        """The requests of one method so far."""
        with self._lock:
            return [request for name, request, _ in self.asked if name == method]

    def connect(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        """The user is the sid's."""
        welcome = json.dumps({"type": "welcome", "sid": sid})
        return {"status": 1, "identifiers": json.dumps({"user": sid}), "transmissions": [welcome]}

    def command(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        """Subscribe to the room, leave, or echo the data."""
        identifier = request["identifier"]
        if request["command"] == "subscribe":
            room = json.loads(identifier).get("room", "lobby")
            return {"status": 1, "streams": [room], "transmissions": [confirmation(identifier)]}
        if request["command"] == "unsubscribe":
            return {"status": 1, "stop_streams": True}
        echo = json.dumps({"identifier": identifier, "message": json.loads(request["data"])})
        return {"status": 1, "transmissions": [echo]}

    def disconnect(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        """Goodbye."""
        return {"status": 1}

    def restore(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        """It has never heard of it, like most backends."""
        return None
