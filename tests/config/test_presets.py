"""anycable_tx.config.presets"""

from __future__ import annotations

import pytest

from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load

FLY = {"FLY_APP_NAME": "app", "FLY_ALLOC_ID": "1", "FLY_REGION": "ams"}
HEROKU = {"HEROKU_APP_ID": "app", "HEROKU_DYNO_ID": "1"}


@pytest.mark.statement("CO-21", "BR-73")
def test_the_broker_preset_alone_is_memory_and_http(load: Load) -> None:
    settings = load("--presets=broker", "--broadcast_adapter=http")
    assert (settings["broker"], settings["broadcast_adapter"], settings["pubsub"]) == ("memory", ("http",), "none")
    assert settings.presets == ("broker",)
    assert settings.source("broker") == "preset"
    assert not settings.was_set("broker")


@pytest.mark.statement("CO-21", "BR-72", "BR-73")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ("memory", ("http",), "none")),
        (["--redis_url=r"], ("redis", ("http", "redisx", "redis"), "redis")),
        (["--nats_servers=n"], ("nats", ("http", "nats"), "nats")),
        (["--embed_nats"], ("nats", ("http", "nats"), "nats")),
        (["--embed_nats", "--redis_url=r"], ("nats", ("http", "nats"), "nats")),
        (["--nats_servers=n", "--redis_url=r"], ("redis", ("http", "redisx", "redis"), "redis")),
        (["--redis_url=r", "--broker=memory"], ("memory", ("http", "redisx", "redis"), "none")),
        (["--redis_url=r", "--broadcast_adapter=http"], ("redis", ("http",), "redis")),
        (["--redis_url=r", "--broker=memory", "--pubsub=none"], ("memory", ("http", "redisx", "redis"), "none")),
        (["--redis_url=", "--embed_nats=false"], ("memory", ("http",), "none")),
    ],
)
def test_the_broker_preset_takes_the_service_that_is_configured(
    load: Load, argv: list[str], expected: tuple[object, ...]
) -> None:
    settings = load("--presets=broker", *argv)
    assert (settings["broker"], settings["broadcast_adapter"], settings["pubsub"]) == expected


@pytest.mark.statement("CO-22")
@pytest.mark.parametrize("env", [FLY, HEROKU])
def test_given_values_survive_every_preset(load: Load, env: dict[str, str]) -> None:
    argv = ("--host=localhost", "--broker=", "--broadcast_adapter=", "--http_broadcast_port=8090")
    settings = load(*argv, "--presets=broker,fly,heroku", env=env | FLY)
    assert (settings["host"], settings["broker"], settings["broadcast_adapter"]) == ("localhost", "none", ())
    assert settings["http_broadcast_port"] == 8090


@pytest.mark.statement("CO-22", "BR-72")
@pytest.mark.parametrize("presets", ["none", "", "broker"])
def test_naming_presets_replaces_what_the_platform_suggests(load: Load, presets: str) -> None:
    settings = load(f"--presets={presets}", env=FLY | HEROKU)
    assert settings["host"] == "localhost"
    assert settings.presets == (("broker",) if presets == "broker" else ())


@pytest.mark.statement("CO-22")
def test_a_preset_that_does_not_exist_is_ignored_with_a_notice(load: Load) -> None:
    settings = load("--presets=render, heroku", "--noauth")
    assert settings.presets == ("heroku",)
    assert settings.notices == ("--presets: there is no preset 'render', it is ignored; known: broker, fly, heroku",)


@pytest.mark.statement("CO-23", "BR-72")
@pytest.mark.parametrize(("name", "env"), [("fly", FLY), ("heroku", HEROKU)])
def test_platforms_are_recognised_and_have_one_port(load: Load, name: str, env: dict[str, str]) -> None:
    settings = load(env=env | {"PORT": "5000"})
    assert settings.presets == settings["presets"] == (name,)
    assert (settings["host"], settings["port"], settings["http_broadcast_port"]) == ("0.0.0.0", 5000, 5000)
    assert not settings.was_set("presets")
    for sign in env:
        assert load(env={k: v for k, v in env.items() if k != sign}).presets == ()


@pytest.mark.statement("CO-24")
@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({}, "FLY_APP_NAME and FLY_REGION"),
        ({"FLY_APP_NAME": "a"}, "FLY_REGION"),
        ({"FLY_APP_NAME": "a", "FLY_REGION": ""}, "FLY_REGION"),
    ],
)
def test_the_fly_preset_needs_its_variables(load: Load, env: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        load("--presets=fly", env=env)
    assert str(e.value) == f"--presets: the preset fly needs the environment variable {missing}"


def test_the_platform_names_the_backend(load: Load) -> None:
    fly = {"FLY_APP_NAME": "app", "FLY_ALLOC_ID": "1", "FLY_REGION": "mad", "ANYCABLE_FLY_RPC_APP_NAME": "web"}
    settings = load(env=fly)
    assert (settings["rpc_host"], settings["rpc_impl"]) == ("dns:///mad.web.internal:50051", "grpc")
    assert load("--rpc_host=mine:1", env=fly)["rpc_host"] == "mine:1"
