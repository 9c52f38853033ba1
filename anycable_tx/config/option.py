"""The declaration of one option, light enough for a plugin module to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Option"]


@dataclass(frozen=True)
class Option:
    """One setting: its command-line name, YAML place, type, default and meaning.

    ``name`` uses underscores and is the key in the settings; dashes are accepted everywhere. ``kind`` is one
    of ``str``, ``int``, ``float`` (whole values stay ints), ``bool``, ``list`` (of strings), ``map`` (string to
    string) and ``rules`` (the history rules, in the file only). ``key`` is the dotted YAML key ('' means the
    name itself). The environment variable is ``ANYCABLE_`` and the upper-case
    name; ``env`` adds further ones, which lose against it. ``choices`` and ``minimum``/``maximum`` limit the
    values. ``secret`` values are masked wherever they are shown. ``tag`` is the tag of the option reference;
    ``G`` options are accepted and ignored with a notice. ``successor`` names the option that replaces a
    deprecated one. ``cli``: False for settings of the file only. ``file``: False for those the file cannot
    hold.
    """

    name: str
    kind: str = "str"
    default: Any = ""
    help: str = ""
    key: str = ""
    section: str = "Global"
    env: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    secret: bool = False
    tag: str = "E"
    successor: str = ""
    cli: bool = True
    aliases: tuple[str, ...] = field(default=())
    file: bool = True

    @property
    def yaml_key(self) -> str:
        """The dotted YAML key."""
        return self.key or self.name
