"""Frames: what the server writes, and what it understands of what clients write."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from anycable_tx.cable import codec
from anycable_tx.cable.codec import HistoryAsk, decode_command
from anycable_tx.cable.messages import Member, Position, StreamMessage
from anycable_tx.errors import BadCommand

STORED = StreamMessage("a", b'{"x":1}', 7, 6, "E", 1.0)


def frame_of(message: StreamMessage, identifier: bytes = b'"I"') -> dict[str, Any]:
    frame: dict[str, Any] = orjson.loads(
        codec.broadcast_frame(identifier, message, codec.broadcast_tail(message)),
    )
    return frame


def command(text: bytes) -> codec.Command:
    decoded = decode_command(text)
    assert decoded is not None
    return decoded


def history(value: Any) -> HistoryAsk | None:
    return command(orjson.dumps({"command": "history", "identifier": "I", "history": value})).history


def refusal(text: bytes) -> str:
    with pytest.raises(BadCommand) as caught:
        decode_command(text)
    return str(caught.value)


# -- what is written


@pytest.mark.statement("CP-48")
def test_a_stored_broadcast_has_five_keys():
    frame = frame_of(STORED)
    assert frame == {"identifier": "I", "message": {"x": 1}, "stream_id": "a", "epoch": "E", "offset": 7}
    assert list(frame) == ["identifier", "message", "stream_id", "epoch", "offset"]


@pytest.mark.statement("CP-49")
def test_a_broadcast_without_a_position_has_two_keys():
    assert frame_of(StreamMessage("a", b"1")) == {"identifier": "I", "message": 1}


@pytest.mark.statement("CP-52", "BR-3")
def test_the_payload_is_embedded_as_it_is():
    message = StreamMessage("a", b'{"b": 12345678901234567890, "a": 1.0}')
    assert b'{"b": 12345678901234567890, "a": 1.0}' in codec.broadcast_frame(
        b'"I"', message, codec.broadcast_tail(message)
    )


@pytest.mark.statement("CP-54", "BR-8")
@pytest.mark.parametrize("message", [STORED, StreamMessage("a", b"1")], ids=["stored", "transient"])
def test_the_broadcast_type_is_the_frames_type(message):
    typed = StreamMessage(message.stream, message.payload, message.offset, 0, message.epoch, broadcast_type='q"t')
    assert frame_of(typed) == {"type": 'q"t', **frame_of(message)}


def test_odd_stream_names_are_escaped():
    assert frame_of(StreamMessage('a"\\\n', b"1", 1, 0, 'e"'))["stream_id"] == 'a"\\\n'


@pytest.mark.statement("CP-20")
def test_a_welcome_names_the_session():
    assert codec.welcome_frame("S") == b'{"type":"welcome","sid":"S"}'


@pytest.mark.statement("CP-15", "RA-5")
def test_a_session_id_cannot_break_the_welcome():
    sid = '","admin":"1'
    assert orjson.loads(codec.welcome_frame(sid)) == {"type": "welcome", "sid": sid}


@pytest.mark.statement("CP-98")
def test_a_restored_welcome_always_lists_its_subscriptions():
    assert orjson.loads(codec.welcome_frame("S", [])) == {
        "type": "welcome",
        "sid": "S",
        "restored": True,
        "restored_ids": [],
    }


def test_a_disconnect_always_has_three_keys():
    assert codec.disconnect_frame("", False) == b'{"type":"disconnect","reason":"","reconnect":false}'


@pytest.mark.statement("CP-114")
def test_presence_info_leaves_out_what_is_empty():
    members = [Member("1", {"n": "x"}), Member("2")]
    assert orjson.loads(codec.presence_info(b'"I"', members, records=True)) == {
        "type": "presence",
        "identifier": "I",
        "message": {"type": "info", "total": 2, "records": [{"info": {"n": "x"}, "id": "1"}, {"id": "2"}]},
    }
    assert orjson.loads(codec.presence_info(b'"I"', [], records=True))["message"] == {"type": "info", "total": 0}


@pytest.mark.statement("CP-120")
def test_a_presence_error_has_a_total_of_0():
    assert orjson.loads(codec.presence_error(b'"I"'))["message"] == {"type": "error", "total": 0}


@pytest.mark.statement("CP-111")
def test_a_leave_event_has_no_info():
    assert orjson.loads(codec.member_event("leave", "7", {"n": 1})) == {"id": "7", "type": "leave"}
    assert orjson.loads(codec.member_event("join", "7", {"n": 1})) == {"id": "7", "info": {"n": 1}, "type": "join"}


# -- what is understood


def test_a_command_has_its_parts():
    decoded = command(
        b'{"command":"subscribe","identifier":"I","data":[1],"history":{"since":5},"presence":{"id":"7","info":2}}'
    )
    assert decoded == ("subscribe", "I", [1], HistoryAsk(None, 5), ("7", 2))


def test_keys_match_whatever_their_case():
    decoded = command(
        b'{"Command":"subscribe","IDENTIFIER":"I","History":{"Since":5,"STREAMS":{"a":{"Epoch":"E","OffSet":3}}},'
        b'"Presence":{"ID":"7"}}'
    )
    assert decoded == ("subscribe", "I", None, HistoryAsk({"a": Position("E", 3)}, 5), ("7", None))


def test_one_key_in_another_case_is_enough():
    assert command(b'{"command":"history","identifier":"I","History":{"since":5}}').history == HistoryAsk(None, 5)
    assert command(b'{"command":"message","identifier":"I","DATA":"x"}').data == "x"


def test_the_last_of_equal_keys_wins():
    assert command(b'{"command":"ping","command":"pong"}').name == "pong"
    assert command(b'{"command":"ping","COMMAND":"pong"}').name == "pong"


def test_stream_names_keep_their_case():
    assert history({"streams": {"Chat": {"epoch": "E", "offset": 1}}}) == HistoryAsk({"Chat": Position("E", 1)}, 0)


def test_unknown_keys_are_ignored():
    assert command(b'{"command":"ping","x":[{}]}') == ("ping", "", None, None, None)


@pytest.mark.statement("CP-40")
def test_null_is_no_command():
    assert decode_command(b"null") is None


@pytest.mark.statement("CP-40")
def test_an_empty_object_is_a_command_without_a_name():
    assert command(b"{}").name == ""


@pytest.mark.statement("CP-41")
@pytest.mark.parametrize(
    "text", [b"", b"x", b"{", b'{"command":"ping"', b'"\xff"', b"[" * 5000, b"[]", b'"ping"', b"1", b"true"]
)
def test_what_is_no_json_object_is_refused(text):
    refusal(text)


@pytest.mark.statement("CP-41")
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"command": 1}, "command"),
        ({"command": ["subscribe"]}, "command"),
        ({"command": "subscribe", "identifier": 1}, "identifier"),
        ({"command": "subscribe", "identifier": {}}, "identifier"),
        ({"command": "history", "identifier": "I", "history": []}, "history"),
        ({"command": "history", "identifier": "I", "history": True}, "history"),
        ({"command": "history", "identifier": "I", "history": {"since": "1"}}, "since"),
        ({"command": "history", "identifier": "I", "history": {"since": 1.5}}, "since"),
        ({"command": "history", "identifier": "I", "history": {"since": True}}, "since"),
        ({"command": "history", "identifier": "I", "history": {"streams": []}}, "streams"),
        ({"command": "history", "identifier": "I", "history": {"streams": {"a": 1}}}, "streams.a"),
        ({"command": "history", "identifier": "I", "history": {"streams": {"a": {"offset": -1}}}}, "offset"),
        ({"command": "history", "identifier": "I", "history": {"streams": {"a": {"offset": "1"}}}}, "offset"),
        ({"command": "history", "identifier": "I", "history": {"streams": {"a": {"epoch": 1}}}}, "epoch"),
        ({"command": "join", "identifier": "I", "presence": "7"}, "presence"),
        ({"command": "join", "identifier": "I", "presence": {"id": {}}}, "presence.id"),
    ],
)
def test_a_wrong_type_is_refused_by_name(keys, named):
    assert named in refusal(orjson.dumps(keys))


@pytest.mark.statement("CP-42")
@pytest.mark.parametrize("since", [False, None])
def test_a_since_of_false_or_null_is_absent(since):
    assert history({"since": since, "streams": {"a": {"epoch": "E", "offset": 3}}}) == HistoryAsk(
        {"a": Position("E", 3)}, 0
    )


def test_integral_floats_are_integers():
    assert history({"since": 5.0, "streams": {"a": {"epoch": "E", "offset": 3.0}}}) == HistoryAsk(
        {"a": Position("E", 3)}, 5
    )


@pytest.mark.parametrize("offset", [2**53, 2**63, 2**64 - 1, 2**64, 2**70])
def test_huge_offsets_are_understood(offset):
    ask = command(
        b'{"command":"history","identifier":"I","history":{"streams":{"a":{"epoch":"E","offset":%d}}}}' % offset
    ).history
    assert ask == HistoryAsk({"a": Position("E", offset)}, 0)


def test_streams_of_null_are_absent_and_a_stream_of_null_too():
    assert history({"streams": None, "since": 1}) == HistoryAsk(None, 1)
    assert history({"streams": {"a": None}}) == HistoryAsk({}, 0)


def test_a_history_of_null_or_false_asks_for_nothing():
    assert history(None) is None
    assert history(False) == HistoryAsk(None, 0)


def test_a_numeric_presence_id_is_text():
    assert command(b'{"command":"join","identifier":"I","presence":{"id":7}}').presence == ("7", None)
