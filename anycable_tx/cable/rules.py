"""History rules: how much each stream keeps, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["Rule", "Rules"]

#: How many streams' rules are remembered; the rest is looked up again.
_REMEMBERED = 10_000


class Rule(NamedTuple):
    """A class of streams: each keeps its ``limit`` newest messages (0: none) for ``ttl`` seconds."""

    name: str
    limit: int
    ttl: float


class Rules:
    """The rule of every stream: the first that matches its whole name, else the default.

    In a pattern ``*`` stands for any text without ``/`` and ``:``, ``**`` for any text; every other character is
    itself. After ``re:`` a pattern is a regular expression for the whole name.
    """

    def __init__(self, rules: Iterable[Mapping[str, Any]], limit: int, ttl: float) -> None:
        """*rules* as ``config.rules.check_rules`` returns them; *limit* and *ttl* (s) where a rule sets none."""
        self.default = Rule("default", limit, ttl)
        self._rules = [
            (
                _compiled(rule["match"]),
                Rule(rule["class"], rule.get("history_limit", limit), rule.get("history_ttl", ttl)),
            )
            for rule in rules
        ]
        self._remembered = lru_cache(_REMEMBERED)(self._look_up)

    def rule_for(self, stream: str) -> Rule:
        """The rule of *stream*."""
        return self._remembered(stream) if self._rules else self.default

    @property
    def all(self) -> tuple[Rule, ...]:
        """Every rule there is; several may be of one class."""
        return (*(rule for _, rule in self._rules), self.default)

    @property
    def longest_ttl(self) -> float:
        """The longest time any message is kept, in seconds."""
        return max(self.default.ttl, *(rule.ttl for _, rule in self._rules), 0.0)

    def _look_up(self, stream: str) -> Rule:
        for pattern, rule in self._rules:
            if pattern.fullmatch(stream):
                return rule
        return self.default


def _compiled(match: str) -> re.Pattern[str]:
    if match.startswith("re:"):
        return re.compile(match[3:])
    parts = re.split(r"(\*\*|\*)", match)
    text = "".join({"**": ".*", "*": "[^/:]*"}.get(part, re.escape(part)) for part in parts)
    return re.compile(text, re.DOTALL)
