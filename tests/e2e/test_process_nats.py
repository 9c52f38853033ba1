"""NATS by name, from the command line: the broker, the bus alone, and the fan-out alone."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anycable_tx.testing.client import CableClient
from anycable_tx.testing.nats_servers import KINDS, NatsServer
from anycable_tx.testing.redis_servers import RedisServer
from tests.e2e.process import Process, ended, get, post, until
from tests.e2e.test_process_start import TWISTD

pytestmark = pytest.mark.e2e

PUBLICATION = json.dumps({"stream": "s", "data": '"hello"'})


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    with NatsServer(kind=request.param) as server:
        yield server


@pytest.fixture
def pair(server: NatsServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Process, Process]]:
    """Two nodes with the option of the test's own."""
    with ExitStack() as stack:
        own = (request.param, f"--nats_servers={server.url}", "--public", "--ignore_config_path")
        nodes = [stack.enter_context(Process(*own, cwd=tmp_path)) for _ in range(2)]
        for node in nodes:
            node.ready()
        until(lambda: all(get(node.port, "/ready")[0] == 200 for node in nodes), "readiness")
        yield nodes[0], nodes[1]
        for node in nodes:
            node.stop()


@pytest.mark.statement("BR-35", "BR-51", "BR-68", "BR-78")
@pytest.mark.parametrize("pair", ["--broker=nats"], indirect=True)
def test_the_broker_by_its_name_is_one_server_of_several_nodes(
    server: NatsServer, pair: tuple[Process, Process]
) -> None:
    one, other = pair
    lines = [line for line in one.out.splitlines() if "NATS" in line or "Starting AnyCable" in line]
    assert "reactor: AsyncioSelectorReactor" in lines[0]
    address = server.url.removeprefix("nats://")
    assert any(f"Using NATS broker: {address} (history limit: 100," in line for line in lines), lines
    assert any(f"Starting NATS pub/sub: {address}" in line for line in lines), lines
    assert any("NATS broker is ready" in line for line in lines), lines

    async def run() -> None:
        async with CableClient(one.url) as client:
            identifier = await client.subscribe(stream="s")
            assert post(other.broadcast_port, PUBLICATION) == 201
            assert await client.message(identifier) == "hello"
            before = client.memory.positions["s"]
            await client.cut()
            assert post(other.broadcast_port, PUBLICATION) == 201
            client.url = other.url
            assert await client.resume()
            assert await client.message(identifier) == "hello"
            after = client.memory.positions["s"]
            assert after["epoch"] == before["epoch"]
            assert after["offset"] > before["offset"]

    asyncio.run(run())


@pytest.mark.statement("BR-35", "BR-12")
@pytest.mark.parametrize("pair", ["--pubsub=nats"], indirect=True)
def test_the_bus_by_its_name_brings_messages_and_commands_to_other_nodes(pair: tuple[Process, Process]) -> None:
    one, other = pair

    async def run() -> None:
        async with CableClient(one.url) as client:
            identifier = await client.subscribe(stream="s")
            assert post(other.broadcast_port, PUBLICATION) == 201
            assert await client.message(identifier) == "hello"
            assert client.memory.positions == {}
            identifiers = json.dumps({"sid": client.sid}, separators=(",", ":"))
            command = {"command": "disconnect", "payload": {"identifier": identifiers, "reconnect": False}}
            assert post(other.broadcast_port, json.dumps(command)) == 201
            await client.ended()

    asyncio.run(run())


@pytest.mark.statement("BR-31")
@pytest.mark.parametrize("pair", ["--broadcast_adapter=nats"], indirect=True)
def test_the_fan_out_by_its_name_reaches_every_node(server: NatsServer, pair: tuple[Process, Process]) -> None:
    async def run() -> None:
        clients = [CableClient(node.url) for node in pair]
        for client in clients:
            await client.connect()
        identifiers = [await client.subscribe(stream="s") for client in clients]
        await asyncio.to_thread(server.publish, "__anycable__", PUBLICATION.encode())
        for client, identifier in zip(clients, identifiers, strict=True):
            assert await client.message(identifier) == "hello"
            await client.close()

    asyncio.run(run())


#: What the guide says that a user needs.
PERMISSIONS = """authorization { users = [ { user: cable, password: secret, permissions: {
    publish: ["$JS.API.>", "$KV.>", "ac.>"], subscribe: ["_INBOX.>", "ac.>", "__anycable__"]
} } ] }"""


def test_it_needs_no_more_permissions_than_the_guide_says(tmp_path: Path) -> None:
    with NatsServer(PERMISSIONS, credentials="cable:secret") as server:
        options = ("--presets=broker", f"--nats_servers={server.url}", "--public", "--ignore_config_path")
        with Process(*options, cwd=tmp_path) as node:
            node.ready()
            until(lambda: get(node.port, "/ready")[0] == 200, "readiness")

            async def run() -> None:
                async with CableClient(node.url) as client:
                    identifier = await client.subscribe(stream="s")
                    await client.expect(type="confirm_history")
                    assert post(node.broadcast_port, PUBLICATION) == 201
                    assert await client.message(identifier) == "hello"
                    await client.cut()
                    assert post(node.broadcast_port, PUBLICATION) == 201
                    assert await client.resume()
                    assert await client.message(identifier) == "hello"
                    await client.join(identifier, "ann")
                    assert (await client.presence(identifier))["total"] == 1
                    command = {"command": "disconnect", "payload": {"identifier": "somebody"}}
                    assert post(node.broadcast_port, json.dumps(command)) == 201

            asyncio.run(run())
            node.stop()
        assert "Violation" not in server.log
        assert "Violation" not in node.out


