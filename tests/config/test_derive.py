"""What follows from the given values: anycable_tx.config.derive."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.config.load import defaults
from anycable_tx.config.option import Option
from anycable_tx.config.secrets import API, BROADCAST, RPC, derive_key
from anycable_tx.errors import ConfigurationError, ProviderError
from tests.config.conftest import Load

KEY = "83149057b2f956b5f862c0ef5ad6a24d3677dc076d77e8999c24f77ca17d7a20"


@pytest.mark.statement("CO-14")
def test_derived_keys() -> None:
    assert derive_key("s3cr3t", BROADCAST) == KEY
    assert derive_key("s3cr3t", RPC) == "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d"
    assert derive_key("s3cr3t", API) == "e3b70326c38efad4042c57f65cc19e4ce2925e5aea5ea0c98dca248b837c17de"
    assert derive_key("qwerty", BROADCAST) == "42923a28b760e667fc92f7c6123bb07a282822b329dd2ef48e7aee7830d98485"
    assert derive_key("", BROADCAST) == ""


@pytest.mark.statement("CO-13")
def test_broadcasts_without_a_key_have_a_port_of_their_own() -> None:
    settings = defaults()
    assert (settings["http_broadcast_port"], settings["broadcast_key"]) == (8090, "")


@pytest.mark.statement("CO-13", "CO-14")
def test_a_secret_protects_broadcasts_and_moves_them_to_the_main_port() -> None:
    settings = defaults(secret="s3cr3t", port=81)
    assert (settings["http_broadcast_port"], settings["broadcast_key"]) == (81, KEY)
    assert settings.source("broadcast_key") == settings.source("http_broadcast_port") == "derived"
    assert not settings.was_set("broadcast_key")


def test_a_key_of_its_own_protects_broadcasts_too() -> None:
    settings = defaults(broadcast_key="k")
    assert (settings["http_broadcast_port"], settings["broadcast_key"]) == (8080, "k")
    assert defaults(broadcast_key="k", http_broadcast_port=8090)["http_broadcast_port"] == 8090


def test_one_secret_serves_tokens_and_streams() -> None:
    settings = defaults(secret="s")
    names = ("jwt_secret", "streams_secret", "turbo_streams_secret", "cable_ready_secret")
    assert [settings[name] for name in names] == ["s"] * 4
    assert defaults(secret="s", streams_secret="t")["turbo_streams_secret"] == "t"
    assert defaults(secret="s", jwt_secret="")["jwt_secret"] == "s"
    own = defaults(secret="s", jwt_secret="j", turbo_streams_secret="u", cable_ready_secret="c")
    assert [own[name] for name in names] == ["j", "s", "u", "c"]


@pytest.mark.statement("CO-15", "RA-8")
def test_secret_none_is_no_secret() -> None:
    settings = defaults(secret="none", node_id="n")
    assert settings == defaults(node_id="n")
    assert settings["http_broadcast_port"] == 8090
    assert all(settings[option.name] == option.default for option in settings.schema.live if option.secret)
    assert settings["controllers"] == ("streams", "null")


@pytest.mark.statement("RA-8")
@pytest.mark.parametrize(
    "name", ["jwt_secret", "streams_secret", "turbo_streams_secret", "cable_ready_secret", "broadcast_key"]
)
def test_none_means_absent_for_every_consumer(name: str) -> None:
    assert defaults(secret="s", **{name: "none"})[name] == ""


@pytest.mark.statement("CO-16")
def test_broadcasts_can_be_opened_alone() -> None:
    settings = defaults(secret="s", broadcast_key="none")
    assert (settings["broadcast_key"], settings["http_broadcast_port"]) == ("", 8090)
    assert settings["secret"] == settings["jwt_secret"] == "s"


@pytest.mark.statement("CO-17")
def test_tokens_can_be_turned_off_alone() -> None:
    settings = defaults(secret="s", jwt_secret="none")
    assert (settings["jwt_secret"], settings["streams_secret"]) == ("", "s")
    assert settings["controllers"] == ("streams", "null")


def test_public_mode_opens_everything_and_says_so() -> None:
    settings = defaults(public=True, noauth=False)
    assert settings["noauth"]
    assert settings["public_streams"]
    assert (settings["broadcast_key"], settings["http_broadcast_port"]) == ("", 8090)
    assert settings["controllers"] == ("noauth", "streams", "null")
    (notice,) = settings.notices
    assert notice == (
        "Server is running in the public mode: clients need no credentials, may subscribe to any stream by its "
        "name, and everybody may broadcast over HTTP (port 8090, /_broadcast) and use the REST API (port 8080, /api)"
    )


def test_public_mode_with_a_secret_still_checks_tokens_on_the_main_port() -> None:
    settings = defaults(public=True, secret="s", broadcast_key="k")
    assert (settings["broadcast_key"], settings["http_broadcast_port"]) == ("", 8080)
    assert settings["controllers"] == ("jwt", "noauth", "streams", "null")
    assert "everybody may broadcast over HTTP (port 8080, /_broadcast); a token" in settings.notices[0]
    assert settings["jwt_secret"] == "s"


def test_controllers_follow_from_the_secrets_or_are_given() -> None:
    assert defaults(secret="s")["controllers"] == ("jwt", "streams", "null")
    assert defaults(secret="s", noauth=True)["controllers"] == ("jwt", "noauth", "streams", "null")
    assert defaults(secret="s", controllers="null, jwt")["controllers"] == ("null", "jwt")


def test_a_server_that_nobody_can_use_says_so() -> None:
    assert [notice[:22] for notice in defaults().notices] == ["nobody can connect: th"]
    assert defaults(secret="s").notices == ()
    assert defaults(controllers=["null"]).notices == ()


def test_secrets_are_read_from_files(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  hush\n")
    settings = load("--secret_file=key")
    assert (settings["secret"], settings["jwt_secret"], settings["secret_file"]) == ("hush", "hush", "key")
    assert load(file={"jwt": {"secret_file": str(tmp_path / "key")}})["jwt_secret"] == "hush"
    assert load(env={"ANYCABLE_BROADCAST_KEY_FILE": "key"})["broadcast_key"] == "hush"


def test_lists_of_secrets_are_read_from_files_line_by_line(load: Load, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\n b,c\n")
    assert load("--jwt_rotated_secrets_file=keys")["jwt_rotated_secrets"] == ("a", "b", "c")
    assert load("--jwt_rotated_secrets=none")["jwt_rotated_secrets"] == ()


def test_between_a_secret_and_its_file_the_stronger_source_counts(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush")
    file = {"secret_file": "key"}
    assert load(file=file, env={"ANYCABLE_SECRET": "x"})["secret"] == "x"
    assert load(file=file, env={"ANYCABLE_SECRET": "x"})["secret_file"] == ""
    assert load(file=file, env={"ANYCABLE_SECRET": ""})["secret"] == ""
    assert load("--secret_file=key", file={"secret": "x"})["secret"] == "hush"
    assert load(file=file, env={"ANYCABLE_SECRET_FILE": ""})["secret"] == ""
    assert load(file={"secret": "x", "secret_file": ""})["secret"] == "x"
    assert load(file={"secret": "", "secret_file": "key"})["secret"] == "hush"
    with pytest.raises(ConfigurationError, match=r"^--secret and --secret_file are both given; give one of them$"):
        load("--secret=x", "--secret_file=key")


def test_a_secret_file_that_cannot_be_used_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ConfigurationError, match=r"^ANYCABLE_SECRET_FILE: cannot read 'no': No such file"):
        load(env={"ANYCABLE_SECRET_FILE": "no"})
    with pytest.raises(ConfigurationError, match=r"^--secret_file: the file 'empty' is empty$"):
        load("--secret_file=empty")


@pytest.mark.statement("CO-11", "RA-36")
@pytest.mark.parametrize(
    ("old", "value", "effect"),
    [
        ("http_broadcast_secret", "k", {"broadcast_key": "k", "http_broadcast_port": 8080}),
        ("jwt_id_key", "k", {"jwt_secret": "k", "streams_secret": ""}),
        ("jwt_id_param", "token", {"jwt_param": "token"}),
        ("jwt_id_enforce", "true", {"enforce_jwt": True}),
        ("turbo_rails_key", "k", {"turbo_streams_secret": "k", "turbo_streams": True, "cable_ready_secret": ""}),
        ("cable_ready_key", "k", {"cable_ready_secret": "k", "cable_ready": True, "turbo_streams": False}),
    ],
)
def test_old_names_work_as_their_successors(load: Load, old: str, value: str, effect: dict[str, Any]) -> None:
    settings = load(f"--{old}={value}", "--noauth")
    assert {name: settings[name] for name in effect} == effect
    (notice,) = settings.notices
    assert notice.startswith(f"--{old}: {old} is deprecated, use ")
    assert old not in settings
    assert load(env={f"ANYCABLE_{old.upper()}": value})[next(iter(effect))] == next(iter(effect.values()))


@pytest.mark.statement("CO-11")
@pytest.mark.parametrize("old", ["turbo_rails_cleartext", "cable_ready_cleartext"])
def test_names_without_a_successor_only_warn(load: Load, old: str) -> None:
    (notice,) = load(f"--{old}", "--noauth").notices
    assert "is deprecated and has no effect any more" in notice


def test_old_and_new_names_together(load: Load) -> None:
    assert load("--jwt_id_key=old", "--jwt_secret=new")["jwt_secret"] == "new"
    assert load("--http_broadcast_secret=old", "--broadcast_key=new")["broadcast_key"] == "old"
    assert load("--turbo_rails_key=old", "--turbo_streams=false")["turbo_streams"] is False
    assert load(env={"ANYCABLE_TURBO_RAILS_KEY": ""})["turbo_streams"] is False


@pytest.mark.statement("CO-12")
@pytest.mark.parametrize(
    "name", ["read_buffer_size=1", "write_buffer_size=1", "netpoll_enabled=false", "hub_gopool_size=0"]
)
def test_options_without_a_meaning_are_accepted_with_one_notice(load: Load, name: str) -> None:
    settings = load(f"--{name}", "--noauth")
    bare = name.partition("=")[0]
    assert settings.notices == (f"--{bare}: {bare} has no effect here",)
    assert bare not in settings


def test_debug_forces_the_level() -> None:
    assert defaults(debug=True, log_level="error")["log_level"] == "debug"
    assert defaults(log_level="error")["log_level"] == "error"


@pytest.mark.statement("CO-34")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("log_level", "INFO", "debug, info, warn, error"), ("log_format", "xml", "text, json")],
)
def test_a_level_or_format_that_does_not_exist_is_refused(load: Load, name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        load(f"--{name}={value}")
    assert str(e.value) == f"--{name}: {value!r} is not accepted; expected one of {words}"


def test_paths_get_their_slash_with_a_notice(load: Load) -> None:
    settings = load("--path= cable,/ws, ", "--health_path=up", "--ready_path= ", "--noauth")
    assert (settings["path"], settings["health_path"], settings["ready_path"]) == (("/cable", "/ws"), "/up", "")
    assert settings.notices == (
        "--health_path: the path 'up' does not begin with a slash; /up is used",
        "--path: the path 'cable' does not begin with a slash; /cable is used",
    )


@pytest.mark.parametrize("name", ["path", "http_broadcast_path"])
def test_paths_that_are_needed_cannot_be_empty(load: Load, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^--{name}: a path is expected"):
        load(f"--{name}= ")


@pytest.mark.parametrize(("given", "lacking"), [("ssl_cert", "ssl_key"), ("ssl_key", "ssl_cert")])
def test_certificate_and_key_go_together(load: Load, tmp_path: Path, given: str, lacking: str) -> None:
    (tmp_path / "pem").write_text("x")
    with pytest.raises(ConfigurationError, match=f"^--{given}: {given} needs {lacking} too"):
        load(f"--{given}=pem")
    assert load(f"--{given}=pem", f"--{lacking}=pem")[given] == "pem"
    with pytest.raises(ConfigurationError, match=f"^--{lacking}: cannot read 'no': No such file"):
        load(f"--{given}=pem", f"--{lacking}=no")
    with pytest.raises(ConfigurationError, match=r"ssl.cert_path: cannot read 'a\\x00': embedded null byte"):
        load(file={"server": {"ssl": {"cert_path": "a\0", "key_path": "pem"}}})


@pytest.mark.statement("CO-36")
def test_the_node_has_the_given_name_or_a_random_one() -> None:
    assert defaults(node_id="n1")["node_id"] == "n1"
    first, second = defaults()["node_id"], defaults()["node_id"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{6}", first)
    assert first != second


def test_the_delay_at_shutdown_may_exceed_the_timeout() -> None:
    settings = defaults(shutdown_delay=60, shutdown_timeout=30)
    assert (settings["shutdown_delay"], settings["shutdown_timeout"]) == (60, 30)


@pytest.mark.statement("BR-80")
@pytest.mark.parametrize("option", ["broker", "pubsub", "broadcast_adapter", "controllers"])
def test_a_provider_that_does_not_exist_is_named(load: Load, option: str) -> None:
    with pytest.raises(ProviderError, match=rf"^{option}: there is no [a-z]+ named 'acme'; found: "):
        load(f"--{option}=acme")


def test_an_empty_broker_and_pubsub_are_none() -> None:
    for name in ("", "none"):
        settings = defaults(broker=name, pubsub=name)
        assert (settings["broker"], settings["pubsub"]) == ("none", "none")
    assert defaults()["broadcast_adapter"] == ("http",)


@pytest.mark.statement("CO-19", "BR-71")
def test_pubsub_follows_redis_unless_it_is_given(load: Load) -> None:
    assert load()["pubsub"] == "none"
    assert load("--redis_url=redis://localhost:6379")["pubsub"] == "redis"
    assert load("--broadcast_adapter=http,redisx")["pubsub"] == "redis"
    assert load("--broker=redis")["pubsub"] == "redis"
    assert load("--broadcast_adapter=redis")["pubsub"] == "none"
    assert load("--redis_url=r", "--pubsub=none")["pubsub"] == "none"
    assert load("--redis_url=r", "--pubsub=nats")["pubsub"] == "nats"


def test_the_broker_nats_brings_its_bus_and_nothing_else_of_nats_does(load: Load) -> None:
    for more in ((), ("--redis_url=r",), ("--broadcast_adapter=http,redisx",)):
        assert load("--broker=nats", *more)["pubsub"] == "nats"
    assert load("--nats_servers=nats://n:4222")["pubsub"] == "none"
    settings = load("--broadcast_adapter=http,nats")
    assert (settings["pubsub"], settings["broker"]) == ("none", "none")


def test_the_broker_nats_shares_no_bus_with_anycable_servers(load: Load) -> None:
    assert load("--pubsub=nats", "--nats_verbatim_subjects")["nats_verbatim_subjects"]
    with pytest.raises(
        ConfigurationError, match=r"^--nats_verbatim_subjects: the broker nats hands messages on over"
    ):
        load("--broker=nats", "--nats_verbatim_subjects")


@pytest.mark.parametrize(("broker", "title"), [("redis", "Redis"), ("nats", "NATS")])
def test_a_shared_broker_needs_its_bus(load: Load, broker: str, title: str) -> None:
    for other in {"none", "redis", "nats"} - {broker}:
        with pytest.raises(
            ConfigurationError, match=f"^--pubsub: the broker {broker} hands messages on over {title}"
        ):
            load(f"--broker={broker}", f"--pubsub={other}")


def test_the_memory_broker_is_one_nodes(load: Load) -> None:
    assert load("--broker=memory", "--redis_url=r")["pubsub"] == "none"
    for bus in ("redis", "nats"):
        with pytest.raises(
            ConfigurationError, match=r"^--pubsub: the memory broker numbers the messages of one node"
        ):
            load("--broker=memory", f"--pubsub={bus}")


@pytest.mark.statement("CO-20", "BR-32")
def test_publications_and_commands_have_channels_of_their_own(load: Load) -> None:
    file = {"redis_pubsub": {"channel": "__anycable__"}}
    settings = load("--broadcast_adapter=redis", "--secret=s", file=file)
    assert settings["redis_internal_channel"] == "__anycable__-int"
    assert "the same Redis channel is given for broadcasts and for pub/sub" in settings.notices[-1]
    assert (
        load("--broadcast_adapter=redis", "--secret=s", file={})["redis_internal_channel"] == "__anycable_internal__"
    )
    assert load("--secret=s", file=file)["redis_internal_channel"] == "__anycable__"


def test_secrets_of_providers_have_files_and_can_be_none(load: Load, install: Callable[..., None]) -> None:
    from anycable_tx.providers import Provider

    install(Provider("broker", "acme", "a:b", options=(Option("acme_token", secret=True, key="acme.token"),)))
    assert load("--acme_token=none")["acme_token"] == ""
    assert "acme_token_file" in load()


# -- the backend


@pytest.mark.parametrize(
    ("arguments", "impl"),
    [
        ([], "none"),
        (["--rpc_host=localhost:50051"], "grpc"),
        (["--rpc_host=dns:///app:50051"], "grpc"),
        (["--rpc_host=http://localhost:3000/_anycable"], "http"),
        (["--rpc_host=https://app/_anycable"], "http"),
        (["--rpc_impl=grpc"], "grpc"),
        (["--rpc_impl=http", "--rpc_host=app:1"], "http"),
        (["--rpc_impl=none", "--rpc_host=app:1"], "none"),
        (["--norpc", "--rpc_host=app:1"], "none"),
        (["--norpc", "--rpc_impl=grpc"], "none"),
        (["--norpc=false", "--rpc_host=app:1"], "grpc"),
    ],
)
def test_the_backend_is_called_as_its_address_says(load: Load, arguments: list[str], impl: str) -> None:
    settings = load("--secret=s", *arguments)
    assert settings["rpc_impl"] == impl
    assert settings["controllers"] == ("jwt", "streams", "null" if impl == "none" else impl)


def test_with_a_backend_somebody_can_connect(load: Load) -> None:
    assert load("--rpc_host=app:1").notices == ()
    assert any("nobody can connect" in notice for notice in load("--norpc").notices)


@pytest.mark.statement("CO-14", "RA-8")
def test_the_token_of_http_calls_follows_from_the_secret(load: Load) -> None:
    key = "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d"
    assert load("--secret=s3cr3t")["http_rpc_secret"] == key
    assert load("--secret=s3cr3t", "--http_rpc_secret=own")["http_rpc_secret"] == "own"
    assert load("--secret=s3cr3t", "--http_rpc_secret=none")["http_rpc_secret"] == ""
    assert load("--secret=none")["http_rpc_secret"] == ""


def test_disconnects_can_be_turned_off_by_a_switch(load: Load) -> None:
    assert load("--disable_disconnect", "--disconnect_mode=always")["disconnect_mode"] == "never"


@pytest.mark.statement("RA-37")
@pytest.mark.parametrize("rate", ["0", "-1", "x"])
def test_a_senseless_rate_of_disconnects_is_refused(load: Load, rate: str) -> None:
    with pytest.raises(ConfigurationError, match=r"disconnect_rate: .* is not accepted; expected a number"):
        load(f"--disconnect_rate={rate}")


def test_a_grace_that_has_no_effect_is_noticed(load: Load) -> None:
    settings = load("--secret=s", "--disconnect_mode=deferred", "--disconnect_grace=5")
    assert settings.notices == (
        "--disconnect_grace: has no effect with disconnect_mode=deferred, which waits for as long as a session can "
        "be resumed",
    )
    assert load("--secret=s", "--disconnect_grace=5").notices == ()
