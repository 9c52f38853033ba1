"""A value somebody gave, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RANKS", "Given"]

#: The sources, the weakest first. A preset fills what none of the others gave.
RANKS = ("preset", "file", "env", "cli")


@dataclass(frozen=True)
class Given:
    """A checked value, its source (one of RANKS) and the place to name in messages.

    ``repr`` does not show the value: it may be a secret.
    """

    value: Any
    source: str
    origin: str

    def __repr__(self) -> str:
        return f"<given by {self.origin}>"

    @property
    def rank(self) -> int:
        """The strength of the source."""
        return RANKS.index(self.source)
