"""A real server, a real backend over gRPC and HTTP, and the official clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from anycable_tx.testing.client import CableClient, Disconnected
from anycable_tx.testing.processes import ProxyProcess, Server, server
from anycable_tx.testing.rpc_app import Application, confirmation
from tests.e2e.node import Node
from tests.e2e.rpc import IMPLEMENTATIONS, Backend

pytestmark = pytest.mark.e2e

ROOM = '{"channel":"ChatChannel","room":"a"}'
RESUMABLE = ("--presets=broker", "--history_limit=1000", "--log_level=debug")


class Chat(Application):
    """A channel with everything: state, whispers, presence, streams that come and go, and a way to be thrown out."""

    def command(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        identifier = request["identifier"]
        if request["command"] != "message":
            reply = super().command(request, sid)
            assert reply is not None
            if request["command"] == "subscribe":
                if json.loads(identifier)["room"] == "forbidden":
                    frame = confirmation(identifier, "reject_subscription")
                    return {"status": 2, "stop_streams": True, "streams": ["forbidden"], "transmissions": [frame]}
                room = json.loads(identifier)["room"]
                reply["env"] = {"istate": {"$w": room, "$p": room, "seen": "0"}, "cstate": {"n": "1"}}
            return reply
        data = json.loads(request["data"])
        answer: dict[str, Any] = {"status": 1}
        if data["action"] == "count":
            seen = int(request["env"]["istate"]["seen"]) + 1
            message = {"id": f"count-{seen}", "sid": sid}
            answer["env"] = {"istate": {"seen": str(seen)}}
            answer["transmissions"] = [json.dumps({"identifier": identifier, "message": message})]
        elif data["action"] == "follow":
            answer["streams"] = [data["stream"]]
        elif data["action"] == "leave":
            answer["disconnect"] = True
        elif data["action"] == "fail":
            raise ValueError("deliberately")
        elif data["action"] == "enter":
            answer["presence"] = {"type": "join", "id": "me", "info": '{"name":"Me"}'}
        return answer


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with Backend(request.param, Chat()) as running:
        yield running


@pytest.fixture
def cable(backend: Backend) -> Iterator[Server]:
    with server(*backend.options, *RESUMABLE) as running:
        yield running


def until(condition: Callable[[], Any], within: float = 10.0) -> Any:
    """What *condition* says once that is something."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


@pytest.mark.statement("CP-17", "CP-18", "CP-36", "CP-43")
@pytest.mark.parametrize("library", ["core", "rails"])
def test_an_official_client_connects_subscribes_performs_and_is_reported(
    node: Node, cable: Server, backend: Backend, library: str
) -> None:
    node.open("ann", f"{cable.url}?token=1", library=library)
    node.do("subscribe", client="ann", stream="a", channel="ChatChannel")
    for _ in range(3):
        node.do("perform", client="ann", stream="a", action="count", data={})
    node.wait_for(3, event="received", client="ann")
    assert [m["id"] for m in node.messages("ann", "a")] == ["count-1", "count-2", "count-3"]
    with cable.publisher() as publisher:
        node.do("perform", client="ann", stream="a", action="follow", data={"stream": "other"})
        until(lambda: len(backend.app.of("command")) == 5)
        publisher.publish("a", id="to the room")
        publisher.publish("other", id="to the other")
    node.wait_for(5, event="received", client="ann")
    received = [event["message"]["id"] for event in node.find(event="received")]
    assert set(received[3:]) == {"to the room", "to the other"}
    node.do("close", client="ann")
    [goodbye] = until(lambda: backend.app.of("disconnect"))
    [(_, hello, sid)] = [asked for asked in backend.app.asked if asked[0] == "connect"]
    assert hello["env"]["url"].endswith("/cable?token=1")
    assert hello["env"]["headers"]["REMOTE_ADDR"] == "127.0.0.1"
    assert goodbye["subscriptions"] == [json.dumps(json.loads(ROOM), separators=(",", ":"))]
    assert goodbye["identifiers"] == json.dumps({"user": sid})
    assert goodbye["env"]["cstate"] == {"n": "1"}
    assert json.loads(goodbye["env"]["istate"][goodbye["subscriptions"][0]])["seen"] == "3"


@pytest.mark.statement("RA-3", "CP-37")
def test_a_refused_client_hears_nothing_of_the_stream(node: Node, cable: Server) -> None:
    node.open("ann", cable.url)
    with pytest.raises(AssertionError, match=r"[Rr]eject"):
        node.do("subscribe", client="ann", stream="forbidden", channel="ChatChannel")
    node.do("subscribe", client="ann", stream="a", channel="ChatChannel")
    with cable.publisher() as publisher:
        publisher.publish("forbidden", id="secret")
        publisher.publish("a", id="public")
    node.wait_for(event="received", client="ann")
    assert [e["message"]["id"] for e in node.find(event="received")] == ["public"]


