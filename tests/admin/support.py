"""Servers with an admin page, and pages without a browser."""

from __future__ import annotations

import json
from typing import Any

from anycable_tx.admin.pages import IDENTIFIER
from tests.transports.support import BASE, Cable, Client, command

KEY = "k3y"
ADMIN = {"admin": True, "admin_key": KEY}


class Page:
    """A page that is open: what it was shown, and what it asks for."""

    def __init__(self, cable: Cable, path: str = "/admin", port: int = 0) -> None:
        self.client = cable.dial(port) if port else cable.connect()
        ticket = ticket_of(cable, path, port)
        answer = self.client.upgrade(f"{path}/cable", f"{BASE}, anycable-token.{ticket}", Origin="http://elsewhere")
        assert answer.status == 101
        assert answer.headers["sec-websocket-protocol"] == BASE
        self.client.until(lambda received: b"welcome" in received)
        assert [message["type"] for message in self.client.messages()] == ["welcome"]
        self.client.send(command("subscribe", identifier=IDENTIFIER))
        self.client.until(lambda received: b'"message"' in received)
        confirmed, first = self.client.messages()
        assert confirmed == {"type": "confirm_subscription", "identifier": IDENTIFIER}
        self.first: dict[str, Any] = first["message"]

    def shown(self) -> list[dict[str, Any]]:
        """What it was sent since the last time."""
        messages = self.client.messages()
        assert all(message["identifier"] == IDENTIFIER for message in messages)
        return [message["message"] for message in messages]

    def ask(self, **data: Any) -> dict[str, Any]:
        """Ask for something; answers what is shown then."""
        self.client.send(command("message", identifier=IDENTIFIER, data=json.dumps(data)))
        [shown] = self.shown()
        return shown


def ticket_of(cable: Cable, path: str = "/admin", port: int = 0) -> str:
    """A ticket, for the key."""
    client = cable.dial(port) if port else cable.connect()
    answer = client.get(f"{path}/ticket", "POST", Authorization=f"Bearer {KEY}")
    assert answer.status == 200, answer
    client.sock.close()
    return str(json.loads(answer.body)["ticket"])


def knock(cable: Cable, ticket: str, path: str = "/admin/cable") -> Client:
    """A client that shows a ticket, whatever comes of it."""
    client = cable.connect()
    assert client.upgrade(path, f"{BASE}, anycable-token.{ticket}").status == 101
    return client
