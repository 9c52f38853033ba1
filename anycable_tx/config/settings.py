"""The settings in effect: an immutable mapping that knows where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from anycable_tx.config.draft import Draft
from anycable_tx.config.given import Given
from anycable_tx.config.schema import Schema

__all__ = ["Settings"]


class Settings(Mapping[str, Any]):
    """Option name -> checked and derived value, for every option that has an effect.

    Lists are tuples; a secret that is absent is ''. Old names and options without a meaning are not in it. Two
    Settings are equal when all values are. ``repr`` shows no value.
    """

    def __init__(self, draft: Draft, config_file: str) -> None:
        self._values = {option.name: draft[option.name] for option in draft.schema.live}
        self._given = dict(draft.given)
        self._derived = frozenset(draft.derived)
        self._schema = draft.schema
        self._notices = tuple(draft.notices)
        self._presets = draft.presets
        self._config_file = config_file

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Settings from {self._config_file or 'no file'}>"

    def part(self, **values: Any) -> Settings:
        """These settings with other *values*, for a part of the server; what is to be said about them was said."""
        settings = copy(self)
        settings._values = {**self._values, **values}
        settings._notices, settings._presets, settings._config_file = (), (), ""
        return settings

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings to log once there is a log, whole sentences without secrets."""
        return self._notices

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets that were applied."""
        return self._presets

    @property
    def config_file(self) -> str:
        """The file that was read, as it was named; '' for none."""
        return self._config_file

    @property
    def schema(self) -> Schema:
        """The options these are settings of."""
        return self._schema

    def given(self, name: str) -> Given | None:
        """What a source or preset gave for the option, before anything was derived from it."""
        if name not in self._values:
            raise KeyError(name)
        return self._given.get(name)

    def was_set(self, name: str) -> bool:
        """Whether the file, the environment or the command line gave the option. KeyError if unknown."""
        given = self.given(name)
        return given is not None and given.source != "preset"

    def source(self, name: str) -> str:
        """'default', 'preset', 'file', 'env' or 'cli', or 'derived' when it follows from other options."""
        given = self.given(name)
        if name in self._derived:
            return "derived"
        return given.source if given else "default"
