"""The example applications as backends: what they answer to the server's calls over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest

from anycable_tx.testing.client import CableClient
from anycable_tx.testing.processes import HOST
from tests.e2e.example_apps import DJANGO, FASTAPI, FLASK, SECRET, Application, Example, Visitor, running

pytestmark = pytest.mark.e2e

KEY = hmac.new(SECRET.encode(), b"rpc-cable", hashlib.sha256).hexdigest()
ANN = json.dumps({"user": "ann"})
SUCCESS, FAILURE = 1, 2
NONSENSE = (
    '{"action":"shout","text":"hi"}',
    '{"action":"say"}',
    '{"action":"say","text":["hi"]}',
    '{"action":"say","text":""}',
    "[]",
    "hi",
    "",
)


@pytest.fixture(scope="module", params=[DJANGO, FASTAPI, FLASK], ids=lambda example: example.name)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """An example, and a server that does not call it: the tests do."""
    example: Example = request.param
    with running(example, tmp_path_factory.mktemp(example.name)) as it:
        yield it


def chat(room: str, channel: str = "ChatChannel") -> str:
    """The identifier of a subscription."""
    return json.dumps({"channel": channel, "room": room})


def env(visitor: Visitor) -> dict[str, Any]:
    headers = {"REMOTE_ADDR": HOST, "cookie": f"theme=dark; {visitor.cookie}"}
    return {"url": "http://localhost:8080/cable", "headers": headers}


@pytest.mark.parametrize("key", [None, SECRET, KEY + "0"])
@pytest.mark.parametrize("method", ["connect", "command", "disconnect"])
def test_a_call_without_the_key_is_refused(app: Application, method: str, key: str | None) -> None:
    ann = app.visitor("ann")
    assert ann.call(method, {"env": env(ann)}, key).status == 401


def test_connect_names_the_user_of_the_cookie_and_welcomes_the_session(app: Application) -> None:
    ann = app.visitor("ann")
    reply = ann.call("connect", {"env": env(ann)}, KEY, sid="sid-1").json
    welcome = json.loads(reply.pop("transmissions")[0])
    assert reply == {"status": SUCCESS, "identifiers": ANN}
    assert welcome == {"type": "welcome", "sid": "sid-1"}


@pytest.mark.parametrize("cookie", ["", "sessionid=ann; chat_session=ann", 'a="; b'])
def test_connect_refuses_a_cookie_that_is_not_the_applications(app: Application, cookie: str) -> None:
    headers = {"REMOTE_ADDR": HOST} | ({"cookie": cookie} if cookie else {})
    reply = (
        app.visitor().call("connect", {"env": {"url": "http://localhost:8080/cable", "headers": headers}}, KEY).json
    )
    assert reply["status"] == FAILURE
    assert json.loads(reply["transmissions"][0]) == {
        "type": "disconnect",
        "reason": "unauthorized",
        "reconnect": False,
    }


def command(app: Application, name: str, identifier: str, **more: str) -> dict[str, Any]:
    """The reply to a command of ann's."""
    ann = app.visitor("ann")
    body = {"command": name, "identifier": identifier, "connection_identifiers": ANN, "env": env(ann), **more}
    answer = ann.call("command", body, KEY)
    assert answer.status == 200, answer
    return answer.json


def test_subscribing_joins_the_rooms_stream(app: Application) -> None:
    reply = command(app, "subscribe", chat("lobby"))
    confirmation = json.loads(reply.pop("transmissions")[0])
    assert reply == {"status": SUCCESS, "streams": ["chat/lobby"]}
    assert confirmation == {"type": "confirm_subscription", "identifier": chat("lobby")}


@pytest.mark.parametrize(
    "identifier", [chat("attic"), chat("lobby", "Other"), '{"channel":"ChatChannel","room":["lobby"]}', "[]", "chat"]
)
def test_subscribing_to_anything_else_is_rejected(app: Application, identifier: str) -> None:
    reply = command(app, "subscribe", identifier)
    rejection = json.loads(reply.pop("transmissions")[0])
    assert reply == {"status": FAILURE}
    assert rejection == {"type": "reject_subscription", "identifier": identifier}


def test_unsubscribing_leaves_the_stream(app: Application) -> None:
    assert command(app, "unsubscribe", chat("lobby")) == {"status": SUCCESS, "stop_streams": True}


def test_a_message_that_is_not_understood_fails_and_nothing_is_said(app: Application) -> None:
    async def run() -> None:
        async with CableClient(app.cable_url, token=app.visitor("bob").credentials()["token"], since=False) as bob:
            signed = app.visitor("bob").credentials()["stream"]
            listening = json.dumps({"channel": "$pubsub", "signed_stream_name": signed})
            await bob.subscribe(listening, streams=["chat/lobby"])
            for data in NONSENSE:
                assert command(app, "message", chat("lobby"), data=data) == {"status": FAILURE}, data
            assert command(app, "message", chat("attic"), data='{"action":"say","text":"hi"}') == {"status": FAILURE}
            said = '{"action":"say","text":"this"}'
            assert command(app, "message", chat("lobby"), data=said) == {"status": SUCCESS}
            assert await bob.message(listening) == {"from": "ann", "text": "this"}
            await bob.expect_silence(0.1)

    asyncio.run(run())


def test_disconnect_is_told_to_the_rooms(app: Application) -> None:
    async def run() -> None:
        bob = app.visitor("bob")
        given = bob.credentials()
        async with CableClient(app.cable_url, token=given["token"], since=False) as client:
            listening = json.dumps({"channel": "$pubsub", "signed_stream_name": given["stream"]})
            await client.subscribe(listening, streams=["chat/lobby"])
            subscriptions = [chat("lobby"), chat("lobby", "Other")]
            body = {"identifiers": ANN, "subscriptions": subscriptions, "env": env(bob)}
            assert bob.call("disconnect", body, KEY).json == {"status": SUCCESS}
            assert await client.message(listening) == {"from": "ann", "text": "has left"}
            assert bob.call("disconnect", {"identifiers": ANN, "env": env(bob)}, KEY).json == {"status": SUCCESS}
            await client.expect_silence(0.1)

    asyncio.run(run())
