"""The test client, against a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.client import BASE, EXT, CableClient, Disconnected, Rejected
from anycable_tx.testing.identifiers import identifier_of

A = '{"channel":"$pubsub","stream_name":"a"}'


class Peer:
    """The server's end of one connection, to be scripted."""

    def __init__(self, ws: ServerConnection):
        self.ws = ws
        assert ws.request is not None
        self.path = ws.request.path
        self.headers = ws.request.headers

    async def say(self, **frame: Any) -> None:
        await self.ws.send(json.dumps(frame))

    async def hear(self) -> dict[str, Any]:
        command: dict[str, Any] = json.loads(await asyncio.wait_for(self.ws.recv(), 5))
        return command

    async def message(self, offset: int, message: Any = None, stream: str = "a", identifier: str = A) -> None:
        content = {"id": offset} if message is None else message
        await self.say(identifier=identifier, message=content, stream_id=stream, epoch="e", offset=offset)

    async def welcome(self, sid: str, **more: Any) -> None:
        await self.say(type="welcome", sid=sid, **more)

    async def confirm(self, history: bool = True) -> dict[str, Any]:
        command = await self.hear()
        assert command["command"] == "subscribe"
        await self.say(type="confirm_subscription", identifier=command["identifier"])
        if history:
            await self.say(type="confirm_history", identifier=command["identifier"])
        return command

    async def stay(self) -> None:
        """Until the client leaves."""
        await self.ws.wait_closed()

    def abort(self) -> None:
        self.ws.transport.abort()


def play(
    *scripts: Callable[[Peer], Awaitable[None]], client: Callable[[CableClient], Awaitable[None]], **options: Any
) -> None:
    """Run *client* against a server whose n-th connection follows the n-th script. Both must end well."""

    async def run() -> None:
        waiting = list(scripts)
        failures: list[BaseException] = []

        async def handler(ws: ServerConnection) -> None:
            try:
                await waiting.pop(0)(Peer(ws))
            except BaseException as e:
                failures.append(e)
                raise

        async with serve(handler, "127.0.0.1", 0, subprotocols=[EXT, BASE]) as server:  # type: ignore[list-item]
            port = next(iter(server.sockets)).getsockname()[1]
            try:
                await client(CableClient(f"ws://127.0.0.1:{port}/cable", **options))
            except (TimeoutError, AssertionError, Disconnected):
                if failures:
                    raise failures[0] from None
                raise
        assert not waiting, "not every script was played"
        assert not failures, failures

    asyncio.run(asyncio.wait_for(run(), 20))


def test_resumes_with_its_session_and_the_last_position_of_each_stream() -> None:
    async def first(peer: Peer) -> None:
        assert peer.path == "/cable"
        await peer.welcome("s1")
        assert (await peer.confirm())["history"] == {"since": 100, "streams": {}}
        await peer.message(1)
        await peer.message(3)
        await peer.message(2)
        await peer.message(4, message=0)
        await peer.stay()

    async def second(peer: Peer) -> None:
        assert peer.path == "/cable?sid=s1"
        await peer.welcome("s2", restored=True, restored_ids=[A])
        command = await peer.hear()
        streams = {"a": {"epoch": "e", "offset": 2}}
        assert command == {"command": "history", "identifier": A, "history": {"since": 100, "streams": streams}}
        await peer.message(3)
        await peer.say(type="confirm_history", identifier=A)
        await peer.message(4)
        await peer.stay()

    log = EventLog()

    async def client(c: CableClient) -> None:
        await c.connect()
        assert await c.subscribe(stream="a") == A
        assert await c.messages(A, 4) == [{"id": 1}, {"id": 3}, {"id": 2}, 0]
        await c.cut()
        assert await c.resume()
        assert await c.messages(A, 2) == [{"id": 3}, {"id": 4}]
        assert c.sid == "s2"
        await c.close()

    play(first, second, client=client, log=log, since=100)
    names = [e["event"] for e in log.events]
    assert names == [
        "connected",
        "subscribed",
        *["received"] * 4,
        "cut",
        "connected",
        *["received"] * 2,
        "gone",
    ]
    hows = [e["how"] for e in log.events if e["event"] == "received"]
    assert hows == ["live"] * 4 + ["replay", "live"]
    assert [e["restored"] for e in log.events if e["event"] == "connected"] == [False, True]


