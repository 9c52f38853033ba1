"""What follows from an embedded NATS server, and which presets bring one."""

from __future__ import annotations

import pytest

from anycable_tx.config import presets
from tests.config.conftest import Load

FLY = {"FLY_APP_NAME": "app", "FLY_ALLOC_ID": "1", "FLY_REGION": "ams"}
DEFAULT = ("nats://127.0.0.1:4222",)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "find", lambda named: "/bin/nats-server")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    monkeypatch.setattr(presets, "find", lambda named: "")


@pytest.mark.parametrize(
    ("argv", "servers"),
    [
        (["--embed_nats"], DEFAULT),
        (["--embed_nats", "--enats_addr=nats://127.0.0.1:4333"], ("nats://127.0.0.1:4333",)),
        (["--embed_nats", "--enats_addr=nats://0.0.0.0:4333"], ("nats://127.0.0.1:4333",)),
        (["--embed_nats", "--enats_addr=nats://[::]:4333"], ("nats://[::1]:4333",)),
        (["--embed_nats", "--enats_addr=nats://u:p%40@0.0.0.0:4333"], ("nats://u:p%40@127.0.0.1:4333",)),
        (["--embed_nats", "--enats_addr=nats://token@10.0.0.1:4333"], ("nats://token@10.0.0.1:4333",)),
        (["--embed_nats", "--nats_servers=nats://far:4222"], ("nats://far:4222",)),
        (["--enats_addr=nats://127.0.0.1:4333"], DEFAULT),
        (["--embed_nats", "--enats_addr=nonsense"], DEFAULT),
    ],
)
def test_the_embedded_server_is_the_one_to_connect_to_unless_others_are_named(
    load: Load, argv: list[str], servers: tuple[str, ...]
) -> None:
    assert load(*argv)["nats_servers"] == servers


def test_an_embedded_server_alone_changes_nothing_else(load: Load) -> None:
    with_it, without = load("--embed_nats", "--node_id=n"), load("--node_id=n")
    assert {name for name in with_it if with_it[name] != without[name]} == {"embed_nats"}
    assert (with_it["broker"], with_it["pubsub"], with_it["broadcast_adapter"]) == ("none", "none", ("http",))


@pytest.mark.statement("BR-72", "BR-73")
@pytest.mark.parametrize("names", ["fly,broker", "broker,fly"])
def test_on_fly_the_machines_have_a_nats_of_their_own(load: Load, names: str) -> None:
    settings = load(f"--presets={names}", env=FLY)
    assert settings["embed_nats"]
    assert (settings["broker"], settings["pubsub"], settings["broadcast_adapter"]) == (
        "nats",
        "nats",
        ("http", "nats"),
    )
    assert settings["nats_servers"] == DEFAULT
    assert settings["enats_addr"] == "nats://0.0.0.0:4222"
    assert settings["enats_cluster"] == "nats://0.0.0.0:5222"
    assert settings["enats_cluster_name"] == "app-ams-cluster"
    assert settings["enats_cluster_routes"] == ("nats://ams.app.internal:5222",)
    assert settings["enats_gateway_advertise"] == "ams.app.internal:7222"
    assert (settings["enats_server_name"], settings["enats_gateway"]) == ("", "")


@pytest.mark.statement("CO-21", "BR-72")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], (True, "none", "nats", ("http", "nats"))),
        (["--redis_url=r"], (False, "none", "redis", ("http",))),
        (["--nats_servers=n"], (False, "none", "nats", ("http", "nats"))),
        (["--nats_servers=n", "--embed_nats"], (True, "none", "nats", ("http", "nats"))),
        (["--embed_nats=false"], (False, "none", "none", ("http",))),
        (["--broker=memory"], (False, "memory", "none", ("http",))),
        (["--broker=nats"], (True, "nats", "nats", ("http", "nats"))),
        (["--pubsub=none"], (False, "none", "none", ("http",))),
        (["--broadcast_adapter=http"], (True, "none", "nats", ("http",))),
        (["--redis_url=r", "--embed_nats"], (True, "none", "redis", ("http",))),
    ],
)
def test_the_fly_preset_takes_the_bus_that_is_configured(
    load: Load, argv: list[str], expected: tuple[object, ...]
) -> None:
    settings = load(*argv, env=FLY)
    chosen = ("embed_nats", "broker", "pubsub", "broadcast_adapter")
    assert tuple(settings[name] for name in chosen) == expected


@pytest.mark.statement("CO-22")
def test_what_is_given_survives_the_fly_preset(load: Load) -> None:
    given = {
        "enats_addr": "nats://u:secret@0.0.0.0:4333",
        "enats_cluster": "nats://0.0.0.0:5333",
        "enats_cluster_name": "mine",
        "enats_cluster_routes": "nats://a:5333",
        "enats_gateway_advertise": "b:7333",
    }
    settings = load(*(f"--{name}={value}" for name, value in given.items()), env=FLY)
    assert {name: settings[name] for name in given} == given | {"enats_cluster_routes": ("nats://a:5333",)}
    assert load("--nats_servers=nats://far:4222", env=FLY)["nats_servers"] == ("nats://far:4222",)


@pytest.mark.parametrize("text", ["", "none"])
def test_one_machine_on_fly_has_no_cluster_when_that_is_said(load: Load, text: str) -> None:
    assert load(env=FLY | {"ANYCABLE_ENATS_CLUSTER": text})["enats_cluster"] == ""


def test_without_a_binary_the_fly_preset_embeds_nothing_and_says_so(load: Load, missing: None) -> None:
    settings = load("--noauth", env=FLY)
    assert (settings["embed_nats"], settings["pubsub"], settings["broadcast_adapter"]) == (False, "none", ("http",))
    assert any("there is no nats-server; install it" in notice for notice in settings.notices)


@pytest.mark.parametrize(
    ("argv", "is_open"),
    [
        (["--enats_addr=nats://0.0.0.0:4222"], True),
        (["--enats_addr=nats://u:p@0.0.0.0:4222"], False),
        (["--enats_addr=nats://127.0.0.1:4222"], False),
        (["--enats_addr=nats://[::1]:4222"], False),
        ([], False),
    ],
)
def test_an_address_that_is_open_to_others_is_a_notice(load: Load, argv: list[str], is_open: bool) -> None:
    notices = load("--embed_nats", "--noauth", *argv).notices
    assert ["may read and publish everything" in notice for notice in notices] == [True] * is_open
