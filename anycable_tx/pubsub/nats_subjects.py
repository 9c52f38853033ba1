"""Which subject a stream has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from anycable_tx.cable.rules import Rules
from anycable_tx.nats.names import Names

__all__ = ["Subject", "Subjects"]

#: The longest subject, in bytes.
LONGEST = 2000
_TOKEN = re.compile(r"[^\x00-\x20\x7f.]+")


class Subject(NamedTuple):
    """*name* is what NATS calls it; *kind* the stream's class, *verbatim* whether it is called like its stream."""

    name: str
    kind: str
    verbatim: bool


class Subjects:
    """Subjects are encoded, with the class that *rules* give a stream, or *verbatim*: then called like the stream.

    In verbatim mode those names are encoded nevertheless that cannot be subjects (with spaces or control characters,
    with empty tokens, with a wildcard as a token, of more than LONGEST bytes), that belong to NATS or this server
    (the first token begins with ``$`` or ``_``, or is the prefix of *names*), or are among *taken*: no stream is
    heard as another one, and none can be mistaken for anything but a stream (BR-38). What AnyCable servers send to
    streams of such names is not heard.
    """

    def __init__(self, names: Names, rules: Rules, verbatim: bool, taken: Iterable[str]) -> None:
        self._names = names
        self._rules = rules
        self._verbatim = verbatim
        self._taken = frozenset(taken)

    def of(self, stream: str) -> Subject:
        """The subject of *stream*, never that of another one."""
        kind = self._rules.rule_for(stream).name
        if self._verbatim and self._can_be_verbatim(stream):
            return Subject(stream, kind, True)
        return Subject(self._names.live(kind, stream), kind, False)

    def _can_be_verbatim(self, stream: str) -> bool:
        tokens = stream.split(".")
        return (
            stream not in self._taken
            and all(_TOKEN.fullmatch(token) and token not in ("*", ">") for token in tokens)
            and tokens[0][0] not in "$_"
            and tokens[0] != self._names.prefix
            and len(stream.encode()) <= LONGEST
        )
