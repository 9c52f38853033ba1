"""An open connection: how bytes become commands, how it closes, and in which order it is written to."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from anycable_tx.cable.messages import RemoteCommand
from tests.transports.support import (
    BASE,
    CLOSE,
    EXTENDED,
    PING,
    PONG,
    Cable,
    Frame,
    command,
    identifier,
    masked,
    upgrade_request,
)

PING_COMMAND = '{"command":"ping"}'
PONG_MESSAGE = {"type": "pong"}


def padded(size: int) -> str:
    """A ping command of *size* bytes."""
    return PING_COMMAND[:-1] + " " * (size - len(PING_COMMAND)) + "}"


class Slow:
    """Controllers that answer to a subscription when told to."""

    keeps_env = False

    def __init__(self, controllers: Any) -> None:
        self._controllers = controllers
        self.waiting: list[Deferred[None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controllers, name)

    async def subscribe(self, session: Any, name: str) -> Any:
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return await self._controllers.subscribe(session, name)


def slow_controllers(made: Cable) -> Slow:
    made.node.controllers = slow = Slow(made.node.controllers)  # type: ignore[assignment]
    return slow


# -- reading


@pytest.mark.parametrize("size", [18, 125, 126, 127, 1000, 65535, 65536])
def test_every_encoding_of_a_length_is_read(cable, size):
    client = cable().client()
    client.send(masked(padded(size)))
    assert client.messages() == [PONG_MESSAGE]


@pytest.mark.parametrize("size", [18, 125, 126, 300])
def test_a_frame_may_arrive_byte_by_byte(cable, size):
    client = cable().client()
    client.dribble(masked(padded(size)) * 2)
    assert client.messages() == [PONG_MESSAGE] * 2


def test_several_frames_may_arrive_in_one_read(cable):
    client = cable().client()
    client.send(b"".join(masked(padded(size)) for size in (18, 126, 18, 2000, 125)))
    assert client.messages() == [PONG_MESSAGE] * 5


@pytest.mark.statement("CP-13")
def test_a_command_in_a_binary_frame_is_executed(cable):
    client = cable().client()
    client.send(masked(PING_COMMAND, opcode=2))
    assert client.messages() == [PONG_MESSAGE]


def test_a_message_may_come_in_fragments_with_control_frames_between(cable):
    client = cable().client()
    pieces = [PING_COMMAND[:5], "", PING_COMMAND[5:9], PING_COMMAND[9:]]
    client.send(masked(pieces[0], fin=False))
    client.send(masked(b"are you there", opcode=PING))
    client.send(masked(pieces[1], opcode=0, fin=False) + masked(pieces[2], opcode=0, fin=False))
    client.send(masked(pieces[3], opcode=0) + masked(PING_COMMAND))
    assert client.frames() == [
        Frame(PONG, b"are you there", False),
        Frame(1, b'{"type":"pong"}', False),
        Frame(1, b'{"type":"pong"}', False),
    ]


def test_the_usual_frames_go_on_after_unusual_ones(cable):
    client = cable().client()
    client.send(masked(PING_COMMAND[:3], fin=False))
    client.send(masked(PING_COMMAND[3:], opcode=0) + masked(PING_COMMAND) + masked(PING_COMMAND, opcode=2)[:-1])
    client.send(masked(PING_COMMAND, opcode=2)[-1:] + masked(PING_COMMAND)[:7])
    client.send(masked(PING_COMMAND)[7:])
    assert client.messages() == [PONG_MESSAGE] * 4
    assert client.connection.data == b""


def test_a_ping_is_answered_and_an_unasked_pong_is_ignored(cable):
    client = cable().client()
    client.send(masked(b"x" * 125, opcode=PING) + masked(b"y", opcode=PONG) + masked(b"", opcode=PING))
    assert client.frames() == [Frame(PONG, b"x" * 125, False), Frame(PONG, b"", False)]


@pytest.mark.statement("CP-41")
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '"x"', '{"command":1}', '{"command":"dance"}', "{}", "null", '{"command":"ping"}x']
)
def test_what_is_no_command_is_ignored_and_the_next_one_is_served(cable, text):
    client = cable().client()
    client.send(masked(text) + masked(PING_COMMAND))
    assert client.messages() == [PONG_MESSAGE]
    client.send(masked(text))
    assert client.messages() == []
    client.send(masked(b"\x0f\xa0", opcode=CLOSE))
    assert client.farewell() == ([], 4000, "", True)


def test_frames_are_counted(cable):
    made = cable()
    client = made.client()
    client.send(masked("no json") + masked(PING_COMMAND))
    assert made.metrics.value("data_rcvd_total") == 7 + len(PING_COMMAND)
    assert made.metrics.value("failed_client_msg_total") == 1
    assert made.metrics.value("client_msg_total") == 1
    assert made.metrics.value("server_msg_total") == 2  # the welcome and the pong


@pytest.mark.statement("CP-28")
def test_commands_glued_to_the_request_are_executed_after_the_welcome(cable):
    client = cable().connect()
    client.send(upgrade_request() + command("subscribe", identifier=identifier()) + masked(PING_COMMAND)[:4])
    assert client.head().status == 101
    welcome, confirmation = client.messages()
    assert welcome["type"] == "welcome"
    assert confirmation == {"type": "confirm_subscription", "identifier": identifier()}
    client.send(masked(PING_COMMAND)[4:])
    assert client.messages() == [PONG_MESSAGE]


def test_the_request_may_arrive_byte_by_byte_with_a_command_behind_it(cable):
    client = cable().connect()
    client.dribble(upgrade_request(protocol=BASE) + masked(PING_COMMAND))
    assert client.head().status == 101
    assert [m["type"] for m in client.messages()] == ["welcome", "pong"]


@pytest.mark.parametrize("path", ["direct", "plain"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_however_the_bytes_are_cut_the_answers_are_the_same(path, data):
    made = Cable(path)
    sizes = data.draw(st.lists(st.sampled_from([18, 125, 126, 200, 700]), min_size=1, max_size=6))
    stream = b""
    for size in sizes:
        text = padded(size)
        cut = data.draw(st.integers(0, size))
        stream += data.draw(
            st.sampled_from(
                [masked(text), masked(text, opcode=2), masked(text[:cut], fin=False) + masked(text[cut:], opcode=0)]
            )
        )
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    client = made.client()
    for start, end in zip([0, *places], [*places, len(stream)], strict=True):
        client.send(stream[start:end])
    assert client.messages() == [PONG_MESSAGE] * len(sizes)
    made.close()


@pytest.mark.parametrize("path", ["direct", "plain"])
def test_no_bytes_make_an_error(path):
    made = Cable(path, enable_ws_compression=True)
    chance = random.Random(7)
    for n in range(150):
        headers = {"Sec_WebSocket_Extensions": "permessage-deflate"} if n % 2 else {}
        client = made.client(**headers)
        good = masked(padded(chance.randrange(18, 200)), opcode=chance.choice([1, 1, 2, 9]))
        bad = bytearray(good + masked(chance.randbytes(chance.randrange(200)), opcode=chance.randrange(16)))
        for _ in range(chance.randrange(4)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        client.send(bytes(bad))
        client.read()
        client.sock.close()
        made.run()
    made.close()


# -- what a client must not do


@pytest.mark.statement("CP-141")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\x81\x0e[1,2,3,4,5,6] ", 1002, id="unmasked"),
        pytest.param(masked("{}", rsv=4), 1002, id="compressed without agreement"),
        pytest.param(masked("{}", rsv=1), 1002, id="reserved bit"),
        pytest.param(masked("{}", opcode=3), 1002, id="reserved opcode"),
        pytest.param(masked("{}", opcode=11), 1002, id="reserved control opcode"),
        pytest.param(masked("{}", opcode=0), 1002, id="continuation of nothing"),
        pytest.param(masked("{", fin=False) + masked("}"), 1002, id="message inside a message"),
        pytest.param(masked("", opcode=PING, fin=False), 1002, id="fragmented ping"),
        pytest.param(masked("x" * 126, opcode=PING), 1002, id="long ping"),
        pytest.param(b"\x81\xfe\x00\x02\0\0\0\0{}", 1002, id="length longer than needed"),
        pytest.param(b"\x81\xff\0\0\0\0\0\0\0\x02\0\0\0\0{}", 1002, id="length much longer than needed"),
        pytest.param(masked(b"\xff{}"), 1007, id="not UTF-8"),
        pytest.param(masked(b'{"command":"ping","x":"\xc3'), 1007, id="half a character"),
        pytest.param(masked(b"{\xff", fin=False) + masked(b"}", opcode=0), 1007, id="not UTF-8, in fragments"),
        pytest.param(masked(b"\x03\xe8\xff", opcode=CLOSE), 1007, id="close text not UTF-8"),
        pytest.param(masked(b"\x03", opcode=CLOSE), 1002, id="half a close code"),
        pytest.param(masked(b"\x03\xed", opcode=CLOSE), 1002, id="close code 1005"),
        pytest.param(masked(b"\x03\xee", opcode=CLOSE), 1002, id="close code 1006"),
        pytest.param(masked(b"\x03\xf7", opcode=CLOSE), 1002, id="close code 1015"),
        pytest.param(masked(b"\x00\x01", opcode=CLOSE), 1002, id="close code 1"),
    ],
)
def test_a_violation_is_answered_with_its_close_code(cable, data, code):
    client = cable().client()
    client.send(data)
    messages, found, _, _ = client.farewell()
    assert (messages, found) == ([], code)


def test_commands_behind_a_violation_are_not_executed(cable):
    made = cable()
    client = made.client()
    client.send(b"\x81\x00" + command("subscribe", identifier=identifier()) + masked(PING_COMMAND))
    assert client.farewell()[:2] == ([], 1002)
    assert client.connection.session is None or not client.connection.session.subscriptions


def test_binary_that_is_not_utf_8_is_only_ignored(cable):
    client = cable().client()
    client.send(masked(b"\xff\xfe", opcode=2))
    assert client.is_served()


def test_garbage_behind_a_close_changes_nothing(cable):
    client = cable().client()
    client.send(masked(b"\x03\xe8", opcode=CLOSE) + b"\x00garbage" * 1000)
    assert client.farewell() == ([], 1000, "", True)


# -- closing


@pytest.mark.statement("CP-140")
@pytest.mark.parametrize("body", [b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0", b"\x13\x87" + b"x" * 123])
def test_a_clients_close_is_answered_with_its_own_code_and_the_connection_ends(cable, body):
    made = cable()
    client = made.client()
    client.send(masked(body, opcode=CLOSE))
    assert client.frames() == [Frame(CLOSE, body, False)]
    assert client.ended
    assert len(made.node.sessions) == 0


@pytest.mark.statement("CP-140")
def test_what_a_closed_client_held_begins_to_expire(cable):
    made = cable(presence_ttl=2, sessions_ttl=2)
    watcher = made.subscriber(protocol=EXTENDED)
    client = made.subscriber(protocol=EXTENDED)
    client.send(command("join", identifier=identifier(), presence={"id": "7"}))
    client.send(masked(b"\x03\xe9", opcode=CLOSE))
    assert [m["message"]["type"] for m in watcher.messages()] == ["join"]
    made.wait(1)
    assert watcher.messages() == []
    made.wait(4, 0.5)
    assert [m["message"]["type"] for m in watcher.messages()] == ["leave"]
    late = made.client(EXTENDED, path=f"/cable?sid={client.sid}")
    assert "restored" not in late.welcome


@pytest.mark.statement("CP-91")
def test_the_header_that_names_the_session_to_resume_wins_over_the_parameter(cable):
    made = cable()
    first, second = made.client(EXTENDED), made.client(EXTENDED)
    resumed = made.client(EXTENDED, path=f"/cable?sid={first.sid}", X_ANYCABLE_RESTORE_SID=second.sid)
    assert resumed.welcome["restored"] is True
    assert (first.is_served(), second.farewell()[1]) == (True, 1000)
    assert made.client(EXTENDED, path="/cable", x_anycable_restore_sid=first.sid).welcome["restored"] is True


def test_a_client_that_answers_our_close_is_let_go_without_a_reset(cable, monkeypatch):
    made = cable()
    client = made.client()
    ended = []
    monkeypatch.setattr(type(client.connection.transport), "abortConnection", ended.append)
    client.connection.session.disconnect(1000, "Bye")
    assert client.farewell() == ([], 1000, "Bye", False)
    client.send(masked(b"\x03\xe8", opcode=CLOSE))
    client.read()
    assert client.ended
    assert ended == []


def test_a_client_that_does_not_answer_our_close_is_dropped_after_a_second(cable):
    made = cable()
    client = made.client()
    client.connection.session.disconnect(1000, "Bye")
    made.wait(0.9)
    assert client.farewell() == ([], 1000, "Bye", False)
    made.wait(0.2)
    client.read()
    assert client.ended


def test_a_client_that_says_more_before_it_answers_our_close_is_read_but_not_served(cable):
    made = cable()
    client = made.client()
    client.connection.session.disconnect(1000, "Bye")
    client.send(command("subscribe", identifier=identifier()) + masked(PING_COMMAND) + masked(b"x" * 3, opcode=PING))
    client.send(masked(b"\x03\xe8", opcode=CLOSE))
    frames = client.frames()
    assert [f.opcode for f in frames if f.opcode != PONG] == [CLOSE]
    assert client.ended


@pytest.mark.statement("CP-141")
def test_a_text_too_long_for_a_close_frame_is_cut(cable):
    client = cable().client()
    client.connection.session.disconnect(1011, "x" * 300)
    assert client.farewell() == ([], 1011, "x" * 123, False)


@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
def test_nothing_follows_our_close_frame(cable, protocol):
    made = cable()
    client, other = made.subscriber(protocol=protocol), made.subscriber()
    made.publish("chat", 1)
    client.connection.session.disconnect(1000, "Bye")
    client.connection.session.disconnect(1000, "Again")
    made.publish("chat", 2)
    made.wait(0.5)
    made.publish("chat", 3)
    client.connection.session.send(b"{}")
    [last], code, text, ended = client.farewell()
    assert (last["message"], code, text, ended) == (1, 1000, "Bye", False)
    assert other.payloads() == [1, 2, 3]


def test_nothing_follows_the_close_frame_of_a_client_that_stays(cable):
    made = cable()
    client = made.subscriber()
    client.send(masked("", opcode=3))  # a violation
    made.publish("chat", 1)
    made.wait(0.5)
    assert client.farewell()[:2] == ([], 1002)


@pytest.mark.statement("CP-138")
def test_what_was_sent_before_a_close_arrives_before_it(cable):
    made = cable()
    clients = [made.subscriber() for _ in range(3)]
    made.publish("chat", 1)
    clients[0].connection.session.disconnect(1001, "Server restart", "server_restart", reconnect=True)
    clients[1].send(masked(b"\x03\xe8", opcode=CLOSE))
    clients[2].send(masked("", opcode=3))
    messages, code, text, _ = clients[0].farewell()
    assert [m.get("message") for m in messages] == [1, None]
    assert messages[1] == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
    assert (code, text) == (1001, "Server restart")
    for client, code in ((clients[1], 1000), (clients[2], 1002)):
        messages, found, _, _ = client.farewell()
        assert ([m["message"] for m in messages], found) == ([1], code)


@pytest.mark.statement("CP-138", "CP-137")
def test_a_slow_reader_is_given_all_of_it_before_the_close(cable):
    made = cable(ws_max_pending_size=0)
    client = made.subscriber(buffer=1)
    for n in range(100):
        made.publish("chat", f"{n:02}" + "x" * 3000)
        made.run()
    client.connection.session.disconnect(1001, "Server restart", "server_restart", reconnect=True)
    for _ in range(6):
        made.wait(1, 0.5)
        assert not client.ended
        client.read(45_000)
    frames = client.frames()
    found = [json.loads(f.payload) for f in frames[:-1]]
    assert [int(m["message"][:2]) for m in found if "message" in m] == list(range(100))
    assert found[-1] == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
    assert frames[-1] == Frame(CLOSE, b"\x03\xe9Server restart", False)


def test_a_client_that_vanishes_leaves_at_once(cable):
    made = cable()
    client = made.subscriber()
    client.sock.close()
    made.run()
    assert len(made.node.sessions) == 0
    assert made.factory.connections == 0


@pytest.mark.statement("CP-139")
def test_a_remote_disconnect_closes_all_of_them_with_its_flag(cable):
    made = cable()
    clients = [made.subscriber() for _ in range(2)]
    for client in clients:
        made.node.sessions.remove(client.connection.session)
        client.connection.session.identifiers = "me"
        made.node.sessions.add(client.connection.session)
    other = made.subscriber()
    made.node.execute(RemoteCommand("disconnect", {"identifier": "me", "reconnect": True}))
    for client in clients:
        frame = {"type": "disconnect", "reason": "remote", "reconnect": True}
        assert client.farewell() == ([frame], 1000, "Closed remotely", False)
    assert other.is_served()


# -- order


@pytest.mark.statement("CP-136")
def test_a_ping_never_overtakes_what_was_sent_before_it(cable):
    made = cable(ping_interval=1)
    clients = [made.subscriber() for _ in range(20)]
    found: list[list[Any]] = [[] for _ in clients]
    for n in range(60):
        made.reactor.rightNow += 0.05
        made.publish("chat", n)
        for client in clients:  # a ping in the turn of the publication, before the flush
            client.connection.ping()
            client.connection.session.send(b'{"mark":%d}' % n)
        made.run()
    for client, messages in zip(clients, found, strict=True):
        messages += client.messages(pings=True)
        kinds = ["ping" if m.get("type") else m.get("message", f"mark {m.get('mark')}") for m in messages]
        expected = [kind for n in range(60) for kind in (n, "ping", f"mark {n}")]
        assert [k for k in kinds if k != "ping"] == [k for k in expected if k != "ping"]
        for n in range(60):
            assert "ping" in kinds[kinds.index(n) : kinds.index(f"mark {n}")]


def test_an_answer_comes_behind_what_was_sent_before_it(cable):
    made = cable()
    client = made.subscriber()
    made.publish("chat", 1)
    client.sock.send(masked(PING_COMMAND))
    client.connection.transport.doRead() if made.direct else client.connection.transport.real.doRead()
    made.publish("chat", 2)
    assert [m.get("message", "pong") for m in client.messages()] == [1, "pong", 2]


def test_a_subscription_made_or_ended_in_the_middle_of_a_flush_gets_its_own_part(cable):
    made = cable()
    clients = [made.subscriber() for _ in range(300)]
    made.publish("chat", 1)
    made.reactor.turn()
    late = made.client()
    late.send(command("subscribe", identifier=identifier()))
    leaver = clients.pop()
    leaver.send(command("unsubscribe", identifier=identifier()))
    made.publish("chat", 2)
    confirmation, broadcast = late.messages()
    assert (confirmation["type"], broadcast["message"]) == ("confirm_subscription", 2)
    assert all(client.payloads() == [1, 2] for client in clients)
    assert leaver.payloads() in ([], [1])


@pytest.mark.statement("CP-55")
def test_two_subscriptions_to_one_stream_get_a_frame_each_in_order(cable):
    made = cable()
    client = made.subscriber()
    client.subscribe(identifier(more=1))
    for n in range(10):
        made.publish("chat", n)
    found = client.messages()
    for name in (identifier(), identifier(more=1)):
        assert [m["message"] for m in found if m["identifier"] == name] == list(range(10))


def test_an_excluded_sender_keeps_its_place_whatever_happens_to_its_socket(cable):
    made = cable(ws_max_pending_size=0)
    sender = made.subscriber(buffer=1)
    sender.subscribe(identifier(more=1))
    other = made.subscriber()
    for n in range(100):
        made.publish("chat", [n, "x" * 200])
        made.publish("chat", [n, "not you"], exclude_socket=sender.sid)
        if n % 7 == 0:
            made.run()
    found = sender.messages()
    for name in (identifier(), identifier(more=1)):
        assert [m["message"][0] for m in found if m["identifier"] == name] == list(range(100))
    assert not any("not you" in m["message"] for m in found)
    assert len(other.payloads()) == 200


# -- pings, pongs and parameters


@pytest.mark.statement("CP-16")
@pytest.mark.parametrize(
    ("pi", "interval"), [("1", 1), ("2", 2), ("x", 3), ("", 3), ("1.5", 3), ("1&pi=2", 2), ("9" * 400, 3)]
)
def test_the_client_chooses_its_ping_interval(cable, pi, interval):
    made = cable(ping_interval=3)
    client = made.client(path=f"/cable?pi={pi}")
    made.wait(interval * 1.6)
    assert client.messages(pings=True)
    made.wait(interval * 10)
    assert len(client.messages(pings=True)) in (9, 10, 11)


@pytest.mark.statement("CP-16")
@pytest.mark.parametrize("pi", ["0", "-1", "9" * 30])
def test_pings_can_be_turned_off(cable, pi):
    made = cable(ping_interval=1, pong_timeout=1)
    client = made.client(EXTENDED, path=f"/cable?pi={pi}")
    made.wait(10)
    assert client.messages(pings=True) == []
    assert client.is_served()


@pytest.mark.statement("CP-17", "CP-130")
@pytest.mark.parametrize(("ptp", "digits"), [("s", 10), ("ms", 13), ("ns", 19), ("us", 10), ("", 10)])
def test_the_client_chooses_the_precision_of_pings(cable, ptp, digits):
    made = cable(ping_interval=1)
    client = made.client(path=f"/cable?ptp={ptp}")
    made.wait(5)
    stamps = [m["message"] for m in client.messages(pings=True)]
    assert len(stamps) >= 3
    assert all(type(stamp) is int and len(str(stamp)) == digits for stamp in stamps)
    assert stamps == sorted(stamps)


@pytest.mark.statement("CP-17")
def test_the_server_sets_the_precision_for_those_who_do_not_choose(cable):
    made = cable(ping_interval=1, ping_timestamp_precision="ms")
    client, own = made.client(), made.client(path="/cable?ptp=s")
    made.wait(2)
    assert len(str(client.messages(pings=True)[0]["message"])) == 13
    assert len(str(own.messages(pings=True)[0]["message"])) == 10


@pytest.mark.statement("CP-130")
def test_the_first_ping_comes_in_time_and_then_one_each_interval(cable):
    made = cable(ping_interval=2)
    clients = [made.client() for _ in range(20)]
    moments: list[list[float]] = [[] for _ in clients]
    start = made.reactor.seconds()
    for _ in range(160):
        made.wait(0.05)
        for client, seen in zip(clients, moments, strict=True):
            seen += [made.reactor.seconds() - start] * len(client.messages(pings=True))
    for seen in moments:
        assert 1 - 0.1 <= seen[0] <= 3 + 0.1
        assert all(1.9 <= b - a <= 2.1 for a, b in pairwise(seen))


NO_PONG = {"type": "disconnect", "reason": "no_pong", "reconnect": True}


@pytest.mark.statement("CP-131", "CO-47")
def test_a_silent_extended_client_is_cut_in_time(cable):
    made = cable(ping_interval=1, pong_timeout=2)
    client = made.client(EXTENDED)
    while not (pings := client.messages(pings=True)):
        made.wait(0.05)
    made.wait(1.9)
    pings += client.messages(pings=True)
    assert {m["type"] for m in pings} == {"ping"}
    made.wait(0.6)
    *pings, disconnect = client.farewell()[0]
    assert disconnect == NO_PONG
    assert made.metrics.value("closed_connections_total", "no_pong") == 1


@pytest.mark.statement("CP-131")
@pytest.mark.parametrize("sign", [command("pong"), command("message", identifier="?", data="{}"), masked("what?")])
def test_any_command_keeps_an_extended_client_alive(cable, sign):
    made = cable(ping_interval=1, pong_timeout=2)
    client = made.client(EXTENDED)
    for _ in range(10):
        made.wait(1.5)
        client.send(sign)
    assert client.is_served()


@pytest.mark.statement("CP-132", "CO-47")
def test_a_base_client_is_never_cut_for_missing_pongs(cable):
    made = cable(ping_interval=1, pong_timeout=2)
    client = made.client(BASE)
    made.wait(20)
    assert len(client.messages(pings=True)) >= 18
    assert client.is_served()


@pytest.mark.statement("CP-133")
def test_pongs_count_while_a_command_waits(cable):
    made = cable(ping_interval=1, pong_timeout=2)
    slow = slow_controllers(made)
    client = made.client(EXTENDED)
    client.send(command("subscribe", identifier=identifier()))
    for _ in range(10):
        made.wait(1)
        client.send(command("pong"))
    assert client.messages() == []
    slow.waiting[0].callback(None)
    assert client.messages() == [{"type": "confirm_subscription", "identifier": identifier()}]


@pytest.mark.statement("CP-134", "CP-132")
@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
def test_native_pings_are_sent_behind_the_others_and_silence_is_cut_however_old_the_client(cable, protocol):
    made = cable(ping_interval=1, pong_timeout=2, enable_native_pings=True)
    client = made.client(protocol)
    answered = 0
    for _ in range(100):
        made.wait(0.5, 0.25)
        kinds = [f.opcode for f in client.frames()]
        assert kinds in ([], [1, PING])
        answered += len(kinds)
        if kinds:
            client.send(masked(b"", opcode=PONG))
    assert answered > 80
    made.wait(1.2)
    assert [f.opcode for f in client.frames()][:2] == [1, PING]
    made.wait(2.5)
    *_, disconnect, close = client.frames()
    assert json.loads(disconnect.payload) == NO_PONG
    assert close == Frame(CLOSE, b"\x03\xe8No Pong", False)


# -- reading stops when too much waits


@pytest.mark.statement("CP-133")
def test_a_client_that_is_not_read_is_not_cut_for_pongs_nobody_reads_and_later_it_is(cable):
    made = cable(ping_interval=1, pong_timeout=2, max_commands_pending=2)
    slow = slow_controllers(made)
    client = made.client(EXTENDED)
    for n in range(5):
        client.sock.send(command("subscribe", identifier=identifier(f"s{n}")))
        made.run()
    for _ in range(10):
        made.wait(1)
        client.sock.send(command("pong"))
    for _ in range(5):
        slow.waiting.pop(0).callback(None)
        made.run()
    assert [m["type"] for m in client.messages()] == ["confirm_subscription"] * 5
    made.wait(4)
    assert client.farewell()[0][-1] == NO_PONG


def test_a_client_is_not_read_while_too_many_of_its_commands_wait(cable):
    made = cable(max_commands_pending=4)
    slow = slow_controllers(made)
    client = made.client()
    names = [identifier(f"s{n}") for n in range(30)]
    for name in names:
        client.sock.send(command("subscribe", identifier=name))
        made.run()
    assert len(slow.waiting) == 1
    for _ in names:
        slow.waiting.pop(0).callback(None)
        made.run()
    assert [m["identifier"] for m in client.messages()] == names
