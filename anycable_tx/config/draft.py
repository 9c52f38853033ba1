"""Settings in the making: what was given, what was put on top, and what has to be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anycable_tx.config.given import Given
from anycable_tx.config.schema import Schema
from anycable_tx.errors import ConfigurationError

__all__ = ["Draft"]


class Draft:
    """The working copy that the derivation steps change, one after another.

    ``given`` is what the sources (and presets) said and is what a dump shows; ``put`` sets values on top of it
    without touching it, so a dump that is loaded again derives the same values.
    """

    def __init__(self, schema: Schema, given: Mapping[str, Given], environ: Mapping[str, str], cwd: str) -> None:
        self.schema = schema
        self.given = dict(given)
        self.environ = environ
        self.cwd = cwd
        self.notices: list[str] = []
        self.presets: tuple[str, ...] = ()
        self.derived: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name in self.derived:
            return self.derived[name]
        if name in self.given:
            return self.given[name].value
        return self.schema[name].default

    def was_set(self, name: str) -> bool:
        """Whether a source gave the option; a preset is none."""
        return name in self.given and self.given[name].source != "preset"

    def on(self, name: str) -> bool:
        """Whether the option exists, was set by a source, and to something."""
        return name in self.schema and self.was_set(name) and bool(self[name])

    def put(self, name: str, value: Any) -> None:
        """Set a value that follows from others."""
        if self[name] != value:
            self.derived[name] = value

    def fill(self, preset: str, name: str, value: Any) -> None:
        """Give the option the value of a preset, if nobody gave one yet."""
        if name not in self.given:
            self.given[name] = Given(value, "preset", f"preset {preset}")

    def where(self, name: str) -> str:
        """The place to name in a message about the option."""
        return self.given[name].origin if name in self.given else name

    def error(self, name: str, problem: str) -> ConfigurationError:
        """The error that says *problem* of the option's value."""
        return ConfigurationError(f"{self.where(name)}: {problem}")
