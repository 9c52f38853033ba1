"""Path patterns: exact, a trailing ``*``, ``{name}`` and ``{name:regexp}``; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from anycable_tx.errors import ConfigurationError

__all__ = ["PathPatterns"]

#: How specific a segment is; the smaller wins.
_STATIC, _REGEXP, _NAME, _REST = range(4)

_PLACEHOLDER_NAME = re.compile(r"\w+")


class PathPatterns:
    """A list of patterns to match request paths against, case-sensitive and as they were sent.

    ``{name}`` stands for one segment (or the rest of one), possibly empty; ``{name:regexp}`` for text of one
    segment that matches *regexp*; ``/*`` at the end for any remainder, slashes included, possibly empty. Blank
    patterns are dropped and a missing slash in front is added.

    Raises ConfigurationError, naming the pattern, for one that cannot be understood.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        names = [pattern.strip() for pattern in patterns]
        self._static: set[str] = set()
        self._others: list[tuple[list[int], list[re.Pattern[str]], str]] = []
        for name in names:
            if not name:
                continue
            pattern = name if name.startswith("/") else "/" + name
            ranks, segments = _parse(pattern)
            if any(ranks):
                self._others.append((ranks, segments, pattern))
            else:
                self._static.add(pattern)
        self._others.sort(key=lambda other: other[0])

    def match(self, path: str) -> bool:
        """Whether *path* (without its query) matches a pattern."""
        return path in self._static or (bool(self._others) and self.find(path) is not None)

    def find(self, path: str) -> str | None:
        """The pattern (its slash added) that *path* matches, or None.

        Of several the most specific one: segment by segment, static text before a regexp, before a name,
        before ``*``.
        """
        if path in self._static:
            return path
        found = path.split("/")
        for ranks, segments, pattern in self._others:
            if ranks[-1] == _REST:
                fits = len(found) >= len(ranks)
            else:
                fits = len(found) == len(ranks)
            if fits and all(map(re.Pattern.fullmatch, segments, found)):
                return pattern
        return None


def _parse(pattern: str) -> tuple[list[int], list[re.Pattern[str]]]:
    """The ranks of the pattern's segments, and a regexp for each but a final ``*``."""
    ranks: list[int] = []
    segments: list[re.Pattern[str]] = []
    texts = _split(pattern)
    for index, text in enumerate(texts):
        if text == "*" and index == len(texts) - 1:
            ranks.append(_REST)
            break
        rank, source = _segment(pattern, text)
        ranks.append(rank)
        try:
            segments.append(re.compile(source))
        except re.error as e:
            raise ConfigurationError(f"path {pattern!r}: {text!r} is no regexp: {e}") from None
    return ranks, segments


def _split(pattern: str) -> list[str]:
    """The segments of *pattern*: it is cut at slashes outside braces."""
    segments, start, depth = [], 0, 0
    for index, character in enumerate(pattern):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                raise ConfigurationError(f"path {pattern!r}: there is a '}}' without its '{{'")
        elif character == "/" and not depth:
            segments.append(pattern[start:index])
            start = index + 1
    if depth:
        raise ConfigurationError(f"path {pattern!r}: there is a '{{' without its '}}'")
    return [*segments, pattern[start:]]


def _segment(pattern: str, text: str) -> tuple[int, str]:
    """The rank and the regexp of one segment."""
    rank, source, at = _STATIC, "", 0
    while at < len(text):
        if text[at] == "*":
            raise ConfigurationError(
                f"path {pattern!r}: '*' is accepted only at the end, behind a slash, as in '/cable/*'"
            )
        if text[at] != "{":
            source += re.escape(text[at])
            at += 1
            continue
        end = _closing(text, at)
        name, colon, regexp = text[at + 1 : end].partition(":")
        if not _PLACEHOLDER_NAME.fullmatch(name):
            raise ConfigurationError(
                f"path {pattern!r}: {name!r} is no placeholder name; letters, digits and _ are accepted, as in "
                "'{id}' or '{id:[0-9]+}'"
            )
        if colon:
            try:
                re.compile(regexp)
            except re.error as e:
                raise ConfigurationError(f"path {pattern!r}: the regexp of {name!r} is wrong: {e}") from None
            source += f"(?:{regexp})"
            rank = max(rank, _REGEXP)
        else:
            source += ".*"
            rank = max(rank, _NAME)
        at = end + 1
    return rank, source


def _closing(text: str, at: int) -> int:
    """The index of the brace that closes the one at *at*; _split has made sure that there is one."""
    depth = 0
    for index in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            break
    return index
