"""History rules: which streams keep how much."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from anycable_tx.errors import ConfigurationError

__all__ = ["check_rules"]

_CLASS = re.compile(r"[a-z0-9_]{1,16}")
_KEYS = ("match", "class", "history_limit", "history_ttl")


def check_rules(rules: Sequence[Any], where: str) -> tuple[dict[str, Any], ...]:
    """The rules in order, each a new dict with ``match`` (str) and ``class`` (str, 'default' if not given).

    ``history_limit`` (int, messages) and ``history_ttl`` (seconds) are there only where the rule sets them; the
    global options count otherwise. ``match`` is a glob, or a regular expression after ``re:``. Raises
    ConfigurationError naming *where*, the number of the rule (from 1) and what is wrong.
    """
    return tuple(_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1))


def _rule(rule: Any, where: str) -> dict[str, Any]:
    if not isinstance(rule, Mapping):
        raise ConfigurationError(f"{where}: {rule!r} is not accepted; expected a mapping with {', '.join(_KEYS)}")
    for key in rule:
        if key not in _KEYS:
            raise ConfigurationError(f"{where}: there is no key {key!r}; known: {', '.join(_KEYS)}")
    checked: dict[str, Any] = {
        "match": _match(rule.get("match"), where),
        "class": rule.get("class", "default"),
    }
    if not isinstance(checked["class"], str) or not _CLASS.fullmatch(checked["class"]):
        raise ConfigurationError(
            f"{where}: class {checked['class']!r} is not accepted; expected 1 to 16 of the characters a-z, 0-9 and _"
        )
    for key, kind in (("history_limit", int), ("history_ttl", (int, float))):
        if key not in rule:
            continue
        value = rule[key]
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= 1e18:
            noun = "a whole number" if key == "history_limit" else "a number of seconds"
            raise ConfigurationError(f"{where}: {key} {value!r} is not accepted; expected {noun}, at least 0")
        checked[key] = value
    return checked


def _match(pattern: Any, where: str) -> str:
    if not isinstance(pattern, str) or pattern in ("", "re:"):
        raise ConfigurationError(f"{where}: match {pattern!r} is not accepted; expected a glob or re: and a pattern")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, OverflowError) as e:
            raise ConfigurationError(f"{where}: match {pattern!r} is no regular expression: {e}") from e
    return pattern
