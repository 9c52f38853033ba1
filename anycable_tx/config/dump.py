"""The configuration in effect as YAML that can be loaded again."""

from __future__ import annotations

from typing import Any

import yaml

from anycable_tx.config.option import Option
from anycable_tx.config.settings import Settings
from anycable_tx.config.values import MASK

__all__ = ["dump"]

_HEAD = """\
# The configuration in effect. Lines behind a # are defaults and what follows from other
# options; they are not read when this is used as a file.
"""
_MASKED = "# Secrets are masked; --show_secrets shows them.\n"

_Tree = dict[str, Any]


def dump(settings: Settings, show_secrets: bool = False) -> str:
    """YAML with every option: what was given as it was given, the rest as comments.

    Loaded again in the same environment it makes equal Settings, except for a ``node_id`` that was made up
    (CO-9, RA-44). Masked secrets are refused when they are loaded, not taken for secrets.
    """
    tree: _Tree = {}
    for option in settings.schema.live:
        if option.file:
            *sections, key = option.yaml_key.split(".")
            branch = tree
            for section in sections:
                branch = branch.setdefault(section, {})
            branch[key] = (option, _line(settings, option, key, show_secrets))
    lines = [_HEAD.rstrip()] if show_secrets else [_HEAD + _MASKED.rstrip()]
    _write(tree, "", lines)
    return "\n".join(lines) + "\n"


def _write(branch: _Tree, indent: str, lines: list[str]) -> None:
    """Options first, sections after them."""
    for value in branch.values():
        if not isinstance(value, dict):
            lines.append(indent + value[1])
    for key, value in branch.items():
        if isinstance(value, dict):
            if not indent:
                lines.append("")
            lines.append(f"{indent}{key}:")
            _write(value, indent + "  ", lines)


def _line(settings: Settings, option: Option, key: str, show_secrets: bool) -> str:
    def shown(value: Any) -> str:
        if option.secret and not show_secrets and value and value != "none":
            return _yaml([MASK] if option.kind == "list" else MASK)
        return _yaml(value)

    given = settings.given(option.name)
    final = settings[option.name]
    source = settings.source(option.name)
    if given is None:
        return f"# {key}: {shown(final)}" + ("  # derived" if source == "derived" else "")
    effect = f"; in effect: {shown(final)}" if source == "derived" and final != given.value else ""
    return f"{key}: {shown(given.value)}  # {' '.join(given.origin.split())}{effect}"


def _yaml(value: Any) -> str:
    """*value* on one line of YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return yaml.safe_dump(value).split("\n")[0]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml(k)}: {_yaml(v)}' for k, v in value.items())}}}"
    quoted: str = yaml.safe_dump(value, default_style='"', width=float("inf"))
    return quoted.rstrip("\n")
