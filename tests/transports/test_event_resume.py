"""Clients that are cut at any byte and come back with the last id they read: everything once, in order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transports.event_reader import Reader
from tests.transports.support import Cable

#: What happens: so many publications; so many bytes are read; a cut, and the next connection.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(1, 600)),
        st.tuples(st.just("cut"), st.just(0)),
    ),
    min_size=3,
    max_size=25,
)


class Source:
    """A client over all its connections: ``seen`` is what its application was shown."""

    def __init__(self, cable: Cable, **parameters: str) -> None:
        self.cable = cable
        self.parameters = parameters
        self.seen: list[int] = []
        self.refusals = 0
        self.id = ""
        self.reader = self.open()

    def open(self) -> Reader:
        headers = {"Last-Event-ID": self.id} if self.id else {}
        return Reader(self.cable, headers=headers, stream="chat", buffer=2048, **self.parameters)

    def read(self, limit: int = 1 << 30) -> None:
        """Read about so many bytes behind the head of the answer."""
        for event in self.reader.read(limit):
            if event.type == "message":
                self.seen.append(json.loads(event.data)["n"])
            self.refusals += event.type == "reject_history"
        self.id = self.reader.id or self.id

    def cut(self) -> None:
        """The connection is lost, with everything in it that was not read."""
        self.reader.client.sock.close()
        self.reader = self.open()


@pytest.mark.statement("HE-25")
@pytest.mark.parametrize("way", ["direct", "plain"])
@pytest.mark.parametrize("parameters", [{}, {"raw": "1"}], ids=["typed", "raw"])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_is_cut_where_ever_nothing_is_lost_or_comes_twice(
    way: str, parameters: dict[str, str], steps: list[tuple[str, Any]]
) -> None:
    cable = Cable(way, sse=True, history_limit=1000)
    try:
        source, published = Source(cable, **parameters), 0
        source.read()  # it is subscribed, and knows where
        for what, amount in steps:
            if what == "publish":
                for _ in range(amount):
                    cable.publish("chat", {"n": published, "text": "x" * 200})
                    published += 1
            elif what == "read":
                source.read(amount)
            else:
                source.cut()
        source.read()
        assert source.seen == list(range(published))
        assert source.refusals == 0
    finally:
        cable.close()
