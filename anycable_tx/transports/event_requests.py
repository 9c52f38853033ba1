"""What a request for events asks for: the subscriptions, and how its answer looks; pure."""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

from anycable_tx.cable.codec import Command, HistoryAsk, decode_command
from anycable_tx.cable.messages import Position
from anycable_tx.errors import BadCommand
from anycable_tx.transports.handshake import Head

__all__ = ["MAX_BODY", "Wanted", "read_request"]

#: The largest body of a POST, in bytes.
MAX_BODY = 65536

_TRUE = frozenset(("1", "t", "true", "y"))
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
#: The parameters that name a subscription, the strongest first: the channel, and the member that the value is.
_CHANNELS = (
    ("channel", "", ""),
    ("stream", "$pubsub", "stream_name"),
    ("signed_stream", "$pubsub", "signed_stream_name"),
    ("turbo_signed_stream_name", "Turbo::StreamsChannel", "signed_stream_name"),
)


class Wanted(NamedTuple):
    """A request that can be understood. ``whole`` and ``raw``: see EventWire."""

    commands: list[Command]
    whole: bool
    raw: bool


def read_request(head: Head, body: bytes) -> Wanted:
    """What a GET or POST asks for. Raises BadCommand, naming what is wrong."""
    parameters = head.parameters()
    raw = parameters.get("raw", "").lower() in _TRUE
    if head.method == "POST":
        return Wanted(_lines(body), True, raw)
    identifier = _identifier(parameters)
    command = Command("subscribe", identifier, history=_history(head, parameters.get("history_since", "")))
    return Wanted([command], False, raw)


def _identifier(parameters: dict[str, str]) -> str:
    if parameters.get("identifier"):
        return parameters["identifier"]
    for name, channel, member in _CHANNELS:
        value = parameters.get(name)
        if value:
            found = {"channel": channel, member: value} if channel else {"channel": value}
            return orjson.dumps(found).decode()
    names = ["identifier", *(name for name, _, _ in _CHANNELS)]
    raise BadCommand(f"nothing to subscribe to: one of the parameters {', '.join(names)} is required")


def _history(head: Head, since: str) -> HistoryAsk | None:
    """What the client missed: by the last id it read, and for other streams by the time."""
    if since and not _INTEGER.fullmatch(since):
        raise BadCommand(f"history_since: expected whole seconds since 1970, got {since[:100]!r}")
    # From the beginning of time is from its first second: 0 means that nothing is asked for.
    seconds = max(int(since), 1) if since else 0
    streams: dict[str, Position] | None = None
    # Header values come as latin-1; browsers write ids in UTF-8.
    id = head.headers.get("last-event-id", "").encode("latin-1").decode("utf-8", "replace")
    parts = id.split("/", 2)
    if len(parts) == 3:
        offset, epoch, stream = parts
        if not offset.isascii() or not offset.isdigit() or len(offset) > 18:
            raise BadCommand(f"Last-Event-ID: expected <offset>/<epoch>/<stream>, got the offset {offset[:100]!r}")
        streams = {stream: Position(epoch, int(offset))}
    return HistoryAsk(streams, seconds, sole=True) if streams or seconds else None


def _lines(body: bytes) -> list[Command]:
    """The subscriptions in the lines of a POST."""
    commands = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            command = decode_command(line)
            if command is None:
                raise BadCommand("expected a JSON object, got null")
        except BadCommand as e:
            raise BadCommand(f"line {number}: {e}") from None
        commands.append(command)
    return commands