def test_forgets_its_session_but_not_its_positions_when_told_to_disconnect() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.confirm()
        await peer.message(7)
        await peer.say(type="disconnect", reason="server_restart", reconnect=True)
        await peer.ws.close(1001)

    async def second(peer: Peer) -> None:
        assert peer.path == "/cable"
        await peer.welcome("s2")
        command = await peer.confirm(history=False)
        assert command["history"]["streams"] == {"a": {"epoch": "e", "offset": 7}}
        await peer.say(type="reject_history", identifier=A)
        await peer.stay()

    log = EventLog()

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.subscribe(stream="a")
        ended = await c.ended()
        assert ended.frame == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
        assert (ended.code, c.sid) == (1001, None)
        assert not await c.resume()
        await c.expect(type="reject_history", identifier=A)
        await c.close()

    play(first, second, client=client, log=log)
    assert [e["from"] for e in log.events if e["event"] == "subscribed"] == [{}, {"a": {"epoch": "e", "offset": 7}}]
    assert [e["identifier"] for e in log.events if e["event"] == "refused"] == [A]


def test_subscribes_again_what_was_not_restored_and_joins_again_what_was() -> None:
    b = identifier_of("$pubsub", stream_name="b")

    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.confirm()
        assert (await peer.confirm())["presence"] == {"id": "7"}
        assert (await peer.hear())["command"] == "join"
        peer.abort()

    async def second(peer: Peer) -> None:
        await peer.welcome("s2", restored=True, restored_ids=[b])
        assert (await peer.hear())["command"] == "history"
        assert await peer.hear() == {"command": "join", "identifier": b, "presence": {"id": "7", "info": {"n": 1}}}
        assert (await peer.confirm())["identifier"] == A
        await peer.say(type="confirm_history", identifier=b)
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.subscribe(stream="a")
        await c.subscribe(stream="b", presence={"id": "7"})
        await c.join(b, "7", {"n": 1})
        await c.ended()
        assert await c.resume()
        await c.close()

    play(first, second, client=client)


def test_a_base_client_neither_resumes_nor_asks_for_history() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        assert await peer.confirm(history=False) == {"command": "subscribe", "identifier": A}
        peer.abort()

    async def second(peer: Peer) -> None:
        assert peer.path == "/cable"
        await peer.welcome("s2")
        await peer.confirm(history=False)
        await peer.stay()

    log = EventLog()

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.subscribe(stream="a")
        await c.ended()
        assert not await c.resume()
        await c.close()

    play(first, second, client=client, protocol=BASE, log=log)
    assert [e["from"] for e in log.events if e["event"] == "subscribed"] == [None, None]


def test_answers_a_confirmation_it_does_not_wait_for_with_unsubscribe() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.confirm()
        await peer.say(type="confirm_subscription", identifier=A)
        assert await peer.hear() == {"command": "unsubscribe", "identifier": A}
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.subscribe(stream="a")
        await c.expect(type="confirm_subscription")
        await c.close()

    play(first, client=client)


def test_comes_back_by_itself_until_told_not_to() -> None:
    async def cut(peer: Peer) -> None:
        await peer.welcome("s1")
        peer.abort()

    async def no_welcome(peer: Peer) -> None:
        peer.abort()

    async def dismissed(peer: Peer) -> None:
        await peer.say(type="disconnect", reason="unauthorized", reconnect=False)
        await peer.ws.close(1000)

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.expect(type="disconnect")
        await c.ended()
        await asyncio.sleep(0.05)
        assert c.connection == 4
        await c.close()

    play(cut, no_welcome, cut, dismissed, client=client, reconnect_after=lambda attempt: 0.01)


def test_a_rejected_subscription_raises() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.say(type="reject_subscription", identifier=(await peer.hear())["identifier"])
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        with pytest.raises(Rejected):
            await c.subscribe(stream="a")
        await c.close()

    play(first, client=client)


