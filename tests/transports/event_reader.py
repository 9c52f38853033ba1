"""A client that reads server-sent events as the HTML standard says, through a response of whatever framing."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.transports.support import Answer, Cable, Client


class Event(NamedTuple):
    """What the application is shown. ``id`` is the last one the client read by then."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        """The data, which is JSON."""
        return json.loads(self.data)


class Reader:
    """A request for events. ``answer`` is its head; ``id`` and ``retry`` are what the client has read of such."""

    def __init__(
        self,
        cable: Cable,
        path: str = "/events",
        *,
        method: str = "GET",
        body: str | None = None,
        version: str = "1.1",
        client: Client | None = None,
        buffer: int = 0,
        headers: dict[str, str] | None = None,
        **parameters: str,
    ) -> None:
        self.client = client or cable.connect(buffer)
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        fields = {"Host": "cable.example", **(headers or {})}
        if body is not None:
            fields["Content-Length"] = str(len(body.encode()))
        lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
        self.client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or "").encode())
        self.answer: Answer | None = None
        self.id = ""
        self.retry = 0
        self.blocks: list[str] = []
        self.complete = False
        self._text = b""

    def head(self) -> Answer:
        """The answer's head, once it is there."""
        if self.answer is None:
            self.answer = self.client.head()
        return self.answer

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.head().status

    def read(self, limit: int = 1 << 30) -> list[Event]:
        """The events that arrived since the last time; ``blocks`` are what they were made of, and comments."""
        head = self.head()
        self.client.read(limit)
        if head.headers.get("transfer-encoding") == "chunked":
            self._unchunk()
        else:
            self._text += self.client.received
            self.client.received = b""
        *blocks, rest = re.split(rb"\r\n\r\n|\n\n|\r\r", self._text)
        self._text = rest
        self.blocks += [block.decode() for block in blocks]
        return [event for block in blocks if (event := self._event(block.decode())) is not None]

    def events(self, *, pings: bool = False) -> list[Event]:
        """The events, without those of which there may be any number."""
        return [event for event in self.read() if pings or event.type != "ping"]

    def messages(self) -> list[str]:
        """The data of the events, which must be messages."""
        events = self.events()
        assert all(event.type == "message" for event in events), events
        return [event.data for event in events]

    def types(self) -> list[str]:
        """The types of the events."""
        return [event.type for event in self.events()]

    def _unchunk(self) -> None:
        while not self.complete:
            size, line_end, rest = self.client.received.partition(b"\r\n")
            if not line_end or len(rest) < int(size, 16) + 2:
                return
            length = int(size, 16)
            assert rest[length : length + 2] == b"\r\n"
            self._text += rest[:length]
            self.client.received = rest[length + 2 :]
            self.complete = not length

    def _event(self, block: str) -> Event | None:
        kind, data = "message", []
        for line in re.split(r"\r\n|\r|\n", block):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            elif name == "id" and "\0" not in value:
                self.id = value
            elif name == "retry" and value.isdigit():
                self.retry = int(value)
        return Event(kind, "\n".join(data), self.id) if data else None
