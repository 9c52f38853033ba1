"""Words about options, shared by --help and the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from anycable_tx.config.declarations.server import CONTROLS
from anycable_tx.config.option import Option
from anycable_tx.config.schema import environment_names

__all__ = ["default_text", "help_text", "meaning", "sections"]

_PLACEHOLDERS = {"str": "TEXT", "int": "N", "float": "N", "list": "A,B", "map": "A:X,B:Y"}


def sections(options: Iterable[Option]) -> dict[str, list[Option]]:
    """The options by section, in the order in which the sections appear first."""
    grouped: dict[str, list[Option]] = {}
    for option in options:
        grouped.setdefault(option.section, []).append(option)
    return grouped


def default_text(option: Option) -> str:
    """The default as a user would type it; '' for none."""
    default: Any = option.default
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, (list, tuple)):
        return ",".join(default)
    if isinstance(default, dict):
        return ",".join(f"{k}:{v}" for k, v in default.items())
    return str(default)


def meaning(option: Option) -> str:
    """What the option means, with its choices and what became of it."""
    text = option.help
    if option.choices:
        text += f" ({', '.join(option.choices)})"
    if option.unit:
        text += f", in {'seconds' if option.unit == 's' else option.unit}"
    if option.tag == "G" or (option.tag == "D" and not option.successor):
        text = "accepted, without effect"
    return text


def help_text(synopsis: str, options: Sequence[Option]) -> str:
    """The text of --help: every option that can be typed, by section."""
    lines = [
        synopsis,
        "",
        "Options are read from conf/anycable.yml or /etc/anycable/anycable.yml, from variables ANYCABLE_<NAME>,",
        "and from the command line; the last one that gives a value counts. Dashes and underscores in names are",
        "the same.",
    ]
    for section, members in (("Configuration", list(CONTROLS)), *sections(options).items()):
        shown = [option for option in members if option.cli and option.tag not in ("D", "G")]
        if shown:
            lines += ["", f"{section}:"]
            for option in shown:
                lines += _help_lines(option)
    return "\n".join(lines)


def _help_lines(option: Option) -> list[str]:
    flag = f"  --{option.name}" + (f"={_PLACEHOLDERS[option.kind]}" if option.kind != "bool" else "")
    for alias in option.aliases:
        flag += f", {'-' if len(alias) == 1 else '--'}{alias}"
    text = meaning(option)
    default = default_text(option)
    if default and default != "false":
        text += f" [{default}]"
    if option.env:
        text += f" (also {', '.join(environment_names(option)[1:])})"
    wrapped = wrap(text, 72)
    first = f"{flag:<36}  {wrapped[0]}" if len(flag) <= 36 else flag
    rest = wrapped[1:] if len(flag) <= 36 else wrapped
    return [first, *(" " * 38 + line for line in rest)]
