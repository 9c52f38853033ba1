"""What is published or performed: messages of a fixed size that carry their time and their place in the stream.

The *stamp* of a message is ``@@`` + 19 digits (``time.monotonic_ns()`` at the start of the publish call or before the
command is sent; the clock is the same for all processes of a machine) + 9 digits (0, 1, 2... in each stream, or for
the commands of each connection). It sits inside a JSON string, so it is found by a plain byte search however a server
formats the JSON around it.
"""

from __future__ import annotations

import json

__all__ = ["MARK", "PAYLOAD_BYTES", "SEQ_END", "TIME_END", "TIME_START", "Template", "command", "identifier"]

MARK = b"@@"
TIME_START = 2
TIME_END = TIME_START + 19
SEQ_END = TIME_END + 9

PAYLOAD_BYTES = 250


def identifier(stream: str, channel: str = "$pubsub") -> str:
    """The subscription identifier of a public *stream*, or of the room of that name in the backend's *channel*."""
    key = "stream_name" if channel == "$pubsub" else "room"
    return json.dumps({"channel": channel, key: stream}, separators=(",", ":"))


def _message() -> str:
    """The format of a message; it takes a time and a number."""
    data = json.dumps({"stamp": "@@" + "%019d%09d", "text": ""}, separators=(",", ":"))
    width = len(data % (0, 0))
    return data.replace('"text":""', '"text":"' + "x" * (PAYLOAD_BYTES - width) + '"')


def command(identifier: str) -> bytes:
    """The format of the command that sends a message to a channel; it takes a time and a number."""
    return json.dumps({"command": "message", "identifier": identifier, "data": _message()}).encode()


class Template:
    """The publications of one stream: the body of a request costs about a microsecond a message to build."""

    def __init__(self, stream: str) -> None:
        self._format = json.dumps({"stream": stream, "data": _message()}).encode()
        self.published = 0

    def one(self, now: int) -> bytes:
        """The body that publishes the next message, stamped with *now* (ns)."""
        body = self._format % (now, self.published)
        self.published += 1
        return body

    def batch(self, now: int, size: int) -> bytes:
        """The body that publishes the next *size* messages at once: a JSON array."""
        return b"[" + b",".join([self.one(now) for _ in range(size)]) + b"]"
