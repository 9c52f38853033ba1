"""Every bound of a connection: message sizes, what may wait for a slow reader, and for how long."""

from __future__ import annotations

import json
import random
import socket
import struct
from itertools import pairwise
from typing import Any

import pytest

from tests.monitoring.support import logged, texts
from tests.transports.support import (
    BASE,
    CLOSE,
    EXTENDED,
    PING,
    PONG,
    Cable,
    Client,
    Frame,
    command,
    identifier,
    masked,
)

TOO_SLOW = {"type": "disconnect", "reason": "too_slow", "reconnect": True}


def padded(size: int) -> str:
    """A ping command of *size* bytes."""
    return '{"command":"ping"' + " " * (size - 18) + "}"


def in_pieces(text: str, *places: int) -> bytes:
    """One message in fragments, cut at *places*."""
    cuts = [0, *places, len(text)]
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    return b"".join(masked(piece, opcode=0 if n else 1, fin=n == len(pieces) - 1) for n, piece in enumerate(pieces))


# -- messages from clients


@pytest.mark.statement("CP-12")
@pytest.mark.parametrize("cuts", [(), (1,), (30_000, 60_000), (65_535,)])
def test_the_largest_message_is_processed(cable, cuts):
    client = cable().client()
    client.send(in_pieces(padded(65_536), *cuts))
    assert client.messages() == [{"type": "pong"}]


@pytest.mark.statement("CP-12", "CO-30")
@pytest.mark.parametrize("cuts", [(), (1,), (30_000, 60_000), (65_536,)])
def test_a_larger_message_closes_its_own_connection_only(cable, cuts):
    made = cable()
    client, other = made.client(), made.client()
    client.send(in_pieces(padded(65_537), *cuts))
    messages, code, _, _ = client.farewell()
    assert (messages, code) == ([], 1009)
    assert other.is_served()


@pytest.mark.parametrize("size", [99, 100, 101, 125, 126, 300])
@pytest.mark.parametrize("cuts", [(), (10,)])
def test_a_small_limit_holds_too(cable, size, cuts):
    client = cable(max_message_size=100).client()
    client.send(in_pieces(padded(size), *cuts))
    if size <= 100:
        assert client.messages() == [{"type": "pong"}]
    else:
        assert client.farewell()[1] == 1009


def test_a_limit_beyond_two_bytes_of_length_holds_too(cable):
    made = cable(max_message_size=100_000)
    client = made.client()
    client.send(masked(padded(100_000)))
    assert client.messages() == [{"type": "pong"}]
    client.send(masked(padded(100_001)))
    assert client.farewell()[1] == 1009


def test_a_huge_length_is_refused_before_any_of_it_arrives(cable):
    client = cable().client()
    client.send(struct.pack("!BBQ", 0x81, 0xFF, 1 << 40) + b"mask")
    assert client.farewell()[1] == 1009


def test_what_comes_behind_a_message_that_is_too_large_is_not_kept(cable):
    made = cable()
    client = made.client()
    client.send(struct.pack("!BBQ", 0x81, 0xFF, 1 << 40) + b"mask")
    for _ in range(20):
        client.send(b"x" * 50_000)
    connection = client.connection
    held = [connection.data, getattr(connection, "message_data", None), getattr(connection, "frame_data", None)]
    assert sum(len(piece) for data in held for piece in (data or ()) if isinstance(piece, bytes)) < 70_000
    assert client.farewell()[1] == 1009


def test_a_client_that_sends_too_much_is_closed_and_counted_once(cable):
    made = cable(max_commands_rate=1)
    client, other = made.client(), made.client()
    for _ in range(12):
        client.send(command("ping"))
    messages, code, _, _ = client.farewell()
    assert messages[-1] == {"type": "disconnect", "reason": "too_many_commands", "reconnect": True}
    assert code == 1008
    assert made.metrics.value("closed_connections_total", "too_many_commands") == 1
    assert made.metrics.value("closed_connections_total") == 1
    assert other.is_served()


# -- slow readers


def stalled(made: Cable, protocol: str = BASE) -> Client:
    """A subscriber that reads nothing, with a few kilobytes of buffer."""
    return made.subscriber(protocol=protocol, buffer=1)


def waiting(client: Client) -> int:
    """The bytes that wait for it in the server."""
    transport = client.connection.transport
    return int(transport.backlog) if transport is not None else 0


def fill(made: Cable, client: Client, size: int) -> int:
    """Publish until more than *size* bytes wait for *client*; answers how many publications it took."""
    for n in range(10_000):
        if waiting(client) > size:
            return n
        made.publish("chat", [n, "x" * 500])
        made.run()
    raise AssertionError("it reads")


