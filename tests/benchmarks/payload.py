"""What is published: messages of a fixed size that carry their publish time and their place in the stream.

The *stamp* of a message is ``@@`` + 19 digits (``time.monotonic_ns()`` at the start of the publish call; the clock is
the same for all processes of a machine) + 9 digits (0, 1, 2... in each stream). It sits inside a JSON string, so it
is found by a plain byte search however a server formats the JSON around it.
"""

from __future__ import annotations

import json

__all__ = ["MARK", "PAYLOAD_BYTES", "SEQ_END", "TIME_END", "TIME_START", "Template", "identifier"]

MARK = b"@@"
TIME_START = 2
TIME_END = TIME_START + 19
SEQ_END = TIME_END + 9

PAYLOAD_BYTES = 250


def identifier(stream: str) -> str:
    """The subscription identifier of a public *stream*."""
    return json.dumps({"channel": "$pubsub", "stream_name": stream}, separators=(",", ":"))


class Template:
    """The publications of one stream: the body of a request costs about a microsecond a message to build."""

    def __init__(self, stream: str) -> None:
        data = json.dumps({"stamp": "@@" + "%019d%09d", "text": ""}, separators=(",", ":"))
        width = len(data % (0, 0))
        data = data.replace('"text":""', '"text":"' + "x" * (PAYLOAD_BYTES - width) + '"')
        self._format = json.dumps({"stream": stream, "data": data}).encode()
        self.published = 0

    def one(self, now: int) -> bytes:
        """The body that publishes the next message, stamped with *now* (ns)."""
        body = self._format % (now, self.published)
        self.published += 1
        return body

    def batch(self, now: int, size: int) -> bytes:
        """The body that publishes the next *size* messages at once: a JSON array."""
        return b"[" + b",".join([self.one(now) for _ in range(size)]) + b"]"
