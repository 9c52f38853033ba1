"""What the leader of a log of the NATS broker says of it, and what follows from that."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

__all__ = ["BEGIN", "NANOSECONDS", "Facts", "description", "facts_of", "skew"]

#: The clocks of servers and nodes agree within so many seconds; where little is kept, within a twentieth of that.
_SKEW = 60.0
NANOSECONDS = 1_000_000_000
#: In the description of a log: what was stored before it began is lost.
BEGIN = "begin"


class Facts(NamedTuple):
    """What the leader of a log says of it. Times are in Unix seconds, -1 for never."""

    first: int
    last: int
    created: float
    keep: float
    #: Of what was stored up to then nothing is known.
    lost: float
    #: Up to the time ``until`` so many messages of a stream were enough to displace one.
    least: int
    until: float
    config: dict[str, Any]

    def grown_too_old(self, now: float) -> float:
        """What was stored up to then may have grown too old; -1 when there is nothing that old."""
        before = now - self.keep + skew(self.keep)
        return before if self.created < before else -1.0

    def unknown(self, now: float) -> float:
        """The newest time of which nobody knows *now* what was stored then."""
        return max(self.lost, self.grown_too_old(now))

    def knows_all(self, now: float) -> bool:
        """Is all that was ever stored in it still there, but for what made room for newer messages?"""
        return self.first <= 1 or (self.lost <= self.created and self.grown_too_old(now) < 0)

    def with_description(self, **changes: Any) -> str:
        """What the log is to say of itself with some of it changed."""
        return description(**{"lost": self.lost, "least": self.least, "until": self.until, **changes})


def skew(keep: float) -> float:
    """How far apart clocks may be, in seconds, for a log that keeps its messages so long."""
    return min(_SKEW, keep / 20)


def description(lost: float | str = -1.0, least: int = 0, until: float = -1.0) -> str:
    """What a log says of itself: see ``Facts``."""
    return "anycable-tx " + json.dumps({"lost": lost, "least": least, "until": until})


def facts_of(answer: dict[str, Any]) -> Facts:
    """What is in the answer of its leader."""
    config, state = answer["config"], answer["state"]
    created = datetime.fromisoformat(answer["created"]).timestamp()
    try:
        said = json.loads(config["description"].partition(" ")[2])
        lost = created if said["lost"] == BEGIN else float(said["lost"])
        known = (lost, int(said["least"]), float(said["until"]))
    except (KeyError, TypeError, ValueError):  # an operator's own words: nothing before now is known
        known = (float("inf"), 1, float("inf"))
    return Facts(
        state["first_seq"],
        state["last_seq"],
        created,
        config["max_age"] / NANOSECONDS,
        *known,
        config,
    )
