"""How the process ends: what clients and publishers see, how long it takes, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.testing.client import BASE, EXT, CableClient
from anycable_tx.testing.processes import HOST
from tests.e2e.process import RIGGED, Process, accepts, get, post, until

pytestmark = pytest.mark.e2e

OPEN = ("--public", "--ignore_config_path")
KEPT = (*OPEN, "--presets=broker")
RESTART = {"type": "disconnect", "reason": "server_restart", "reconnect": True}


async def clients(it: Process, count: int, **options: Any) -> list[CableClient]:
    """So many connected clients."""
    made = [CableClient(it.url, name=f"client-{n}", **options) for n in range(count)]
    for client in made:
        await client.connect()
    return made


async def ends(made: list[CableClient], within: float = 15.0) -> list[tuple[Any, int | None, str]]:
    """How each connection ended: the disconnect frame, the close code and its text."""
    for client in made:
        await client.ended(within)
    return [(client.disconnect, client.close_code, client.close_reason) for client in made]


@pytest.mark.statement("CO-38", "CP-137", "CO-39", "CO-48", "P8")
def test_each_of_200_clients_is_told_and_an_interrupt_ends_with_status_0(tmp_path: Path) -> None:
    with Process(*KEPT, cwd=tmp_path) as it:
        it.ready()

        async def run() -> None:
            made = await clients(it, 200, protocol=BASE)
            it.send(signal.SIGINT)
            assert await ends(made) == [(RESTART, 1001, "Server restart")] * 200

        asyncio.run(run())
        assert it.wait() == 0
        assert " INF closing active connections nodeid=" in it.out
        assert "num=200\n" in it.out
        assert "still open" not in it.out
        assert it.err == ""


@pytest.mark.statement("CO-39")
def test_an_interrupt_before_the_reactor_runs_ends_with_status_0_as_well(tmp_path: Path) -> None:
    with Process(*OPEN, "--pubsub=rigged_hasty", cwd=tmp_path, env=RIGGED) as it:
        assert it.wait() == 0
        assert " INF Stopped " in it.out
        assert it.err == ""


@pytest.mark.statement("CP-137", "CP-99", "P8")
def test_extended_clients_are_only_closed_and_resume_after_the_restart(tmp_path: Path) -> None:
    options = (*KEPT, "--broker_snapshot=snapshot")

    async def until_the_stop(it: Process) -> list[CableClient]:
        made = await clients(it, 50, protocol=EXT)
        for client in made:
            await client.subscribe(stream="s")
        await asyncio.to_thread(it.stop)
        assert await ends(made) == [(None, 1001, "Server restart")] * 50
        return made

    async def run() -> None:
        with Process(*options, cwd=tmp_path) as it:
            made = await until_the_stop(it.ready())
        with Process(*options, cwd=tmp_path) as again:
            again.ready()
            assert post(again.broadcast_port, '{"stream":"s","data":"\\"missed\\""}') == 201
            for client in made:
                client.url = again.url
                assert await client.resume()
                [identifier] = {f["identifier"] for f in client.frames if "identifier" in f}
                assert await client.messages(identifier, 1) == ["missed"]
                await client.close()
            again.stop()

    asyncio.run(run())


@pytest.mark.statement("CP-138")
def test_what_was_published_before_the_signal_reaches_everybody_first(tmp_path: Path) -> None:
    with Process(*KEPT, cwd=tmp_path) as it:
        it.ready()

        async def run() -> None:
            made = [*await clients(it, 10, protocol=BASE), *await clients(it, 10, protocol=EXT)]
            identifiers = [await client.subscribe(stream="s") for client in made]
            batch = json.dumps([{"stream": "s", "data": json.dumps({"n": n, "pad": "x" * 500})} for n in range(200)])
            assert post(it.broadcast_port, batch) == 201
            it.send()
            assert {code for _, code, _ in await ends(made)} == {1001}
            for client, identifier in zip(made, identifiers, strict=True):
                assert [m["n"] for m in await client.messages(identifier, 200)] == list(range(200))
                assert (client.frames[-1] == RESTART) == (client.protocol == BASE)

        asyncio.run(run())
        assert it.wait() == 0


@pytest.mark.statement("CO-40", "CP-137")
def test_new_connections_are_refused_while_a_publication_under_way_finishes(tmp_path: Path) -> None:
    with Process(*OPEN, "--broker=rigged_slow", cwd=tmp_path, env=RIGGED) as it:
        it.ready()

        async def run() -> None:
            [client] = await clients(it, 1, protocol=BASE)
            identifier = await client.subscribe(stream="s")
            with socket.create_connection((HOST, it.broadcast_port)) as publisher:
                publisher.settimeout(10)
                body = b'{"stream":"s","data":"1"}'
                publisher.sendall(
                    b"POST /_broadcast HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[:9])
                )
                await asyncio.sleep(0.2)
                it.send()
                await asyncio.to_thread(until, lambda: not accepts(it.port), "the ports close")
                assert not accepts(it.broadcast_port)
                assert client.close_code is None
                publisher.sendall(body[9:])
                answer = publisher.recv(9999)
            assert answer.startswith(b"HTTP/1.1 201 ")
            assert b"connection: close" in answer.lower()
            assert await ends([client]) == [(RESTART, 1001, "Server restart")]
            assert await client.messages(identifier, 1) == [1]

        asyncio.run(run())
        assert it.wait() == 0


@pytest.mark.statement("CO-41")
def test_during_the_delay_everything_is_served(tmp_path: Path) -> None:
    with Process(*KEPT, "--shutdown_delay=2", "--health_drain", cwd=tmp_path) as it:
        it.ready()
        assert get(it.port, "/ready") == (200, "ready\n")
        assert get(it.port, "/health") == (200, "healthy\n")

        async def run() -> None:
            [before] = await clients(it, 1, protocol=BASE)
            signalled = time.monotonic()
            it.send()
            await asyncio.to_thread(until, lambda: "Shutting down" in it.out, "the signal")
            await asyncio.sleep(1.0)
            assert get(it.port, "/ready") == (503, "draining\n")
            assert get(it.port, "/health") == (503, "draining\n")
            made = [before, *await clients(it, 1, protocol=BASE)]
            identifiers = [await client.subscribe(stream="s") for client in made]
            assert post(it.broadcast_port, '{"stream":"s","data":"1"}') == 201
            for client, identifier in zip(made, identifiers, strict=True):
                assert await client.message(identifier) == 1
            assert await ends(made) == [(RESTART, 1001, "Server restart")] * 2
            assert time.monotonic() - signalled >= 2.0

        asyncio.run(run())
        assert it.wait() == 0


@pytest.mark.statement("CO-42")
def test_a_stuck_controller_does_not_hold_the_end_up(tmp_path: Path) -> None:
    controllers = "--controllers=rigged_stuck,noauth,streams,null"
    with Process(*KEPT, controllers, "--shutdown_timeout=1", cwd=tmp_path, env=RIGGED) as it:
        it.ready()

        async def run() -> None:
            [client] = await clients(it, 1, protocol=BASE)
            await client.send("subscribe", identifier='{"channel":"stuck"}')
            took = await asyncio.to_thread(it.stop)
            assert 1.0 <= took < 2.0
            assert await ends([client]) == [(RESTART, 1001, "Server restart")]

        asyncio.run(run())
        assert " WRN controllers: gave up waiting " in it.out


@pytest.mark.statement("CO-43", "CO-39")
@pytest.mark.parametrize("phase", ["delay", "drain"])
def test_a_second_signal_ends_it_within_a_second_and_what_was_stored_is_kept(phase: str, tmp_path: Path) -> None:
    slow = "--shutdown_delay=30" if phase == "delay" else "--shutdown_slowdrain"
    with Process(*KEPT, slow, "--broker_snapshot=snapshot", cwd=tmp_path) as it:
        it.ready()

        async def run() -> None:
            made = await clients(it, 30, protocol=BASE)
            assert post(it.broadcast_port, '{"stream":"s","data":"1"}') == 201
            it.send(signal.SIGTERM)
            await asyncio.sleep(0.7)
            assert it.running
            open_still = sum(client.close_code is None for client in made)
            assert open_still == 30 if phase == "delay" else 0 < open_still < 30
            assert await asyncio.to_thread(it.stop, signal.SIGINT) < 1.0
            assert await ends(made) == [(RESTART, 1001, "Server restart")] * 30

        asyncio.run(run())
        assert " WRN interrupted again: not waiting any more " in it.out
        assert (tmp_path / "snapshot").stat().st_size > 0


@pytest.mark.statement("CO-45")
def test_a_slow_drain_closes_clients_one_after_another(tmp_path: Path) -> None:
    with Process(*OPEN, "--shutdown_slowdrain", "--shutdown_timeout=3", cwd=tmp_path) as it:
        it.ready()

        async def run() -> None:
            made = await clients(it, 25, protocol=BASE)
            times = []

            async def watch(client: CableClient) -> None:
                await client.ended(15)
                times.append(time.monotonic())

            watching = [asyncio.create_task(watch(client)) for client in made]
            signalled = time.monotonic()
            it.send()
            await asyncio.gather(*watching)
            # 0.82 of 3 s, in 25 steps
            assert 2.0 <= times[-1] - signalled <= 3.0
            assert times == sorted(times)
            assert sum(t - signalled <= 1.23 for t in times) in range(8, 17)

        asyncio.run(run())
        assert it.wait() == 0


def test_a_start_that_hangs_can_be_ended(tmp_path: Path) -> None:
    with Process(*OPEN, "--pubsub=rigged_hanging", cwd=tmp_path, env=RIGGED) as it:
        until(lambda: "Using no-op" in it.out, "the start")
        time.sleep(0.3)
        assert not accepts(it.port)
        assert it.stop() < 2.0
        assert " ERR " not in it.out
