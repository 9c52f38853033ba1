"""anycable_tx.config.dump"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, reject
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anycable_tx.config.dump import dump
from anycable_tx.config.load import defaults, load_schema, load_settings
from anycable_tx.config.option import Option
from anycable_tx.config.settings import Settings
from anycable_tx.config.values import MASK
from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load


def _again(text: str, directory: Path, env: dict[str, str] | None = None) -> Settings:
    (directory / "dump.yml").write_text(text)
    return load_settings(["--config_path=dump.yml", "--strict"], env or {}, str(directory))


def _values(settings: Settings) -> dict[str, Any]:
    """All values but those of the loading itself: a made up name, and the strictness of the second loading."""
    given = {"node_id"} if settings.source("node_id") == "derived" else set()
    return {name: value for name, value in settings.items() if name not in given | {"strict"}}


def _value(option: Option) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind == "int":
        return st.integers(int(option.minimum or 0), min(int(option.maximum or 10**9), 10**9))
    if option.kind == "float":
        return st.floats(option.minimum or 0, 1e9) | st.integers(1, 10**6)
    if option.kind == "bool":
        return st.booleans()
    if option.kind == "list":
        return st.lists(text, max_size=3)
    if option.kind == "rules":
        rule = st.fixed_dictionaries(
            {"match": text.filter(lambda t: t and not t.startswith("re:"))},
            optional={"class": st.from_regex(r"\A[a-z0-9_]{1,16}\Z"), "history_limit": st.integers(0, 9)},
        )
        return st.lists(rule, max_size=2)
    return text.filter(lambda t: t.strip() and t != MASK) | (st.just("none") if option.secret else st.just("x"))


_NAMES = {
    "presets": st.lists(st.sampled_from(["broker", "heroku", "none", "other"]), max_size=2),
    "broker": st.sampled_from(["", "none", "memory"]),
    "pubsub": st.sampled_from(["", "none"]),
    "broadcast_adapter": st.sampled_from([[], ["http"]]),
    "controllers": st.lists(st.sampled_from(["jwt", "null"]), max_size=2),
    "path": st.just(["/a", "b"]),
    "metrics_tags": st.dictionaries(st.sampled_from(["env", "b"]), st.text("xy:\\ ", max_size=3).map(str.strip)),
    "statsd_host": st.sampled_from(["", "here:1", "[::1]:8125"]),
    "workers": st.just(1),
}
_OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        option.name: _NAMES.get(option.name, _value(option))
        for option in load_schema()
        if not option.name.startswith("ssl_") and not option.name.endswith("_file") and option.tag != "D"
    },
)


@pytest.mark.statement("CO-9", "RA-44")
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=_OVERRIDES)
def test_a_dump_with_secrets_loads_as_the_same_settings(tmp_path: Path, overrides: dict[str, Any]) -> None:
    try:
        settings = defaults(**overrides)
    except ConfigurationError:  # a preset's broker with a bus that is not its own
        reject()
    again = _again(dump(settings, show_secrets=True), tmp_path)
    assert _values(again).items() >= _values(settings).items()
    assert again.presets == settings.presets


@pytest.mark.statement("CO-9")
def test_a_dump_of_what_workers_share_loads_as_the_same_settings(tmp_path: Path) -> None:
    settings = defaults(workers=2, presets=("broker",), node_id="me")
    assert _values(_again(dump(settings), tmp_path)) == _values(settings)


@pytest.mark.statement("CO-9")
def test_a_dump_masks_every_secret(load: Load) -> None:
    secrets = [option for option in load_schema().live if option.secret]
    assert len(secrets) >= 6
    settings = load(*(f"--{option.name}=hush{n}" for n, option in enumerate(secrets)))
    text = dump(settings)
    assert "hush" not in text
    assert text.count(MASK) == len(secrets)
    shown = dump(settings, show_secrets=True)
    assert MASK not in shown
    assert all(f"hush{n}" in shown for n in range(len(secrets)))


@pytest.mark.statement("CO-9")
def test_a_derived_key_is_a_secret_too(load: Load) -> None:
    settings = load("--secret=hush")
    assert settings["broadcast_key"] not in dump(settings)
    assert settings["broadcast_key"] in dump(settings, show_secrets=True)


@pytest.mark.parametrize("argument", ["--secret=hush", "--jwt_rotated_secrets=a,b"])
def test_a_masked_dump_cannot_be_run(load: Load, tmp_path: Path, argument: str) -> None:
    with pytest.raises(ConfigurationError, match=r"dump.yml: [a-z_.]+: this is the mask that stands for a secret"):
        _again(dump(load(argument)), tmp_path)


def test_a_dump_without_secrets_can_be_run(load: Load, tmp_path: Path) -> None:
    settings = load("--broker=memory", "--jwt_secret=none", "--norpc")
    assert _values(_again(dump(settings), tmp_path)).items() >= _values(settings).items()


def test_a_dump_freezes_neither_defaults_nor_what_follows(load: Load) -> None:
    settings = load("--secret=s", "--port=81", file={"logging": {"debug": True, "level": "warn"}})
    text = dump(settings, show_secrets=True)
    assert yaml.safe_load(text) == {
        "secret": "s",
        "server": {"port": 81, "ssl": None},
        "metrics": {"statsd": None},
        "logging": {"debug": True, "level": "warn"},
        **dict.fromkeys(["rpc", "ws", "app", "disconnector", "jwt", "streams", "http_broadcast", "broker"]),
        **dict.fromkeys(["redis", "redis_pubsub", "redis_pubsub_broadcast", "redis_stream_broadcast"]),
        **dict.fromkeys(["nats", "nats_pubsub", "nats_broadcast", "embedded_nats", "api", "admin", "sse"]),
    }
    assert "  port: 81  # --port\n" in text
    assert "  # port: 81  # derived\n" in text
    assert '  level: "warn"  # conf/anycable.yml: logging.level; in effect: "debug"\n' in text


def test_a_dump_names_the_file_of_a_secret(load: Load, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush")
    settings = load("--secret_file=key")
    assert _values(_again(dump(settings), tmp_path)).items() >= _values(settings).items()


@pytest.mark.parametrize("old", ["turbo_rails_key", "http_broadcast_secret", "jwt_id_key"])
def test_a_dump_shows_the_new_names_of_old_options(load: Load, tmp_path: Path, old: str) -> None:
    settings = load(f"--{old}=hush")
    again = _again(dump(settings, show_secrets=True), tmp_path)
    assert _values(again).items() >= _values(settings).items()
    assert not any("deprecated" in notice for notice in again.notices)


@pytest.mark.parametrize("show", [True, False])
def test_a_dump_of_a_platform_loads_there_and_elsewhere(load: Load, tmp_path: Path, show: bool) -> None:
    env = {"HEROKU_APP_ID": "app", "HEROKU_DYNO_ID": "1"}
    settings = load(env=env | {"PORT": "5000"})
    for environment in (env, {}):
        again = _again(dump(settings, show), tmp_path, environment)
        assert _values(again).items() >= _values(settings).items()