@pytest.mark.statement("CP-45")
def test_whispers_and_presence_are_the_backends_to_grant(node: Node, cable: Server) -> None:
    for client in ("ann", "bob"):
        node.open(client, cable.url)
        node.do("subscribe", client=client, stream="a", channel="ChatChannel")
    node.do("perform", client="ann", stream="a", action="enter", data={})
    until(lambda: node.do("present", client="bob", stream="a") == {"me": {"name": "Me"}})


def test_a_failing_action_and_a_closing_one(node: Node, cable: Server, backend: Backend) -> None:
    node.open("ann", cable.url, reconnect=100)
    node.do("subscribe", client="ann", stream="a", channel="ChatChannel")
    node.do("perform", client="ann", stream="a", action="fail", data={})
    node.do("perform", client="ann", stream="a", action="count", data={})
    node.wait_for(event="received", client="ann")
    until(lambda: "command call failed: error: deliberately" in cable.log)
    node.do("perform", client="ann", stream="a", action="leave", data={})
    assert [e["restored"] for e in node.wait_for(2, event="connected")] == [False, True]


@pytest.mark.statement("CP-96", "CP-105")
def test_a_session_that_resumes_keeps_its_state_and_is_reported_once(node: Node, backend: Backend) -> None:
    options = (*backend.options, *RESUMABLE, "--disconnect_mode=deferred", "--sessions_ttl=3")
    with server(*options) as cable, ProxyProcess(cable.port) as proxy:
        node.open("ann", proxy.url(), reconnect=100)
        node.do("subscribe", client="ann", stream="a", channel="ChatChannel")
        for n in range(1, 4):
            node.do("perform", client="ann", stream="a", action="count", data={})
            node.wait_for(n, event="received", client="ann")
            proxy.do("cut")
            node.wait_for(n + 1, event="connected")
        assert [m["id"] for m in node.messages("ann", "a")] == ["count-1", "count-2", "count-3"]
        assert len(backend.app.of("connect")) == 1
        time.sleep(4)
        assert backend.app.of("disconnect") == []
        node.do("close", client="ann")
        until(lambda: backend.app.of("disconnect"))
        time.sleep(1)
        assert len(backend.app.of("disconnect")) == 1


def test_a_backend_that_is_away_is_not_ready_and_clients_come_back_by_themselves(
    node: Node, backend: Backend
) -> None:
    with server(*backend.options, *RESUMABLE) as cable:
        backend.stop()
        with pytest.raises(AssertionError):
            node.open("ann", cable.url, within=5)
        until(lambda: "connect call failed: un" in cable.log)
        backend.start()
        until(lambda: node.find(event="connected", client="ann"), within=20)
        node.do("subscribe", client="ann", stream="a", channel="ChatChannel")


@pytest.mark.statement("RA-41")
def test_a_node_whose_backend_is_away_is_not_ready(backend: Backend, cable: Server) -> None:
    def ready() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", cable.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    async def try_to_connect() -> None:
        for _ in range(15):
            with suppress(Disconnected):
                await CableClient(cable.url).connect()

    assert ready() == (200, "ready\n")
    backend.stop()
    asyncio.run(try_to_connect())
    status, reason = ready()
    assert status == 503
    assert "backend" in reason or "calls to" in reason
    backend.start()
    until(lambda: ready()[0] == 200, within=15)


@pytest.mark.statement("CO-44", "RA-40")
def test_a_stop_reports_the_end_of_every_session(backend: Backend) -> None:
    async def connect(cable: Server) -> None:
        for _ in range(50):
            await CableClient(cable.url).connect()
        await asyncio.to_thread(cable.stop)

    with server(*backend.options, "--disconnect_rate=5") as cable:
        asyncio.run(connect(cable))
        log = cable.log
    assert len(backend.app.of("connect")) == len(backend.app.of("disconnect")) == 50
    assert "ended sessions, dropped 0" in log


