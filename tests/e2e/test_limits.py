"""The limits against abuse, as clients of a running server meet them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from anycable_tx.testing.client import BASE
from anycable_tx.testing.processes import HOST, server

pytestmark = pytest.mark.e2e


@contextmanager
def client(url: str) -> Iterator[ClientConnection]:
    with connect(url, subprotocols=[Subprotocol(BASE)], proxy=None) as connection:
        assert said(connection)["type"] == "welcome"
        yield connection


def said(connection: ClientConnection) -> dict[str, object]:
    """The next message that is no ping."""
    while (message := json.loads(connection.recv(10))).get("type") == "ping":
        pass
    return message


def subscribe(connection: ClientConnection, stream: str) -> object:
    identifier = json.dumps({"channel": "$pubsub", "stream_name": stream})
    connection.send(json.dumps({"command": "subscribe", "identifier": identifier}))
    return said(connection)["type"]


def test_each_limit_is_told_in_the_way_that_clients_understand() -> None:
    with server(
        *("--public", "--max_commands_rate=1", "--max_subscriptions=2"),
        *("--max_conn_per_address=2", "--max_header_size=2000"),
    ) as running:
        with client(running.url) as first, client(running.url) as second:
            with pytest.raises(InvalidStatus) as refused, client(running.url):
                pass
            assert refused.value.response.status_code == 429

            kinds = [subscribe(first, stream) for stream in "abc"]
            assert kinds == ["confirm_subscription", "confirm_subscription", "reject_subscription"]

            for _ in range(12):
                second.send('{"command":"ping"}')
            last = [said(second) for _ in range(11)][-1]
            assert last == {"type": "disconnect", "reason": "too_many_commands", "reconnect": True}
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        with client(running.url) as again:
            assert subscribe(again, "a") == "confirm_subscription"

        request = http.client.HTTPConnection(HOST, running.port, timeout=10)
        request.request("GET", "/health", headers={"X": "x" * 2000})
        assert request.getresponse().status == 431
        request.close()
