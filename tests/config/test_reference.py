"""anycable_tx.config.reference and the schema it is made from."""

from __future__ import annotations

from pathlib import Path

import anycable_tx
from anycable_tx.config.describe import default_text
from anycable_tx.config.load import load_schema
from anycable_tx.config.reference import built_in, reference
from anycable_tx.config.schema import BUILTIN
from anycable_tx.config.values import check, parse

ROOT = Path(anycable_tx.__file__).parent.parent


def test_the_committed_reference_is_up_to_date() -> None:
    committed = (ROOT / "docs/reference/options.md").read_text("utf-8")
    assert committed == reference(built_in()), (
        "run: python -m anycable_tx.config.reference > docs/reference/options.md"
    )


def test_the_reference_names_every_option_once() -> None:
    text = reference(BUILTIN)
    for option in BUILTIN:
        cell = f"| `--{option.name}` |" if option.cli else f"| `{option.yaml_key}` |"
        assert text.count(cell) == 1, option.name


def test_every_option_accepts_its_own_default() -> None:
    for option in load_schema():
        if option.kind == "rules":
            assert check(option, option.default, "") == option.default
        else:
            assert parse(option, default_text(option), "") == option.default, option.name


def test_every_option_that_means_something_is_explained() -> None:
    for option in load_schema().live:
        assert option.help, option.name
        assert not option.help.endswith("."), option.name
