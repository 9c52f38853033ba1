"""Where values come from and which one counts: anycable_tx.config.load, .environment, .files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anycable_tx.config import files
from anycable_tx.config.load import load_schema
from anycable_tx.config.option import Option
from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load


@pytest.mark.statement("CO-1")
def test_default_then_file_then_environment_then_command_line(load: Load) -> None:
    file = {"app": {"ping_interval": 4}}
    env = {"ANYCABLE_PING_INTERVAL": "5"}
    for settings, value, source in (
        (load(), 3, "default"),
        (load(file=file), 4, "file"),
        (load(file=file, env=env), 5, "env"),
        (load("--ping_interval=6", file=file, env=env), 6, "cli"),
    ):
        assert settings["ping_interval"] == value
        assert settings.source("ping_interval") == source
        assert settings.was_set("ping_interval") == (source != "default")


@pytest.mark.statement("CO-2")
def test_port_is_a_variable_of_its_own(load: Load) -> None:
    assert load(env={"PORT": "1"})["port"] == 1
    assert load(env={"PORT": "1", "ANYCABLE_PORT": "2"})["port"] == 2
    assert load("--port=3", env={"PORT": "1", "ANYCABLE_PORT": "2"})["port"] == 3


@pytest.mark.statement("CO-2")
def test_a_further_variable_of_a_provider_works_alike(load: Load) -> None:
    assert load(env={"REDIS_URL": "a"})["redis_url"] == "a"
    assert load(env={"REDIS_URL": "a", "ANYCABLE_REDIS_URL": "b"})["redis_url"] == "b"


@pytest.mark.statement("CO-3")
def test_names_with_dashes_have_variables_with_underscores(load: Load) -> None:
    settings = load(env={"ANYCABLE_HEALTH_PATH": "/up", "ANYCABLE_MAX_CONN": "9"})
    assert (settings["health_path"], settings["max_conn"]) == ("/up", 9)


@pytest.mark.statement("CO-4")
def test_an_empty_variable_empties_texts_and_leaves_numbers(load: Load) -> None:
    file = {"server": {"host": "h", "allowed_origins": ["a"]}, "jwt": {"force": True}, "app": {"pong_timeout": 9}}
    env = dict.fromkeys(
        ["ANYCABLE_HOST", "ANYCABLE_ALLOWED_ORIGINS", "ANYCABLE_ENFORCE_JWT", "ANYCABLE_PONG_TIMEOUT"], ""
    )
    settings = load(file=file, env=env)
    assert (settings["host"], settings["allowed_origins"], settings["enforce_jwt"]) == ("", (), False)
    assert settings["pong_timeout"] == 9
    assert load(env={"ANYCABLE_PORT": "", "PORT": "5"})["port"] == 5


@pytest.mark.statement("CO-5")
@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("ANYCABLE_PUBLIC", "yes", "true or false"),
        ("ANYCABLE_PING_INTERVAL", "abc", "a number of seconds, at least 0.01"),
        ("ANYCABLE_PING_INTERVAL", "0", "a number of seconds, at least 0.01"),
        ("ANYCABLE_PING_INTERVAL", "nan", "a number of seconds, at least 0.01"),
        ("ANYCABLE_PORT", "65536", "a whole number from 0 to 65535"),
        ("ANYCABLE_PORT", "8_0", "a whole number from 0 to 65535"),
        ("PORT", "-1", "a whole number from 0 to 65535"),
        ("ANYCABLE_MAX_MESSAGE_SIZE", "1.5", "a whole number of bytes, at least 1"),
        ("ANYCABLE_PING_TIMESTAMP_PRECISION", "us", "one of s, ms, ns"),
    ],
)
def test_a_bad_variable_is_named(load: Load, name: str, text: str, accepted: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        load(env={name: text})
    assert str(e.value) == f"{name}: {text!r} is not accepted; expected {accepted}"


def test_a_variable_that_is_no_text_is_refused_and_not_shown_if_secret(load: Load) -> None:
    with pytest.raises(ConfigurationError) as e:
        load(env={"ANYCABLE_SECRET": "top\udcff"})
    assert str(e.value).startswith("ANYCABLE_SECRET: the value is not accepted; expected UTF-8 text")


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "TRUE", "True"])
def test_the_words_for_true(load: Load, word: str) -> None:
    assert load(env={"ANYCABLE_DEBUG": word})["debug"] is True


@pytest.mark.parametrize("word", ["0", "f", "F", "false", "FALSE", "False"])
def test_the_words_for_false(load: Load, word: str) -> None:
    assert load(file={"logging": {"debug": True}}, env={"ANYCABLE_DEBUG": word})["debug"] is False


def test_lists_are_trimmed_and_may_be_lists_or_text(load: Load) -> None:
    for value in (" a.com , ,b.com", ["a.com ", "", "b.com"]):
        assert load(file={"server": {"allowed_origins": value}})["allowed_origins"] == ("a.com", "b.com")


def test_fractions_of_seconds_are_accepted_and_whole_ones_stay_whole(load: Load) -> None:
    assert load("--ping_interval=0.5")["ping_interval"] == 0.5
    assert repr(load(file={"broker": {"history_ttl": 60.0}})["history_ttl"]) == "60"


@pytest.mark.statement("CO-7")
def test_a_missing_file_is_named(load: Load) -> None:
    for settings in (["--config-path", "no.yml"], ["--config-path=other.yml", "--config-path=no.yml"]):
        with pytest.raises(ConfigurationError, match=r"cannot read 'no.yml': No such file"):
            load(*settings)
    with pytest.raises(ConfigurationError, match=r"cannot read 'no.yml': No such file"):
        load(env={"ANYCABLE_CONFIG_PATH": "no.yml"})


@pytest.mark.statement("CO-7")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server:\n  port: [1", "conf/anycable.yml, line 2: this is no valid YAML"),
        ("port: 1\nport: 2\n", "conf/anycable.yml, line 2: this is no valid YAML: the key 'port' is given twice"),
        ("- a", "conf/anycable.yml: a mapping of options is expected, not list"),
        ("a: \x00", "conf/anycable.yml: this is no valid YAML"),
        ("a: !!python/name:os.system x", "this is no valid YAML"),
        ("a: 2026-99-99", "conf/anycable.yml: this is no valid YAML: month must be in 1..12"),
        ("server: 5", "conf/anycable.yml: server: a mapping is expected here, with allowed_origins, fast_path, h"),
        ("server: {port: {}}", "conf/anycable.yml: server.port: {} is not accepted; expected a whole number"),
        ("node_id: 12", "conf/anycable.yml: node_id: 12 is not accepted; expected UTF-8 text (in quotes"),
        ("secret: 12", "conf/anycable.yml: secret: the value is not accepted; expected UTF-8 text"),
        ("server: {port: true}", "server.port: True is not accepted"),
        ("server: {port: 1, 'port ': 2}\nserver.port: 3", "server.port: this key is given twice"),
        ("ws: {paths: [1]}", "ws.paths: [1] is not accepted; expected a list of text"),
        ("rpc: {implementation: smtp}", "rpc.implementation: 'smtp' is not accepted; expected one of"),
    ],
)
def test_a_bad_file_is_named(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        load(file=text)
    assert message in str(e.value)


def test_a_file_that_cannot_be_looked_at_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOKUP", ("x" * 5000,))
    with pytest.raises(ConfigurationError, match=r"cannot read 'x+': File name too long"):
        load()


def test_a_file_that_is_no_text_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes(b"secret: \xff")
    with pytest.raises(ConfigurationError, match=r"'latin.yml' is no UTF-8 text"):
        load("--config_path=latin.yml")


@pytest.mark.statement("CO-7")
def test_the_file_can_be_ignored_or_replaced(load: Load, tmp_path: Path) -> None:
    (tmp_path / "other.yml").write_text("server: {port: 2}")
    file = {"server": {"port": 1}}
    assert load(file=file).config_file == "conf/anycable.yml"
    ignored = load("--ignore-config-path", file=file)
    assert (ignored["port"], ignored.config_file) == (8080, "")
    assert load("--config-path=other.yml")["port"] == 2
    assert load(env={"ANYCABLE_CONFIG_PATH": "other.yml"})["port"] == 2
    assert load("--config-path", "other.yml", env={"ANYCABLE_CONFIG_PATH": "no.yml"}).config_file == "other.yml"
    with pytest.raises(ConfigurationError, match="--config_path: '' is not accepted"):
        load("--config-path=")


def test_empty_files_and_keys_without_values_count_as_absent(load: Load) -> None:
    for text in ("", "# nothing\n", "server:\nsecret:\nws: {}\n"):
        settings = load(file=text)
        assert not any(map(settings.was_set, settings))


@pytest.mark.statement("CO-8")
def test_an_unknown_key_is_a_notice_and_with_strict_an_error(load: Load) -> None:
    file: dict[str, Any] = {"server": {"prot": 1}, "mqtt": {"nodes": "x", "pool": {"big": True}}, "on": []}
    settings = load(file=file)
    assert [notice for notice in settings.notices if "no key" in notice] == [
        "conf/anycable.yml: there is no key mqtt.nodes",
        "conf/anycable.yml: there is no key mqtt.pool.big",
        "conf/anycable.yml: there is no key on",
        "conf/anycable.yml: there is no key server.prot; did you mean server.port?",
    ]
    with pytest.raises(ConfigurationError, match=r"there is no key server.prot"):
        load(file=file | {"strict": True})
    with pytest.raises(ConfigurationError, match=r"there is no key server.prot"):
        load("--strict", file=file)


def _another(option: Option) -> Any:
    """A value of the option that is not its default."""
    if option.kind == "bool":
        return not option.default
    if option.choices:
        return option.choices[-1] if option.default == option.choices[0] else option.choices[0]
    number = 17 if option.maximum is None else min(17, option.maximum)
    others = {"list": ["/x"], "map": {"a": "b"}, "str": "/x", "rules": [{"match": "a", "class": "b"}]}
    return {"int": number, "float": 7.5, **others}[option.kind]


@pytest.mark.statement("CO-10")
@pytest.mark.parametrize("name", [option.name for option in load_schema().live if option.file])
def test_every_key_takes_effect(load: Load, tmp_path: Path, name: str) -> None:
    option = load_schema()[name]
    value = _another(option)
    value = {"broker": "memory", "pubsub": "none", "broadcast_adapter": [], "controllers": ["null"]}.get(name, value)
    value = {"presets": ["broker"], "ssl_cert": "pem", "ssl_key": "pem", "statsd_host": "a:1"}.get(name, value)
    if name.endswith("_file"):
        value = "pem"
    (tmp_path / "pem").write_text("content")
    file: dict[str, Any] = {}
    for path, each in ((option.yaml_key, value), *_together(name)):
        section = file
        *parts, key = path.split(".")
        for part in parts:
            section = section.setdefault(part, {})
        section[key] = each
    settings = load(file=file)
    expected = tuple(value) if isinstance(value, list) else value
    assert settings[name] == expected
    assert settings.source(name) == "file"


def _together(name: str) -> list[tuple[str, str]]:
    """Options that go in pairs only."""
    pairs = {"ssl_cert": ("server.ssl.key_path", "pem"), "ssl_key": ("server.ssl.cert_path", "pem")}
    pairs["admin"] = ("admin.key", "k")
    return [pairs[name]] if name in pairs else []


def test_an_option_of_an_installed_provider_is_an_option(load: Load, install: Callable[..., None]) -> None:
    from anycable_tx.providers import Provider

    option = Option("acme_tags", "map", {}, key="acme.tags", section="Acme", env=("TAGS",))
    install(Provider("broker", "acme", "acme:create", options=(option,)))
    assert load()["acme_tags"] == {}
    assert load("--acme-tags=a:1, b:2:3")["acme_tags"] == {"a": "1", "b": "2:3"}
    assert load(env={"TAGS": "a:1"})["acme_tags"] == {"a": "1"}
    assert load("--broker=acme", file={"acme": {"tags": {"a": 1}}})["acme_tags"] == {"a": "1"}
    with pytest.raises(ConfigurationError, match="--acme_tags: 'a' is not accepted; expected pairs"):
        load("--acme_tags=a")
    with pytest.raises(ConfigurationError, match=r"acme.tags: "):
        load(file={"acme": {"tags": {"a": [1]}}})


@pytest.mark.parametrize(
    "option",
    [
        Option("port", key="acme.port"),
        Option("acme", key="server.port"),
        Option("acme", key="server"),
        Option("acme", key="server.port.number"),
        Option("help", key="acme.help"),
    ],
)
def test_a_provider_cannot_take_an_option_that_exists(
    load: Load, install: Callable[..., None], option: Option
) -> None:
    from anycable_tx.providers import Provider

    install(Provider("broker", "acme", "acme:create", options=(option,)))
    with pytest.raises(ConfigurationError, match=f"^option {option.name} "):
        load()


def test_a_provider_cannot_have_an_option_of_no_kind(load: Load, install: Callable[..., None]) -> None:
    from anycable_tx.providers import Provider

    install(Provider("broker", "acme", "acme:create", options=(Option("acme", "date"),)))
    with pytest.raises(ConfigurationError, match=r"^option acme: there is no kind 'date'"):
        load()


def test_the_settings_are_an_immutable_mapping_that_shows_no_value(load: Load) -> None:
    settings = load("--secret=hush")
    assert settings == load("--secret=hush", f"--node_id={settings['node_id']}")
    assert "hush" not in repr(settings) + repr(settings.given("secret"))
    assert len(settings) == len(list(settings))
    with pytest.raises(TypeError):
        settings["port"] = 1  # type: ignore[index]
    with pytest.raises(KeyError):
        settings.was_set("prot")
