"""Fixtures: load settings from a directory of their own, and providers that are not built in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from anycable_tx import providers
from anycable_tx.config import files
from anycable_tx.config.load import load_settings
from anycable_tx.config.settings import Settings
from anycable_tx.providers import Provider

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """``load(*argv, file=..., env=...)``: *file* is YAML text or what it means, in conf/anycable.yml."""
    monkeypatch.setattr(files, "LOOKUP", files.LOOKUP[:1])

    def loaded(*argv: str, file: Any = None, env: dict[str, str] | None = None) -> Settings:
        if file is not None:
            (tmp_path / "conf").mkdir(exist_ok=True)
            text = file if isinstance(file, str) else yaml.safe_dump(file)
            (tmp_path / "conf/anycable.yml").write_text(text)
        return load_settings(argv, env or {}, str(tmp_path))

    return loaded


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install(*providers)``: pretend that these are installed beside the ones there are."""
    there = list(providers.providers())

    def installed(*more: Provider) -> None:
        monkeypatch.setattr(providers, "getPlugins", lambda *_: [*there, *more])

    return installed
