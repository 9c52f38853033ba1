"""What clients see and what the log says when the backend fails: the table of the guide, row by row."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from anycable_tx.testing.client import CableClient, Disconnected
from anycable_tx.testing.processes import Server, server
from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_http_app import HttpApp
from tests.e2e.rpc import IMPLEMENTATIONS, Backend

pytestmark = pytest.mark.e2e

ROOM = '{"channel":"Chat","room":"a"}'
FAST = ("--rpc_command_timeout=500", "--presets=broker")


class Failing(Application):
    """Does to every call of *where* what *how* says."""

    def __init__(self, where: str, how: str) -> None:
        super().__init__()
        self._where = where
        self._how = how

    def handle(self, method: str, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        reply = super().handle(method, request, sid)
        if self._where in (method, request.get("command")):
            if self._how == "slow":
                time.sleep(1)
            elif self._how == "large":
                assert reply is not None
                reply["transmissions"] = ["x" * (5 << 20)]
            elif self._how == "broken":
                return {"error_msg": "a bug"}
        return reply


FAULTS = [("slow", "timeout: "), ("large", "too_large: "), ("broken", "error: a bug")]


async def closed_at_connect(cable: Server) -> None:
    client = CableClient(cable.url)
    with pytest.raises(Disconnected):
        await client.connect()
    assert (client.disconnect, client.close_code, client.close_reason) == (None, 1011, "Auth Error")


@pytest.mark.statement("CP-26", "RA-14", "RA-21", "RA-28")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("how", "said"), FAULTS, ids=[how for how, _ in FAULTS])
def test_at_connect(impl: str, how: str, said: str) -> None:
    with Backend(impl, Failing("connect", how)) as backend, server(*backend.options, *FAST) as cable:
        asyncio.run(closed_at_connect(cable))
        assert f"connect call failed: {said}" in cable.log
        assert len(backend.app.of("connect")) == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_at_connect_while_nothing_is_there(impl: str) -> None:
    backend = Backend(impl, Application())
    with server(*backend.options, *FAST) as cable:
        asyncio.run(closed_at_connect(cable))
        assert "connect call failed: un" in cable.log


@pytest.mark.statement("RA-13")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("how", "said", "rejects"),
    [*((how, said, False) for how, said in FAULTS), (*FAULTS[-1], True)],
    ids=[*(how for how, _ in FAULTS), "reject"],
)
def test_at_subscribe(impl: str, how: str, said: str, rejects: bool) -> None:
    async def subscribe(cable: Server) -> list[Any]:
        client = CableClient(cable.url)
        await client.connect()
        await client.send("subscribe", identifier=ROOM)
        await asyncio.sleep(1)
        await client.ping()
        frames = [f for f in client.frames if f.get("identifier") == ROOM]
        await client.close()
        return frames

    policy = (f"--rpc_failed_subscribe={'reject' if rejects else 'silence'}",)
    with Backend(impl, Failing("subscribe", how)) as backend, server(*backend.options, *FAST, *policy) as cable:
        frames = asyncio.run(subscribe(cable))
        assert [f["type"] for f in frames] == ["reject_subscription"] * rejects
        [line] = [line for line in cable.log.splitlines() if f"command call failed: {said}" in line]
        assert "sid=" in line
        assert "identifier=" in line


@pytest.mark.statement("RA-22")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("how", "said"), FAULTS, ids=[how for how, _ in FAULTS])
def test_at_a_message_which_is_never_asked_twice(impl: str, how: str, said: str) -> None:
    async def perform(cable: Server) -> None:
        client = CableClient(cable.url)
        await client.connect()
        await client.subscribe(ROOM, streams=["a"])
        await client.perform(ROOM, "x")
        await asyncio.sleep(1.5)
        assert not any(f.get("identifier") == ROOM and "message" in f for f in client.frames)
        await client.ping()  # it is there still
        await client.close()

    with Backend(impl, Failing("message", how)) as backend, server(*backend.options, *FAST) as cable:
        asyncio.run(perform(cable))
        assert f"command call failed: {said}" in cable.log
        assert [r["command"] for r in backend.app.of("command")].count("message") == 1


@pytest.mark.statement("CO-32")
def test_a_wrong_token_is_named_and_neither_token_is_in_the_log() -> None:
    with HttpApp(Application(), secret="the-right-one") as app:
        options = (f"--rpc_host={app.url}", "--http_rpc_secret=the-wrong-one", *FAST)
        with server(*options) as cable:
            asyncio.run(closed_at_connect(cable))
            assert "connect call failed: unauthenticated: " in cable.log
            assert "the-wrong-one" not in cable.log


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_backend_that_comes_and_goes_costs_no_session(impl: str) -> None:
    """Clients that are connected stay so, and what they ask for while it is there is done."""

    async def use(cable: Server, backend: Backend) -> list[int]:
        client = CableClient(cable.url)
        await client.connect()
        await client.subscribe(ROOM, streams=["a"])
        for n in range(6):
            if n % 3 == 2:
                await asyncio.to_thread(backend.stop)
            await client.perform(ROOM, "x", n=n)
            await asyncio.sleep(0.6)
            if n % 3 == 2:
                await asyncio.to_thread(backend.start)
                await asyncio.sleep(1.5)
        await client.ping()
        seen = [f["message"]["n"] for f in client.frames if f.get("identifier") == ROOM and "message" in f]
        await client.close()
        return seen

    with Backend(impl, Application()) as backend, server(*backend.options, *FAST) as cable:
        seen = asyncio.run(use(cable, backend))
        assert seen == sorted(set(seen))
        assert {n for n in range(6) if n % 3 == 0} <= set(seen)
        answered = [json.loads(r["data"])["n"] for r in backend.app.of("command") if r["command"] == "message"]
        assert answered == sorted(set(answered))