@pytest.mark.statement("F56", "BR-69", "P6")
def test_what_is_published_before_jetstream_is_ready_is_refused_or_waits_and_is_never_dropped(tmp_path: Path) -> None:
    with NatsServer(jetstream=False) as server:
        options = ("--broker=nats", f"--nats_servers={server.url}", "--public", "--ignore_config_path")
        with Process(*options, "--broadcast_hold=2", cwd=tmp_path) as node:
            node.ready()
            assert get(node.port, "/health")[0] == 200
            assert get(node.port, "/ready")[0] == 503
            assert post(node.broadcast_port, PUBLICATION) == 501
            server.stop()
            server.jetstream = True
            server.configure()
            server.start()
            until(lambda: post(node.broadcast_port, PUBLICATION) == 201, "a publication that is taken")
            until(lambda: get(node.port, "/ready")[0] == 200, "readiness")

            async def run() -> None:
                async with CableClient(node.url, since=int(time.time()) - 60) as client:
                    identifier = await client.subscribe(stream="s")
                    assert await client.message(identifier) == "hello"
                    await client.expect(type="confirm_history")
                    await client.expect_silence()

            asyncio.run(run())
            node.stop()


@pytest.mark.statement("F58", "P3")
def test_a_node_that_was_too_slow_for_nats_loses_nothing(tmp_path: Path) -> None:
    with NatsServer("max_pending: 2000000", 'write_deadline: "500ms"') as server, ExitStack() as stack:
        options = ("--broker=nats", f"--nats_servers={server.url}", "--public", "--ignore_config_path")
        one, other = (stack.enter_context(Process(*options, cwd=tmp_path)).ready() for _ in range(2))

        async def run() -> None:
            async with CableClient(one.url) as client:
                identifier = await client.subscribe(stream="s")
                one.send(signal.SIGSTOP)
                try:
                    for number in range(100):
                        data = json.dumps({"number": number, "more": "x" * 100_000})
                        assert post(other.broadcast_port, json.dumps({"stream": "s", "data": data})) == 201
                    until(lambda: "Slow Consumer" in server.log, "the server's giving up")
                finally:
                    one.send(signal.SIGCONT)
                messages = await client.messages(identifier, 100, within=15)
                assert [message["number"] for message in messages] == list(range(100))

        asyncio.run(run())
        one.stop()
        other.stop()


@pytest.mark.statement("BR-33")
def test_all_ways_in_together_bring_each_message_once(tmp_path: Path) -> None:
    with NatsServer() as server, RedisServer() as redis:
        options = ("--broker=nats", f"--nats_servers={server.url}", f"--redis_url={redis.url}")
        ways = "--broadcast_adapter=http,redisx,redis,nats"
        with Process(
            *options, ways, "--redis_channel=legacy", "--public", "--ignore_config_path", cwd=tmp_path
        ) as node:
            node.ready()
            until(lambda: get(node.port, "/ready")[0] == 200, "readiness")

            async def run() -> None:
                async with CableClient(node.url) as client:
                    identifier = await client.subscribe(stream="s")
                    await client.expect(type="confirm_history")
                    for number, publish in enumerate(
                        (
                            lambda text: post(node.broadcast_port, text),
                            lambda text: redis.ask("XADD", "__anycable__", "*", "payload", text),
                            lambda text: redis.ask("PUBLISH", "legacy", text),
                            lambda text: server.publish("__anycable__", text.encode()),
                        )
                    ):
                        await asyncio.to_thread(publish, json.dumps({"stream": "s", "data": str(number)}))
                        assert await client.message(identifier) == number
                    await client.expect_silence()

            asyncio.run(run())
            node.stop()


def test_another_bus_beside_the_broker_is_refused(tmp_path: Path) -> None:
    process = ended(
        *TWISTD, "-n", "anycable", "--broker=nats", "--pubsub=redis", "--ignore_config_path", cwd=tmp_path
    )
    assert process.returncode != 0
    assert "the broker nats hands messages on over NATS; leave pubsub out, or give nats" in process.stderr


@pytest.mark.parametrize("prefix", ["", "my.app", "a b", "*"])
def test_a_prefix_that_cannot_be_one_stops_the_start(tmp_path: Path, prefix: str) -> None:
    options = ("--broker=nats", f"--nats_prefix={prefix}", "--ignore_config_path")
    process = ended(*TWISTD, "-n", "anycable", *options, cwd=tmp_path)
    assert process.returncode != 0
    assert f"nats_prefix: {prefix!r} is not accepted; expected letters and digits" in process.stderr