def test_an_unanswered_subscription_is_asked_for_twice_and_times_out() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        assert (await peer.hear())["command"] == "subscribe"
        assert (await peer.hear())["command"] == "subscribe"
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        with pytest.raises(TimeoutError, match="no answer to the subscription"):
            await c.subscribe(stream="a", within=0.2)
        await c.close()

    play(first, client=client)


def test_commands_look_as_the_official_clients_do() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.confirm()
        assert await peer.hear() == {"command": "message", "identifier": A, "data": '{"n": 1, "action": "go"}'}
        assert await peer.hear() == {"command": "whisper", "identifier": A, "data": [1]}
        assert await peer.hear() == {"command": "presence", "identifier": A, "data": {}}
        await peer.say(type="presence", identifier=A, message={"type": "join", "id": "9"})
        await peer.say(type="presence", identifier=A, message={"type": "info", "total": 0})
        assert await peer.hear() == {"command": "leave", "identifier": A}
        command = await peer.hear()
        assert command["history"] == {"streams": {"a": {"epoch": "e", "offset": 0}}}
        await peer.message(1)
        await peer.say(type="confirm_history", identifier=A)
        assert (await peer.hear())["command"] == "unsubscribe"
        assert (await peer.hear())["command"] == "ping"
        await peer.say(type="pong")
        await peer.say(type="ping", message=1)
        assert await peer.hear() == {"command": "pong"}
        await peer.stay()

    log = EventLog()

    async def client(c: CableClient) -> None:
        await c.connect()
        await c.subscribe(stream="a")
        await c.perform(A, "go", n=1)
        await c.whisper(A, [1])
        assert await c.presence(A) == {"type": "info", "total": 0}
        assert (await c.expect(type="presence"))["message"]["id"] == "9"
        await c.leave(A)
        assert await c.history(A, streams={"a": {"epoch": "e", "offset": 0}})
        assert await c.message(A) == {"id": 1}
        await c.unsubscribe(A)
        await c.expect(type="ping")
        await c.close()

    play(first, client=client, pongs=True, log=log)
    names = [e["event"] for e in log.events]
    assert names[2:6] == ["asked", "received", "unsubscribing", "unsubscribed"]


@pytest.mark.parametrize(
    ("where", "path", "header", "protocols"),
    [
        ("param", "/cable?jid=t", None, EXT),
        ("header", "/cable", "t", EXT),
        ("protocol", "/cable", None, f"{EXT}, anycable-token.t"),
    ],
)
def test_puts_the_token_where_it_is_told(where: str, path: str, header: str | None, protocols: str) -> None:
    async def first(peer: Peer) -> None:
        assert (peer.path, peer.headers.get("x-jid")) == (path, header)
        assert peer.headers["Sec-WebSocket-Protocol"] == protocols
        await peer.welcome("s1")
        await peer.stay()

    async def client(c: CableClient) -> None:
        async with c:
            pass

    play(first, client=client, token="t", token_in=where)


def test_a_connection_ended_before_the_welcome_raises() -> None:
    async def first(peer: Peer) -> None:
        await peer.say(type="disconnect", reason="unauthorized", reconnect=False)
        await peer.ws.close(1000)

    async def client(c: CableClient) -> None:
        with pytest.raises(Disconnected, match="unauthorized"):
            await c.connect()

    play(first, client=client)


def test_expectations_name_what_is_there_instead() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.message(1)
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        with pytest.raises(TimeoutError, match="'offset': 1"):
            await c.expect(within=0.1, type="pong")
        with pytest.raises(TimeoutError, match="1 messages instead of 2"):
            await c.messages(A, 2, within=0.1)
        with pytest.raises(AssertionError, match="expected silence"):
            await c.expect_silence(0)
        await c.close()

    play(first, client=client)


def test_the_checker_needs_to_know_the_streams() -> None:
    async def first(peer: Peer) -> None:
        await peer.welcome("s1")
        await peer.stay()

    async def client(c: CableClient) -> None:
        await c.connect()
        with pytest.raises(ValueError, match="needs to be told the streams"):
            await c.subscribe('{"channel":"ChatChannel"}')
        await c.close()

    play(first, client=client, log=EventLog())