def test_a_slow_reader_gets_everything_in_order(cable):
    made = cable(ws_max_pending_size=0, ping_interval=100)
    slow, quick = stalled(made), made.subscriber()
    chance = random.Random(1)
    received: list[Any] = []
    for n in range(600):
        made.publish("chat", [n, "x" * chance.randrange(2000)])
        if n % 10 == 5:
            slow.connection.session.send(b'{"message":["direct",%d]}' % n)
        if n % 3 == 0:
            made.run()
        if n % 40 == 20:
            slow.read(chance.randrange(1, 50_000))
    expected = []
    for n in range(600):
        expected += [n, ("direct", n)] if n % 10 == 5 else [n]
    received = [m["message"] for m in slow.messages()]
    assert [tuple(m) if m[0] == "direct" else m[0] for m in received] == expected
    assert [m[0] for m in quick.payloads()] == list(range(600))
    assert waiting(slow) == 0


def test_a_reader_that_has_caught_up_is_written_to_directly_again(cable):
    made = cable(ws_max_pending_size=0)
    slow = stalled(made)
    count = fill(made, slow, 50_000)
    assert [m[0] for m in slow.payloads()] == list(range(count))
    made.publish("chat", "now")
    made.run()
    assert waiting(slow) == 0
    assert slow.payloads() == ["now"]
    if made.direct:
        attachment = made.subscription(slow, "chat")
        assert attachment.group.slots[attachment.index] is slow.connection.transport.socket


@pytest.mark.statement("CP-135", "CO-31", "P7", "P9")
@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
def test_a_reader_that_stalls_beyond_the_limit_is_too_slow(cable, protocol):
    made = cable(ws_max_pending_size=100_000)
    slow, quick = stalled(made, protocol), made.subscriber()
    count = fill(made, slow, 100_000)
    assert made.metrics.value("disconnected_slow_clients_total") == 0
    made.publish("chat", "one more")
    made.publish("chat", "and another")
    with logged() as events:
        made.run()
    assert made.metrics.value("disconnected_slow_clients_total") == 1
    assert [(text, event["attrs"]["sid"]) for text, event in zip(texts(events), events, strict=True)] == [
        ("slow client", slow.connection.session.sid)
    ]
    made.wait(0.5)
    messages, code, text, _ = slow.farewell()
    assert (messages.pop(), code, text) == (TOO_SLOW, 1000, "")
    assert [m["message"][0] for m in messages] == list(range(len(messages)))
    assert len(messages) < count
    assert len(quick.payloads()) == count + 2


@pytest.mark.statement("CP-135")
def test_a_single_message_beyond_the_limit_makes_nobody_slow(cable):
    made = cable(ws_max_pending_size=10_000, ping_interval=100)
    clients = [stalled(made) for _ in range(3)]
    made.publish("chat", "x" * 300_000)
    made.run()
    assert all(waiting(client) > 200_000 for client in clients)
    assert [client.payloads() for client in clients] == [["x" * 300_000]] * 3
    assert made.metrics.value("disconnected_slow_clients_total") == 0


def test_nothing_more_is_queued_for_one_that_is_too_slow(cable):
    made = cable(ws_max_pending_size=50_000)
    slow = stalled(made)
    fill(made, slow, 50_000)
    made.publish("chat", "one more")
    made.run()
    before = waiting(slow)
    for _ in range(200):
        made.publish("chat", "x" * 1000)
        made.run()
    assert waiting(slow) <= before


def test_nothing_more_is_queued_for_one_that_is_closing(cable):
    made = cable(ws_max_pending_size=0)
    slow = stalled(made)
    fill(made, slow, 20_000)
    slow.connection.session.disconnect(1000, "Bye")
    before = waiting(slow)
    for _ in range(100):
        made.publish("chat", "x" * 1000)
        made.run()
    assert waiting(slow) <= before


def test_a_client_that_asks_without_reading_is_too_slow(cable):
    made = cable(ws_max_pending_size=50_000, ping_interval=100)
    client = made.client(buffer=1)
    for _ in range(200):
        client.sock.send(masked(b"x" * 125, opcode=PING) * 50)
        made.run()
        if made.metrics.value("disconnected_slow_clients_total"):
            break
    assert made.metrics.value("disconnected_slow_clients_total") == 1
    *pongs, disconnect, close = client.frames()
    assert json.loads(disconnect.payload) == TOO_SLOW
    assert {f.opcode for f in pongs} == {PONG}
    assert close == Frame(CLOSE, b"\x03\xe8", False)


@pytest.mark.parametrize("subscribed", [True, False])
def test_a_reader_that_takes_nothing_for_the_write_timeout_is_dropped(cable, subscribed):
    made = cable(ws_max_pending_size=0, ws_write_timeout=2, ping_interval=100)
    slow, other = stalled(made), made.client()
    if subscribed:
        fill(made, slow, 100_000)
    else:
        for n in range(300):
            slow.connection.session.send(b'{"message":["%b",%d]}' % (b"x" * 500, n))
    made.wait(1.9)
    assert slow.connection.transport is not None
    made.wait(2.2)
    assert slow.connection.transport is None
    assert made.metrics.value("closed_connections_total", "write_timeout") == 1
    assert other.is_served()


