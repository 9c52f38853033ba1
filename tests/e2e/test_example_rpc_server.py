"""The example applications as backends of a server that calls them over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from anycable_tx.testing.client import BASE, CableClient, Disconnected, Rejected
from tests.e2e.example_apps import DJANGO, FASTAPI, FLASK, Application, Example, Visitor, running

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=[DJANGO, FASTAPI, FLASK], ids=lambda example: example.name)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """An example, and a server that calls it."""
    example: Example = request.param
    with running(example, tmp_path_factory.mktemp(example.name), rpc=True) as it:
        yield it


def chat(room: str) -> str:
    """The identifier of a subscription."""
    return json.dumps({"channel": "ChatChannel", "room": room})


def client(app: Application, visitor: Visitor, **more: Any) -> CableClient:
    """A client with the visitor's cookies and no token."""
    return CableClient(app.cable_url, headers={"cookie": visitor.cookie}, since=False, **more)


def test_a_logged_in_user_connects_subscribes_and_says_something(app: Application) -> None:
    async def run() -> None:
        async with client(app, app.visitor("ann")) as ann, client(app, app.visitor("bob"), protocol=BASE) as bob:
            lobby = await ann.subscribe(chat("lobby"), streams=["chat/lobby"])
            assert await bob.subscribe(chat("lobby"), streams=["chat/lobby"]) == lobby
            await bob.perform(lobby, "say", text="hello")
            assert await ann.message(lobby) == {"from": "bob", "text": "hello"}
            await bob.close()
            assert await ann.message(lobby) == {"from": "bob", "text": "has left"}
            await ann.unsubscribe(lobby)
            app.visitor("bob").say("is anybody here?")
            await ann.expect_silence()

    asyncio.run(run())


def test_who_is_not_logged_in_is_not_connected(app: Application) -> None:
    async def run() -> None:
        with pytest.raises(Disconnected) as refused:
            await client(app, app.visitor()).connect()
        assert refused.value.frame == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}

    asyncio.run(run())


def test_a_room_that_does_not_exist_is_refused(app: Application) -> None:
    async def run() -> None:
        async with client(app, app.visitor("ann")) as ann:
            with pytest.raises(Rejected):
                await ann.subscribe(chat("attic"), streams=["chat/attic"])

    asyncio.run(run())
