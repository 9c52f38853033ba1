"""The messages of the Redis bus: what goes in comes out, and what others send is understood."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.cable.messages import RemoteCommand, StreamMessage
from anycable_tx.redis import wire

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@given(
    st.builds(
        StreamMessage,
        stream=TEXT.filter(bool),
        payload=TEXT.map(orjson.dumps),
        offset=st.integers(0, 2**53 - 1),
        prev=st.integers(0, 2**53 - 1),
        epoch=TEXT,
        time=st.integers(0, 2**42).map(lambda ms: ms / 1000),
        exclude_socket=TEXT,
        broadcast_type=TEXT,
        id=TEXT,
    ),
    st.booleans(),
)
def test_a_message_arrives_as_it_was_sent(message: StreamMessage, verbatim: bool) -> None:
    if not message.offset:
        message.epoch, message.prev = "", 0
    channel = wire.channel_of(message.stream, verbatim).encode()
    assert wire.decode(channel, wire.encode(message)) == message


def test_a_payload_keeps_every_digit() -> None:
    message = StreamMessage("a", b'{"id":9007199254740993, "x": 1.10}', time=1.0)
    assert wire.decode(b"a", wire.encode(message)) == message


@pytest.mark.statement("BR-34")
def test_a_message_is_what_other_servers_send_and_a_little_more() -> None:
    message = StreamMessage("chat/1", b'{"a":1}', 5, 4, "E", 1.5, "sid", "typing", "p-1")
    sent = orjson.loads(wire.encode(message))
    assert sent == {
        "stream": "chat/1",
        "data": '{"a":1}',
        "meta": {"exclude_socket": "sid", "broadcast_type": "typing"},
        "offset": 5,
        "epoch": "E",
        "prev": 4,
        "time": 1500,
        "id": "p-1",
    }
    assert orjson.loads(wire.encode(StreamMessage("a", b"1", time=0.001))) == {"stream": "a", "data": "1", "time": 1}


def test_a_message_of_another_server_has_no_position_here() -> None:
    payload = b'{"stream":"a","data":"hi","meta":{"exclude_socket":"s"},"offset":7,"epoch":"abcd"}'
    assert wire.decode(b"a", payload) == StreamMessage("a", b'"hi"', exclude_socket="s")


@pytest.mark.parametrize(
    "command",
    [RemoteCommand("disconnect", {"identifier": "{}", "reconnect": True}), RemoteCommand("takeover", {"sid": "s"})],
)
def test_a_command_arrives_as_it_was_sent(command: RemoteCommand) -> None:
    assert wire.decode(b"__anycable_internal__", wire.encode(command)) == command


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[null]",
        b"42",
        b"{}",
        b"\xff",
        b'{"time":1}',
        b'{"stream":1,"data":"x","time":1}',
        b'{"stream":"","data":"x","time":1}',
        b'{"stream":"a","data":{},"time":1}',
        b'{"stream":"a","data":"x","time":"1"}',
        b'{"stream":"a","data":"x","meta":[],"time":1}',
        b'{"stream":"a","data":"x","offset":"1","time":1}',
        b'{"stream":"a","data":"x","epoch":1,"time":1}',
        b'{"command":1}',
        b'{"command":""}',
        b"[" * 10_000,
        b'[{"stream":"a","data":"x"},{"stream":"a","data":"y"}]',
    ],
)
@pytest.mark.statement("BR-6")
def test_what_nobody_can_have_meant_is_nothing(payload: bytes) -> None:
    assert wire.decode(b"a", payload) is None


def test_a_message_on_the_channel_of_another_stream_is_nothing() -> None:
    message = wire.encode(StreamMessage("a", b"1", time=1.0))
    assert wire.decode(b"b", message) is None
    assert wire.decode(b"ac:st:b", message) is None
    assert wire.decode(b"ac:st:a", message) is not None