def test_a_reader_that_takes_a_little_now_and_then_stays(cable):
    made = cable(ws_max_pending_size=0, ws_write_timeout=2, ping_interval=100)
    slow = stalled(made)
    count = fill(made, slow, 1_000_000)
    for _ in range(10):
        made.wait(1.5, 0.5)
        slow.read(80_000)
    assert [m[0] for m in slow.payloads()] == list(range(count))


def test_a_stalled_reader_that_was_told_to_close_is_dropped(cable):
    made = cable(ws_max_pending_size=0, ping_interval=100)
    slow = stalled(made)
    fill(made, slow, 100_000)
    slow.connection.session.disconnect(1000, "Bye")
    made.wait(4.5, 0.5)
    assert slow.connection.transport is None


def test_a_client_that_closed_but_reads_nothing_is_dropped(cable):
    made = cable(ws_max_pending_size=0, ping_interval=100)
    slow = stalled(made)
    fill(made, slow, 100_000)
    slow.send(masked(b"\x03\xe8", opcode=CLOSE))
    made.wait(15, 0.5)
    assert slow.connection.transport is None


# -- replay


def history(name: str, epoch: str) -> bytes:
    """Subscribe with everything that is stored."""
    return command(
        "subscribe", identifier=identifier(name), history={"streams": {name: {"epoch": epoch, "offset": 0}}}
    )


def test_a_long_history_is_sent_at_the_pace_of_its_reader(cable):
    made = cable(history_limit=1000, ws_max_pending_size=200_000, ping_interval=100)
    for n in range(800):
        epoch = made.publish("chat", [n, "x" * 2000]).epoch
    client = made.client(buffer=1)
    client.send(history("chat", epoch))
    most = 0
    for n in range(800, 1000):
        made.publish("chat", [n, "live"])
        most = max(most, waiting(client))
        client.read(10_000)
    messages = client.messages()
    assert most < 180_000
    assert messages.pop(0)["type"] == "confirm_subscription"
    confirm = [n for n, m in enumerate(messages) if m.get("type") == "confirm_history"]
    assert len(confirm) == 1
    del messages[confirm[0]]
    assert [m["message"][0] for m in messages] == list(range(1000))
    assert made.metrics.value("disconnected_slow_clients_total") == 0


def test_a_client_that_leaves_in_the_middle_of_its_history_leaves_nothing_behind(cable):
    made = cable(history_limit=1000)
    for n in range(800):
        epoch = made.publish("chat", [n, "x" * 2000]).epoch
    client = made.client(buffer=1)
    client.send(history("chat", epoch))
    assert waiting(client) > 50_000
    client.sock.close()
    made.run()
    assert len(made.node.sessions) == 0
    assert not made.node._running


# -- crowds


def test_four_hundred_come_and_go_while_everybody_is_served(cable):
    made = cable(ping_interval=1)
    chance = random.Random(3)
    clients = [made.subscriber() for _ in range(400)]
    joined = dict.fromkeys(clients, 0)
    gone = []
    for n in range(40):
        made.publish("chat", n)
        made.reactor.turn()
        for _ in range(10):
            client = clients.pop(chance.randrange(len(clients)))
            gone.append(client)
            del joined[client]
            how = chance.randrange(3)
            if how == 0:
                client.sock.close()
            elif how == 1:
                client.sock.send(masked(b"\x03\xe8", opcode=CLOSE))
            else:
                client.connection.transport.abortConnection()
            if chance.randrange(2):
                made.reactor.turn()
        for _ in range(10):
            client = made.subscriber()
            clients.append(client)
            joined[client] = n + 1
        made.publish("chat", f"{n}!")
        made.reactor.advance(0.02)
    for client in gone:
        client.read()
    made.run()
    for client, first in joined.items():
        expected = [each for n in range(first, 40) for each in (n, f"{n}!")]
        if first:
            expected.insert(0, f"{first - 1}!")
        assert client.payloads() == expected
    assert len(made.node.sessions) == 400


def test_peers_that_reset_in_the_middle_of_a_fan_out_disturb_nobody(cable):
    made = cable()
    clients = [made.subscriber() for _ in range(60)]
    for n in range(6):
        made.publish("chat", n)
        for client in clients[n::10]:
            client.sock.close()  # unread data makes it a reset
        made.reactor.turn()
    made.publish("chat", "end")
    made.run()
    for n, client in enumerate(clients):
        if n % 10 >= 6:
            assert client.payloads() == [*range(6), "end"]
    assert len(made.node.sessions) == 24


def test_a_socket_is_not_written_to_after_it_was_closed(cable):
    made = cable()
    clients = [made.subscriber() for _ in range(5)]
    made.publish("chat", 1)
    for client in clients[:3]:
        client.connection.transport.abortConnection()
    made.publish("chat", 2)
    made.run()
    reused = [socket.socket() for _ in range(5)]
    made.publish("chat", 3)
    made.run()
    assert [c.payloads() for c in clients[3:]] == [[1, 2, 3]] * 2
    for each in reused:
        each.close()
