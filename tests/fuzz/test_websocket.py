"""Whatever a client sends over its WebSocket: the right close code or silence, and nobody else is concerned."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anycable_tx.cable.codec import decode_command
from anycable_tx.errors import BadCommand
from tests.fuzz.inputs import almost, bodies, cut, json_like
from tests.transports.support import CLOSE, PING, PONG, Cable, Client, identifier, masked

LIMIT = 2000


@pytest.fixture(params=["direct", "plain"])
def made(request: pytest.FixtureRequest) -> Iterator[Cable]:
    server = Cable(
        request.param, max_message_size=LIMIT, max_commands_rate=0, ping_interval=100, enable_ws_compression=True
    )
    yield server
    server.close()


def examples(number: int) -> Any:
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


def say(client: Client, pieces: list[bytes]) -> None:
    """Send them, until the server has had enough."""
    for piece in pieces:
        try:
            client.send(piece)
        except OSError:
            return


def leave(made: Cable, client: Client) -> None:
    """The client goes; nothing went wrong, and another one is served."""
    client.sock.close()
    made.clients.remove(client)
    made.run()
    assert made.metrics.value("internal_errors_total") == 0


# -- commands


@pytest.mark.statement("CP-41", "F64")
def test_no_message_stops_a_connection_from_being_read(made):
    """A malformed command is counted and ignored: the next one is carried out, and a close is answered."""

    @examples(200)
    @given(st.lists(bodies, min_size=1, max_size=4))
    def each(texts: list[bytes]) -> None:
        client = made.client()
        say(client, [masked(text) for text in texts if _is_utf8(text) and len(text) <= LIMIT])
        client.frames()
        assert client.is_served()
        client.send(masked(b"\x03\xe8", opcode=CLOSE))
        assert client.farewell()[1] == 1000
        leave(made, client)

    each()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.statement("F64")
def test_a_subscriber_stays_one_whatever_it_says_otherwise(made):
    """Commands that are almost right change nothing for a subscription that is confirmed."""
    names = st.sampled_from(["history", "whisper", "join", "leave", "presence", "message", "subscribe", "pong", "x"])
    command = st.builds(
        lambda name, more: {**more, "command": name, "identifier": identifier()},
        names,
        st.dictionaries(st.sampled_from(["history", "presence", "data", "Data", "x"]), json_like, max_size=3),
    )

    @examples(150)
    @given(st.lists(command, max_size=4))
    def each(commands: list[dict[str, Any]]) -> None:
        client = made.subscriber()
        for command in commands:
            client.send(masked(json.dumps(command)[:LIMIT]))
        client.frames()
        made.wait(3, 1)
        client.frames()
        made.publish("chat", "x")
        assert client.payloads() == ["x"]
        leave(made, client)

    each()


@pytest.mark.statement("F64", "CP-41")
@given(bodies | almost(bodies))
def test_a_text_is_a_command_or_a_bad_one(text):
    try:
        command = decode_command(text)
    except BadCommand:
        return
    assert command is None or isinstance(command.name, str)


# -- frames


class Sent(NamedTuple):
    """A frame as RFC 6455 has it."""

    fin: bool
    rsv: int
    opcode: int
    masked: bool
    payload: bytes
    #: How its length is written: as short as can be, or longer.
    length: int

    def encode(self) -> bytes:
        size = len(self.payload)
        width = max(self.length, 0 if size < 126 else 1 if size < 1 << 16 else 2)
        head = bytes([self.fin << 7 | self.rsv << 4 | self.opcode])
        mask = 0x80 if self.masked else 0
        if width == 0:
            head += bytes([mask | size])
        else:
            head += struct.pack("!BH", mask | 126, size) if width == 1 else struct.pack("!BQ", mask | 127, size)
        if not self.masked:
            return head + self.payload
        key = b"\x1f\x00\x9a~"
        return head + key + bytes(byte ^ key[n & 3] for n, byte in enumerate(self.payload))


def verdict(frames: list[Sent]) -> set[int]:
    """The close codes that RFC 6455 asks for in answer to *frames*; 0: the connection stays open."""
    message: bytes | None = None
    text = False
    for frame in frames:
        if frame.rsv or not frame.masked or 3 <= frame.opcode <= 7 or frame.opcode > 10:
            return {1002}
        size = len(frame.payload)
        short = 0 if size < 126 else 1 if size < 1 << 16 else 2
        if frame.opcode >= 8:
            if not frame.fin or size > 125 or frame.length:
                return {1002}
            if frame.opcode == CLOSE:
                return _farewell(frame.payload)
            continue
        if frame.length > short:
            return {1002}
        if (frame.opcode == 0) == (message is None):
            return {1002}
        if frame.opcode:
            message, text = b"", frame.opcode == 1
        assert message is not None
        message += frame.payload
        if len(message) > LIMIT or size > LIMIT:
            return {1009}
        if frame.fin:
            if text and not _is_utf8(message):
                return {1007}
            message = None
    return {0}


#: Close codes that may be sent, besides those from 3000 on.
CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}


def _farewell(payload: bytes) -> set[int]:
    if not payload:
        return {1000, 1005}
    if len(payload) == 1:
        return {1002}
    [code] = struct.unpack("!H", payload[:2])
    if code not in CODES and not 3000 <= code < 5000:
        return {1002}
    return {code} if _is_utf8(payload[2:]) else {1007}


#: Completes a message.
END = Sent(True, 0, 0, True, b"", 0)
PAYLOADS = (b"", b"{}", b'{"command":"ping"}', b"\xff", b"\xce\xba\xe1", b"\x03\xe8", b"\x03\xe8bye", b"\x00")
payloads = st.sampled_from(PAYLOADS) | st.binary(max_size=130) | st.sampled_from([b"x" * LIMIT, b"x" * (LIMIT + 1)])
usual = st.builds(
    Sent,
    st.booleans(),
    st.just(0),
    st.sampled_from([0, 1, 2, PING, PONG]),
    st.just(True),
    payloads,
    st.just(0),
)
odd = st.builds(
    Sent,
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
    st.integers(0, 15),
    st.sampled_from([True, True, True, False]),
    payloads,
    st.sampled_from([0, 0, 0, 1, 2]),
)


@pytest.mark.statement("F18", "F64", "CP-12", "CP-141")
def test_frames_are_answered_as_rfc_6455_asks(made):
    @examples(300)
    @given(st.lists(usual | odd, max_size=5), st.data())
    def each(frames: list[Sent], data: st.DataObject) -> None:
        kinds = [frame for frame in frames if frame.opcode < 3]
        if kinds and not kinds[-1].fin:
            frames = [*frames, END]
        client = made.client()
        say(client, data.draw(cut(st.just(b"".join(frame.encode() for frame in frames)))))
        expected = verdict(frames)
        if expected == {0}:
            assert CLOSE not in {frame.opcode for frame in client.frames()}
            assert client.is_served()
        else:
            assert close_code(client) in expected
        leave(made, client)

    each()


def close_code(client: Client) -> int:
    """The code of the close frame, behind whatever else came; 1005: it has none, 0: there is none."""
    frames = client.frames()
    if not frames or frames[-1].opcode != CLOSE:
        return 0
    return int.from_bytes(frames[-1].payload[:2]) or 1005


@pytest.mark.statement("F64", "F18")
@pytest.mark.parametrize("compressed", [False, True])
def test_bytes_that_are_almost_frames_do_no_harm(made, compressed):
    headers = {"Sec_WebSocket_Extensions": "permessage-deflate"} if compressed else {}
    frames = st.lists(usual | odd, min_size=1, max_size=4).map(lambda sent: b"".join(f.encode() for f in sent))

    @examples(200)
    @given(cut(almost(frames)))
    def each(pieces: list[bytes]) -> None:
        client = made.client(**headers)
        say(client, pieces)
        leave(made, client)

    each()