class Crowded(Application):
    """Takes its time, and knows how many calls it has at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._chance = random.Random(1)
        self._full = threading.Event()
        self.running = self.most = 0
        self.seen: dict[str, list[int]] = {}

    def command(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        if request["command"] != "message":
            return super().command(request, sid)
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.seen.setdefault(sid, []).append(json.loads(request["data"])["n"])
            pause = self._chance.random() * 0.01
            if self.running >= 28:
                self._full.set()
        self._full.wait(30)  # the first calls do not end before as many run as may
        time.sleep(pause)
        with self._lock:
            self.running -= 1
        return {"status": 1, "transmissions": [json.dumps({"identifier": request["identifier"], "message": sid})]}


@pytest.mark.statement("CP-44", "RA-26")
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_10000_commands_of_200_sessions_keep_their_order_and_28_run_at_a_time(impl: str) -> None:
    app = Crowded()

    async def talk(url: str) -> None:
        clients = [CableClient(url, name=f"client-{n}") for n in range(200)]
        for client in clients:
            await client.connect()
            await client.subscribe(ROOM, streams=["a"])
        for n in range(50):
            for client in clients:
                await client.perform(ROOM, "count", n=n)
        deadline = time.monotonic() + 60
        while (arrived := sum(map(len, list(app.seen.values())))) < 10_000 or app.running:
            assert time.monotonic() < deadline, f"{arrived} commands arrived"
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)
        for client in clients:
            assert sum(frame.get("message") == client.sid for frame in client.frames) == 50
            await client.close()

    with Backend(impl, app, threads=64) as backend, server(*backend.options) as cable:
        asyncio.run(talk(cable.url))
    assert len(app.seen) == 200
    assert all(seen == list(range(50)) for seen in app.seen.values())
    assert app.most == 28


class Remembering(Chat):
    """Has something to say about sessions that come back."""

    def __init__(self, reply: dict[str, Any] | None) -> None:
        super().__init__()
        self.reply = reply

    def restore(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        return self.reply


async def come_back(cable: Server, times: int = 1) -> tuple[CableClient, list[bool]]:
    """A subscribed client that loses its connection, and whether it was resumed each time."""
    client = CableClient(cable.url)
    await client.connect()
    await client.subscribe(ROOM, streams=["a"])
    resumed = []
    for _ in range(times):
        await client.cut()
        resumed.append(await client.resume())
    await asyncio.sleep(0.5)
    return client, resumed


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", ["notify", "verify"])
def test_the_backend_may_change_a_session_that_comes_back(impl: str, mode: str) -> None:
    changes = {
        "status": 1,
        "transmissions": ['{"type":"hello again"}'],
        "env": {"cstate": {"n": "2"}, "istate": {ROOM: '{"seen":"41"}'}},
        "streams": [{"identifier": ROOM, "streams": ["more"]}],
    }

    async def run(cable: Server) -> None:
        client, resumed = await come_back(cable)
        assert resumed == [True]
        assert any(frame.get("type") == "hello again" for frame in client.frames)
        with cable.publisher() as publisher:
            await asyncio.to_thread(publisher.publish, "more", id="of another stream")
        await client.perform(ROOM, "count")
        await asyncio.sleep(0.5)
        messages = [f["message"]["id"] for f in client.frames if f.get("identifier") == ROOM and "message" in f]
        assert sorted(messages) == ["count-42", "of another stream"]
        await client.close()

    with Backend(impl, Remembering(changes)) as backend:
        with server(*backend.options, *RESUMABLE, f"--rpc_restore={mode}", "--disconnect_mode=deferred") as cable:
            asyncio.run(run(cable))
        [request] = backend.app.of("restore")
        [(_, _, before)] = [asked for asked in backend.app.asked if asked[0] == "connect"]
        assert (request["prev_sid"], request["subscriptions"]) == (before, [ROOM])
        assert request["identifiers"] == json.dumps({"user": before})
        assert json.loads(request["env"]["istate"][ROOM])["seen"] == "0"
        assert not request.get("disconnect_notified")
        assert len(backend.app.of("disconnect")) == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_backend_may_refuse_a_session_that_comes_back(impl: str) -> None:
    async def run(cable: Server) -> None:
        client, resumed = await come_back(cable)
        assert resumed == [False]
        await client.close()

    with Backend(impl, Remembering({"status": 2})) as backend:
        with server(*backend.options, *RESUMABLE, "--rpc_restore=verify", "--disconnect_mode=deferred") as cable:
            asyncio.run(run(cable))
        assert len(backend.app.of("connect")) == len(backend.app.of("disconnect")) == 2


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_backend_that_does_not_know_of_restores_is_asked_once(impl: str) -> None:
    async def run(cable: Server) -> None:
        client, resumed = await come_back(cable, times=3)
        assert resumed == [True] * 3
        await client.close()

    with Backend(impl, Remembering(None)) as backend:
        with server(*backend.options, *RESUMABLE, "--rpc_restore=verify") as cable:
            asyncio.run(run(cable))
            assert cable.log.count("the backend has no restore") == 1
        assert len(backend.app.of("restore")) == 1
