"""The command line: every spelling of an option, read by the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anycable_tx.config.declarations.server import CONTROLS
from anycable_tx.config.given import Given
from anycable_tx.config.option import Option
from anycable_tx.config.schema import Schema
from anycable_tx.config.values import parse
from anycable_tx.errors import ConfigurationError

__all__ = ["CommandLine", "read_command_line"]

_FLAG = re.compile(r"--?([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?", re.DOTALL)


@dataclass
class CommandLine:
    """What was typed: settings by name, and what steers the loading (help, version, config_path, ...)."""

    given: dict[str, Given] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)


def read_command_line(argv: Sequence[str], schema: Schema) -> CommandLine:
    """Read *argv* (without the program's name); the last of several values wins.

    Accepted: ``--name value``, ``--name=value``, one dash or two, dashes or underscores inside names, and for
    booleans ``--name`` and ``--name=false``. Reading ends at a request for help or the version. Raises
    ConfigurationError naming the option as typed (CO-6).
    """
    line = CommandLine()
    words = list(argv)
    # The secret option read before, whose value may have come apart into several words.
    last = ""
    while words:
        word = words.pop(0)
        match = _FLAG.fullmatch(word)
        if not match:
            shown = f"the word after --{last}" if last else repr(word)
            raise ConfigurationError(f"{shown} is no option; options are written --name=value")
        option = schema.flag(match[1])
        if option is None:
            raise ConfigurationError(f"there is no option --{match[1]}{schema.suggest_flag(match[1])}")
        text = match[2]
        if text is None:
            text = "true" if option.kind == "bool" else _next(words, option, schema)
        last = option.name if option.secret else ""
        where = f"--{option.name}"
        value = parse(option, text, where)
        if option in CONTROLS:
            line.controls[option.name] = value
            if option.name in ("help", "version") and value:
                return line
        else:
            line.given[option.name] = Given(value, "cli", where)
    return line


def _next(words: list[str], option: Option, schema: Schema) -> str:
    if words:
        match = _FLAG.fullmatch(words[0])
        if not match or not words[0].startswith("--") or schema.flag(match[1]) is None:
            return words.pop(0)
    raise ConfigurationError(f"--{option.name} needs a value")
