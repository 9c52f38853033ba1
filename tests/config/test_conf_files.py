"""The configurations that are shipped in conf/."""

from __future__ import annotations

from pathlib import Path

import pytest

import anycable_tx
from anycable_tx.config.load import load_settings
from anycable_tx.config.settings import Settings

ROOT = Path(anycable_tx.__file__).parent.parent


def _load(name: str, **env: str) -> Settings:
    return load_settings([f"--config_path=conf/{name}"], env, str(ROOT))


SHIPPED = ("anycable.yml", "backend.yml", "cluster.yml", "public.yml", "standalone.yml")


def test_every_shipped_configuration_is_loaded_here() -> None:
    assert {path.name for path in (ROOT / "conf").glob("*.yml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_strict(name: str) -> None:
    assert _load(name)["strict"]


def test_the_example_keeps_history_and_sessions() -> None:
    settings = _load("anycable.yml", ANYCABLE_SECRET="s")
    assert settings.notices == ()
    assert (settings["broker"], settings["broadcast_adapter"]) == ("memory", ("http",))
    assert [rule["class"] for rule in settings["broker_rules"]] == ["chat", "typing"]


@pytest.mark.parametrize(
    ("given", "broker"),
    [("--redis_url=redis://localhost:6379", "redis"), ("--embed_nats", "nats"), ("--workers=2", "nats")],
)
def test_the_example_takes_the_store_that_is_named(given: str, broker: str) -> None:
    settings = load_settings(["--presets=broker", given], {}, str(ROOT))
    assert (settings.config_file, settings["broker"], settings["pubsub"]) == ("conf/anycable.yml", broker, broker)


def test_the_example_is_found_without_naming_it() -> None:
    assert load_settings([], {}, str(ROOT)).config_file == "conf/anycable.yml"


def test_the_standalone_server_checks_tokens_and_signed_names() -> None:
    settings = _load("standalone.yml", ANYCABLE_SECRET="s")
    assert settings.notices == ()
    assert (settings["rpc_impl"], settings["enforce_jwt"], settings["public_streams"]) == ("none", True, False)
    assert settings["controllers"] == ("jwt", "streams", "null")
    assert settings["http_broadcast_port"] == settings["port"]


def test_the_playground_is_open() -> None:
    settings = _load("public.yml")
    assert (settings["noauth"], settings["public_streams"], settings["broadcast_key"]) == (True, True, "")
    assert len(settings.notices) == 1


def test_the_backend_is_asked_over_grpc_unless_told_otherwise() -> None:
    settings = _load("backend.yml")
    assert settings.notices == ()
    assert (settings["rpc_impl"], settings["disconnect_mode"]) == ("grpc", "deferred")
    assert settings["controllers"] == ("streams", "grpc")
    settings = _load("backend.yml", ANYCABLE_RPC_HOST="http://localhost:3000/_anycable", ANYCABLE_SECRET="s")
    assert settings["controllers"] == ("jwt", "streams", "http")


def test_three_nodes_share_what_their_own_nats_servers_keep() -> None:
    settings = _load("cluster.yml", ANYCABLE_SECRET="s")
    assert settings.notices == ()
    assert (settings["broker"], settings["pubsub"]) == ("nats", "nats")
    assert settings["nats_servers"] == ("nats://127.0.0.1:4222",)
    assert len(settings["enats_cluster_routes"]) == 3
