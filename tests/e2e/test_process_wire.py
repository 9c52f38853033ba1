"""A running server from outside: who may publish and connect where, and closing clients from afar."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from anycable_tx.testing.client import BASE, EXT, CableClient, Disconnected, Rejected
from anycable_tx.testing.processes import HOST, free_port
from tests.e2e.process import Process, accepts, post

pytestmark = pytest.mark.e2e

SECRET = "the-secret-of-the-application-itself"
KEY = hmac.new(SECRET.encode(), b"broadcast-cable", hashlib.sha256).hexdigest()
PUBLICATION = '{"stream":"s","data":"\\"hello\\""}'


def token(user: str, secret: str = SECRET) -> str:
    return jwt.encode({"ext": json.dumps({"user": user})}, secret)


def signed(stream: str) -> str:
    """The identifier of a subscription to *stream* by its signed name."""
    name = base64.b64encode(json.dumps(stream).encode()).decode()
    digest = hmac.new(SECRET.encode(), name.encode(), hashlib.sha256).hexdigest()
    return json.dumps({"channel": "$pubsub", "signed_stream_name": f"{name}--{digest}"})


def disconnect(identifiers: str, reconnect: bool | None = None) -> str:
    payload = {"identifier": identifiers} | ({} if reconnect is None else {"reconnect": reconnect})
    return json.dumps({"command": "disconnect", "payload": payload})


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with a secret, whose ports follow from that."""
    cwd = tmp_path_factory.mktemp("protected")
    with Process(f"--secret={SECRET}", "--presets=broker", "--ignore_config_path", cwd=cwd, broadcast=False) as it:
        yield it.ready()
        it.stop()


@pytest.mark.statement("CO-13", "BR-15", "BR-16")
def test_with_a_secret_publications_need_the_derived_key_on_the_main_port(protected: Process) -> None:
    assert (
        f"Accept broadcast requests at http://{HOST}:{protected.port}/_broadcast (authorization required)"
        in protected.out
    )

    async def run() -> None:
        async with CableClient(protected.url, token=token("ann")) as client:
            identifier = await client.subscribe(signed("s"), streams=["s"])
            await client.expect(type="confirm_history")
            assert post(protected.port, PUBLICATION) == 401
            assert post(protected.port, PUBLICATION, key=SECRET) == 401
            await client.expect_silence()
            assert post(protected.port, PUBLICATION, key=KEY) == 201
            assert await client.message(identifier) == "hello"

    asyncio.run(run())


@pytest.mark.statement("BR-12", "CO-46", "CP-139", "CP-102")
@pytest.mark.parametrize("reconnect", [None, False, True])
def test_a_remote_disconnect_closes_every_session_of_the_identifiers_and_no_other(
    protected: Process, reconnect: bool | None
) -> None:
    async def run() -> None:
        anns = [
            CableClient(protected.url, token=token("ann"), protocol=protocol, name=f"ann-{n}")
            for n, protocol in enumerate([BASE, EXT, EXT])
        ]
        for client in anns:
            await client.connect()
        sid = anns[1].sid
        async with CableClient(protected.url, token=token("bob")) as bob:
            command = disconnect(json.dumps({"user": "ann"}), reconnect)
            assert post(protected.port, command, key=KEY) == 201
            frame = {"type": "disconnect", "reason": "remote", "reconnect": bool(reconnect)}
            for client in anns:
                await client.ended()
                assert (client.disconnect, client.close_code) == (frame, 1000)
            await bob.ping()
            await bob.expect_silence()
        anns[1].sid = sid
        await anns[1].connect()
        assert not anns[1].restored
        await anns[1].close()

    asyncio.run(run())


@pytest.mark.statement("CO-13", "BR-15")
def test_without_a_secret_publications_are_taken_on_a_port_of_their_own(tmp_path: Path) -> None:
    """The port is 8090 unless another one is given; where it is in use, only the log can tell."""
    if accepts(8090):
        pytest.skip("port 8090 is in use")
    with Process("--ignore_config_path", "--broker=none", cwd=tmp_path, broadcast=False) as it:
        it.ready()
        assert f"Accept broadcast requests at http://{HOST}:8090/_broadcast (no authorization)" in it.out
        assert post(it.port, PUBLICATION) == 404
        assert post(8090, PUBLICATION) == 201
        it.stop()


@pytest.mark.statement("BR-15")
@pytest.mark.parametrize("options", [(), (f"--broadcast_key={KEY}",)])
def test_an_explicit_port_wins(options: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port()
    with Process(
        "--ignore_config_path", *options, f"--http_broadcast_port={port}", cwd=tmp_path, broadcast=False
    ) as it:
        it.ready()
        assert post(port, PUBLICATION, key=KEY) == 201
        assert post(port, PUBLICATION) == (401 if options else 201)
        assert post(it.port, PUBLICATION, key=KEY) == 404
        it.stop()


@pytest.mark.statement("CO-18")
def test_public_mode_needs_no_credentials_and_still_refuses_an_invalid_token(tmp_path: Path) -> None:
    options = ("--public", f"--secret={SECRET}", "--ignore_config_path")
    with Process(*options, cwd=tmp_path, broadcast=False) as it:
        it.ready()

        async def run() -> None:
            async with CableClient(it.url) as anybody:
                identifier = await anybody.subscribe(stream="s")
                assert post(it.port, PUBLICATION) == 201
                assert await anybody.message(identifier) == "hello"
            async with CableClient(it.url, token=token("ann")) as ann:
                await ann.subscribe(stream="s")
            eve = CableClient(it.url, token=token("eve", "another-secret-that-is-long-enough"))
            with pytest.raises(Disconnected) as refused:
                await eve.connect()
            assert refused.value.frame == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}

        asyncio.run(run())
        it.stop()


def test_without_public_mode_an_unsigned_name_is_rejected(protected: Process) -> None:
    async def run() -> Any:
        async with CableClient(protected.url, token=token("ann")) as client:
            with pytest.raises(Rejected):
                await client.subscribe(stream="s")

    asyncio.run(run())
