"""Server-sent events over both ways to write: what a client reads, and how its response begins and ends."""

from __future__ import annotations

import pytest

from tests.transports.event_reader import Reader
from tests.transports.support import Cable, identifier

PUBSUB = '{"channel":"$pubsub","stream_name":"chat"}'


@pytest.fixture
def events(cable) -> Cable:
    """A server of events, with a memory broker and public streams."""
    return cable(sse=True)


def epoch_of(cable: Cable, stream: str = "chat") -> str:
    """The epoch of a stream that has a subscriber."""
    return cable.node.hub.streams[stream].position.epoch


def test_a_client_is_welcomed_confirmed_and_gets_what_is_published(events):
    reader = Reader(events, stream="chat")
    welcome, confirmation = reader.events()
    assert (reader.status, welcome.type, confirmation.type) == (200, "welcome", "confirm_subscription")
    assert welcome.json == {"type": "welcome", "sid": welcome.json["sid"]}
    assert confirmation.json == {"type": "confirm_subscription", "identifier": PUBSUB}
    for text in ("one", {"two": 2}, [3], None):
        events.publish("chat", text)
    epoch = epoch_of(events)
    assert [(e.type, e.data, e.id) for e in reader.events()] == [
        ("message", "one", f"1/{epoch}/chat"),
        ("message", '{"two": 2}', f"2/{epoch}/chat"),
        ("message", "[3]", f"3/{epoch}/chat"),
        ("message", "null", f"4/{epoch}/chat"),
    ]


def test_the_same_publication_reaches_websockets_and_event_streams(events):
    reader, socket = Reader(events, stream="chat"), events.subscriber("chat")
    reader.events()
    events.publish("chat", {"n": 1})
    assert [e.json for e in reader.events()] == socket.payloads() == [{"n": 1}]
    assert identifier("chat") in socket.connection.session.subscriptions
