"""The table of anycable-go's options agrees with the schema."""

from __future__ import annotations

import pytest

from anycable_tx.config.load import load_schema, load_settings
from anycable_tx.config.migration import NOTES, OPTIONS, Counterpart, counterparts, table
from anycable_tx.config.option import Option
from anycable_tx.config.schema import Schema

ROWS = list(counterparts(load_schema()))
HERE = {row.name or row.key: row.here for row in ROWS}


def test_every_option_is_listed_once() -> None:
    assert len(HERE) == len(ROWS) == len(OPTIONS.strip().splitlines())
    assert set(NOTES) <= set(HERE)
    assert table(load_schema()).count("\n") == len(ROWS) + 2


SAME = [row for row in ROWS if row.name and row.here.startswith("the same")]


@pytest.mark.parametrize("row", SAME, ids=lambda row: row.name)
def test_what_is_the_same_is_accepted_by_that_name(row: Counterpart) -> None:
    option = load_schema().flag(row.name)
    assert option is not None
    assert option.tag not in ("G", "D")
    assert f"key `{option.yaml_key}`" in row.here or option.yaml_key == (row.key or option.yaml_key)


def test_what_is_accepted_without_effect_brings_a_notice() -> None:
    found = [name for name, here in HERE.items() if here == "accepted, no effect" and "." not in name]
    assert {"read_buffer_size", "disconnect_timeout"} <= set(found)
    for name in found:
        value = "true" if load_schema()[name].kind == "bool" else "1"
        settings = load_settings([f"--{name}={value}", "--noauth", "--ignore_config_path"], {})
        assert any(name in notice and "no effect" in notice for notice in settings.notices), name


def test_what_is_not_there_is_refused() -> None:
    for name, here in HERE.items():
        if here.startswith("not there") and "." not in name:
            assert load_schema().flag(name) is None


def of(*options: Option) -> dict[str, str]:
    return {row.name or row.key: row.here for row in counterparts(Schema(options))}


def test_differences_are_named() -> None:
    here = of(
        Option("port", "int", 9090, key="server.port"),
        Option("host", default="localhost", key="listen.host"),
        Option("secret", default="x"),
        Option("ds", "bool", False, key="ds.enabled"),
    )
    assert here["port"] == "the same; default `9090` instead of `8080`"
    assert here["host"] == "the same; key `listen.host`"
    assert here["secret"].startswith("the same; default `x`; ")
    assert here["ds"].startswith("the same")
    assert here["public"] == "not there"
