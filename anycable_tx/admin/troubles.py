"""The last things that went wrong: what the counters say of it by reason, and what the log does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from anycable_tx.logs import shorten

__all__ = ["LAST", "ORDINARY", "LastTroubles", "LastWarnings"]

#: So many are remembered.
LAST = 100

#: Counters that grow while all is well. A new one is a trouble until it stands here.
ORDINARY = frozenset(
    (
        "connections_total",
        "client_msg_total",
        "publications_total",
        "broadcast_msg_total",
        "remote_commands_total",
        "duplicate_publications_total",
        "server_msg_total",
        "data_sent_total",
        "data_rcvd_total",
        "history_confirms_total",
        "sessions_restored_total",
        "sessions_taken_over_total",
        "barriers_expired_total",
        "rpc_call_total",
    )
)


#: Ends of connections that are nobody's fault; the others are troubles.
ORDINARY_ENDS = frozenset(("lost", "client", "1000", "1001"))


class LastTroubles:
    """Rejects, drops, gaps and errors as differences of counters, the newest LAST of them.

    What grew while nobody looked is one entry, without the time.
    """

    def __init__(self) -> None:
        self._last: deque[dict[str, Any]] = deque(maxlen=LAST)
        self._seen: dict[tuple[str, str], int] = {}

    def look(self, counts: Iterable[tuple[str, str, int]], at: float | None) -> None:
        """Take note of what grew since the last look. *at*: that was just before this time; None: it was not."""
        for name, reason, total in counts:
            if name in ORDINARY or not name.endswith("_total"):
                continue
            if name == "closed_connections_total" and reason in ORDINARY_ENDS:
                continue
            grown = total - self._seen.get((name, reason), 0)
            if grown > 0:
                self._seen[name, reason] = total
                self._last.append({"at": at, "name": name, "reason": reason, "count": grown, "total": total})

    def newest_first(self) -> list[dict[str, Any]]:
        """What is remembered."""
        return list(reversed(self._last))


@implementer(ILogObserver)
class LastWarnings:
    """An observer that keeps the newest LAST records of the log, warnings and worse."""

    def __init__(self) -> None:
        self._last: deque[dict[str, Any]] = deque(maxlen=LAST)

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.warn:
            return
        failure = event.get("log_failure")
        attrs = {str(name): _cut(value) for name, value in event.get("attrs", {}).items()}
        if failure is not None:
            attrs.setdefault("error", _cut(failure.value))
        text = formatEvent(event) if event.get("log_format") is not None else ""
        self._last.append(
            {
                "at": event["log_time"],
                "level": level.name,
                "text": _cut(text or "unexpected error", 300),
                "attrs": attrs,
            }
        )

    def newest_first(self) -> list[dict[str, Any]]:
        """What is remembered."""
        return list(reversed(self._last))


def _cut(value: object, limit: int = 100) -> str:
    """The beginning of its text, of characters that JSON can carry."""
    return shorten(str(value).encode("utf-8", "replace").decode(), limit)
