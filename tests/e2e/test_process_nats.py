"""NATS by name, from the command line: the broker, the bus alone, and the fan-out alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anycable_tx.testing.client import CableClient
from anycable_tx.testing.nats_servers import KINDS, NatsServer
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


def test_another_bus_beside_the_broker_is_refused(tmp_path: Path) -> None:
    process = ended(
        *TWISTD, "-n", "anycable", "--broker=nats", "--pubsub=redis", "--ignore_config_path", cwd=tmp_path
    )
    assert process.returncode != 0
    assert "the broker nats hands messages on over NATS; leave pubsub out, or give nats" in process.stderr
