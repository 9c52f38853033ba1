"""permessage-deflate in both directions."""

from __future__ import annotations

import json
import random

import pytest

from tests.transports.support import (
    EXTENDED,
    Client,
    Frame,
    command,
    deflated,
    identifier,
    inflate,
    masked,
    squeeze,
)

OFFER = {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
PING_COMMAND = '{"command":"ping"}'


@pytest.mark.statement("CP-11")
def test_compression_is_agreed_on_where_it_is_wanted_by_both(cable):
    on, off = cable(enable_ws_compression=True), cable()
    assert on.client(**OFFER).answer.headers["sec-websocket-extensions"] == ANSWER
    assert "sec-websocket-extensions" not in on.client().answer.headers
    assert "sec-websocket-extensions" not in off.client(**OFFER).answer.headers


def test_everything_the_server_says_is_compressed_then(cable):
    made = cable(enable_ws_compression=True, ping_interval=1)
    client = made.client(**OFFER)
    client.subscribe(identifier())
    made.publish("chat", "x" * 10_000)
    made.wait(2)
    assert [m.get("message", m.get("type")) for m in client.messages()] == ["x" * 10_000]
    assert client.compressed[0]  # the welcome
    assert client.compressed.count(True) >= 3


def test_messages_are_small_on_the_wire(cable):
    made = cable(enable_ws_compression=True)
    client = made.client(**OFFER)
    client.subscribe(identifier())
    made.publish("chat", "x" * 100_000)
    client.read()
    assert len(client.received) < 1000


def test_a_stream_may_have_plain_and_compressed_members(cable):
    made = cable(enable_ws_compression=True)
    compressed = [made.client(**OFFER) for _ in range(3)]
    plain = [made.client() for _ in range(3)]
    for client in compressed + plain:
        client.subscribe(identifier())
    for n in range(5):
        made.publish("chat", n)
    for client in compressed + plain:
        client.compressed.clear()
        assert client.payloads() == list(range(5))
        assert set(client.compressed) == {client in compressed}


@pytest.mark.parametrize("data", [deflated(PING_COMMAND), masked(PING_COMMAND)])
def test_a_client_may_compress_or_not(cable, data):
    client = cable(enable_ws_compression=True).client(**OFFER)
    client.send(data * 3)
    client.dribble(data)
    assert client.messages() == [{"type": "pong"}] * 4


def test_a_compressed_message_may_come_in_fragments(cable):
    client = cable(enable_ws_compression=True).client(**OFFER)
    data = squeeze(PING_COMMAND.encode())
    client.send(masked(data[:7], rsv=4, fin=False) + masked(data[7:], opcode=0) + masked(PING_COMMAND))
    assert client.messages() == [{"type": "pong"}] * 2


def test_no_context_is_kept_between_messages_of_a_client(cable):
    made = cable(enable_ws_compression=True)
    client = made.client(EXTENDED, **OFFER)
    for n in range(3):
        text = command_text(f"stream-{n}")
        client.send(deflated(text))
        assert client.messages()[0]["type"] == "confirm_subscription"


def command_text(stream: str) -> str:
    return json.dumps({"command": "subscribe", "identifier": identifier(stream)})


@pytest.mark.statement("CP-12")
def test_the_limit_holds_for_what_a_message_becomes(cable):
    made = cable(enable_ws_compression=True)
    client, other = made.client(**OFFER), made.client(**OFFER)
    client.send(deflated(PING_COMMAND[:-1] + " " * (65_536 - 18) + "}"))
    assert client.messages() == [{"type": "pong"}]
    client.send(deflated(PING_COMMAND[:-1] + " " * (65_537 - 18) + "}"))
    assert closed(client) == 1009
    assert other.is_served()


@pytest.mark.parametrize("cut", [0, 20, 4000])
def test_a_decompression_bomb_is_refused_without_being_inflated(cable, cut):
    client = cable(enable_ws_compression=True).client(**OFFER)
    bomb = squeeze(b" " * 50_000_000)
    if cut:
        client.send(masked(bomb[:cut], rsv=4, fin=False) + masked(bomb[cut:], opcode=0))
    else:
        client.send(masked(bomb, rsv=4))
    assert closed(client) == 1009


def test_what_cannot_be_inflated_closes_the_connection(cable):
    client = cable(enable_ws_compression=True).client(**OFFER)
    client.send(masked(b"\xff" * 20, rsv=4))
    assert closed(client) == 1007


def test_a_compressed_control_frame_is_a_violation(cable):
    client = cable(enable_ws_compression=True).client(**OFFER)
    client.send(masked(b"", opcode=9, rsv=4))
    assert closed(client) == 1002


@pytest.mark.statement("CP-135")
def test_a_slow_reader_of_compressed_messages_is_told_too(cable):
    made = cable(enable_ws_compression=True, ws_max_pending_size=50_000, ping_interval=100)
    client = made.client(buffer=1, **OFFER)
    client.send(command("subscribe", identifier=identifier()))
    chance = random.Random(5)
    for _ in range(200):
        made.publish("chat", chance.randbytes(3000).hex())
        made.run()
    assert made.metrics.value("disconnected_slow_clients_total") == 1
    *messages, last, close = client.frames()
    assert all(inflate(f.payload) for f in messages)
    assert last == Frame(1, b'{"type":"disconnect","reason":"too_slow","reconnect":true}', False)
    assert close == Frame(8, b"\x03\xe8", False)


def closed(client: Client) -> int:
    """The close code it was sent."""
    frames = client.frames()
    assert frames[-1].opcode == 8
    return int.from_bytes(frames[-1].payload[:2])
