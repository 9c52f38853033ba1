"""The example applications and a server, as the guides start them: logging in, reading a room, publishing."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator

import jwt
import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.client import CableClient, Disconnected, Rejected
from tests.e2e.example_apps import DJANGO, FASTAPI, FLASK, SECRET, Application, Example, running
from tests.e2e.node import Node

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=[DJANGO, FASTAPI, FLASK], ids=lambda example: example.name)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """An example, and the server as its guide starts it."""
    example: Example = request.param
    with running(example, tmp_path_factory.mktemp(example.name)) as it:
        yield it


def identifier(signed: str) -> str:
    return json.dumps({"channel": "$pubsub", "signed_stream_name": signed})


def test_who_is_logged_in_reads_the_room_and_is_heard_in_it(app: Application) -> None:
    ann, bob = app.visitor("ann"), app.visitor("bob")

    async def run() -> None:
        given = ann.credentials()
        async with CableClient(given["url"], token=given["token"], since=False) as client:
            lobby = await client.subscribe(identifier(given["stream"]), streams=["chat/lobby"])
            assert ann.say("hello").status == 201
            assert bob.say("hello ann").status == 201
            assert bob.say("not in here", room="kitchen").status == 201
            assert await client.messages(lobby, 2) == [
                {"from": "ann", "text": "hello"},
                {"from": "bob", "text": "hello ann"},
            ]
            await client.expect_silence()

    asyncio.run(run())


def test_what_was_said_while_somebody_was_away_is_there_when_they_are_back(app: Application) -> None:
    ann = app.visitor("ann")

    async def run() -> None:
        given = ann.credentials("kitchen")
        client = CableClient(given["url"], token=given["token"], since=False)
        await client.connect()
        kitchen = await client.subscribe(identifier(given["stream"]), streams=["chat/kitchen"])
        ann.say("before", room="kitchen")
        assert (await client.message(kitchen))["text"] == "before"
        await client.cut()
        ann.say("meanwhile", room="kitchen")
        client.set_token(ann.credentials("kitchen")["token"])
        assert await client.resume()
        assert (await client.message(kitchen))["text"] == "meanwhile"
        await client.close()

    asyncio.run(run())


def test_a_token_names_the_user_and_expires(app: Application) -> None:
    claims = jwt.decode(app.visitor("ann").credentials()["token"], SECRET, algorithms=["HS256"])
    assert json.loads(claims["ext"]) == {"user": "ann"}
    assert 0 < claims["exp"] - time.time() <= 3600


def test_a_forged_token_is_refused(app: Application) -> None:
    given = app.visitor("ann").credentials()
    claims = jwt.decode(given["token"], options={"verify_signature": False})
    forged = jwt.encode(claims | {"ext": '{"user": "bob"}'}, "another secret, not the application's")

    async def run() -> None:
        with pytest.raises(Disconnected) as refused:
            await CableClient(given["url"], token=forged).connect()
        assert refused.value.frame == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}

    asyncio.run(run())


def test_a_forged_name_of_a_stream_is_refused(app: Application) -> None:
    given = app.visitor("ann").credentials()
    other = app.visitor("ann").credentials("kitchen")
    forged = given["stream"].partition("--")[0] + "--" + other["stream"].partition("--")[2]

    async def run() -> None:
        async with CableClient(given["url"], token=given["token"], since=False) as client:
            with pytest.raises(Rejected):
                await client.subscribe(identifier(forged), streams=["chat/lobby"])

    asyncio.run(run())


def test_who_is_not_logged_in_is_given_no_token_and_says_nothing(app: Application) -> None:
    stranger = app.visitor()
    stranger.get("/")
    for answer in (stranger.get("/rooms/lobby/cable"), stranger.say("hello")):
        assert answer.status == 401 or answer.path == "/", answer


def test_no_name_is_signed_for_a_room_that_does_not_exist(app: Application) -> None:
    assert app.visitor("ann").get("/rooms/attic/cable").status == 404
    assert app.visitor("ann").say("hello", room="attic").status == 404


@pytest.mark.timeout(180)
def test_the_page_shows_what_is_said(official_clients: None, app: Application) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with Node(EventLog(), "room.mjs", CHROMIUM=chromium) as browser:
        browser.do("open", url=app.url, within=60)
        browser.do("fill", field="name", value="ann", within=30)
        browser.do("wait_for_the_subscription", within=30)
        browser.do("fill", field="text", value="<b>hello</b>", within=30)
        browser.do("wait_for", text="ann: <b>hello</b>", within=30)
        app.visitor("bob").say("hello ann")
        browser.do("wait_for", text="bob: hello ann", within=30)
        assert not browser.find(event="failed")
