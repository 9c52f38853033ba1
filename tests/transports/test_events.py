"""The text of events, as clients of each kind read it."""

from __future__ import annotations

import orjson
import pytest

from anycable_tx.cable.codec import broadcast_tail
from anycable_tx.cable.messages import Position, StreamMessage
from anycable_tx.transports.events import event, event_id, wire_of

IDENTIFIER = b'"{\\"channel\\":\\"Chat\\"}"'


def told(message: StreamMessage, *, whole: bool = False, raw: bool = False) -> bytes:
    return wire_of(whole=whole, raw=raw, chunked=False).broadcast(IDENTIFIER, message, broadcast_tail(message))


def noticed(payload: bytes, *, whole: bool = False, raw: bool = False, id: bytes = b"") -> bytes:
    return wire_of(whole=whole, raw=raw, chunked=False).notice(payload, orjson.loads(payload), id)


def test_the_fields_have_their_order_and_the_event_ends_with_an_empty_line() -> None:
    assert event(b"d", "k", b"1/e/s", b"7") == b"event: k\ndata: d\nid: 1/e/s\nretry: 7\n\n"


@pytest.mark.statement("HE-23")
def test_every_kind_of_line_end_begins_another_line_of_data() -> None:
    message = StreamMessage("s", b'"1\\r\\n2\\r3\\n4"')
    assert told(message) == b"data: 1\ndata: 2\ndata: 3\ndata: 4\n\n"
    assert told(StreamMessage("s", b'"\\n"')) == b"data: \ndata: \n\n"


@pytest.mark.statement("HE-22")
@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b'"text"', b"text"),
        (b'""', b""),
        (b' "text"', b"text"),
        ('"å\\u00e5"'.encode(), "åå".encode()),
        (b'"\\ud800"', b'"\\ud800"'),
        (b'{"b":12345678901234567890,"a":1.0}', b'{"b":12345678901234567890,"a":1.0}'),
        (b"null", b"null"),
        (b"7", b"7"),
    ],
)
def test_a_message_is_its_own_data_and_a_string_has_no_quotes(payload: bytes, data: bytes) -> None:
    assert told(StreamMessage("s", payload)) == b"data: %b\n\n" % data


@pytest.mark.statement("HE-22", "HE-24")
def test_a_client_of_whole_objects_gets_the_identifier_and_the_position_too() -> None:
    message = StreamMessage("s", b'"x"', offset=3, epoch="e")
    expected = (
        b'data: {"identifier":%b,"message":"x","stream_id":"s","epoch":"e","offset":3}\nid: 3/e/s\n\n' % IDENTIFIER
    )
    assert told(message, whole=True) == expected
    assert told(message) == b"data: x\nid: 3/e/s\n\n"


@pytest.mark.statement("HE-29")
def test_a_message_with_a_type_is_whole_and_nothing_for_raw_clients() -> None:
    message = StreamMessage("s", b'{"x":1}', offset=3, epoch="e", broadcast_type="alert")
    whole = b'{"type":"alert","identifier":%b,"message":{"x":1},"stream_id":"s","epoch":"e","offset":3}' % IDENTIFIER
    assert told(message) == told(message, whole=True) == b"event: alert\ndata: %b\nid: 3/e/s\n\n" % whole
    assert told(message, raw=True) == told(message, raw=True, whole=True) == b""


def test_a_type_cannot_break_out_of_its_line() -> None:
    message = StreamMessage("s", b"1", broadcast_type="a\r\ndata: b")
    assert told(message).startswith(b"event: a data: b\ndata: {")


def test_an_id_is_the_position_and_its_stream_may_be_any_text_that_fits_a_line() -> None:
    assert event_id("a/b/ü", Position("e", 0)) == "0/e/a/b/ü".encode()
    assert event_id("s", Position("", 5)) == b""
    for stream in ("a\nb", "a\rb", "a\0b"):
        assert event_id(stream, Position("e", 5)) == b""
        assert told(StreamMessage(stream, b"1", offset=5, epoch="e")) == b"data: 1\n\n"


def test_a_notice_is_whole_for_everybody_but_raw_clients() -> None:
    notice = b'{"type":"confirm_history","identifier":"i"}'
    expected = b"event: confirm_history\ndata: %b\nid: 1/e/s\n\n" % notice
    assert noticed(notice, id=b"1/e/s") == noticed(notice, whole=True, id=b"1/e/s") == expected
    assert noticed(notice, raw=True) == b""
    assert noticed(notice, raw=True, id=b"1/e/s") == b"id: 1/e/s\n\n"


@pytest.mark.statement("HE-31")
def test_who_is_not_to_come_back_is_told_to_wait_for_a_year() -> None:
    final = b'{"type":"disconnect","reason":"remote","reconnect":false}'
    assert noticed(final) == b"event: disconnect\ndata: %b\nretry: 31536000000\n\n" % final
    assert noticed(final, raw=True) == b"retry: 31536000000\n\n"
    other = b'{"type":"disconnect","reason":"server_restart","reconnect":true}'
    assert noticed(other) == b"event: disconnect\ndata: %b\n\n" % other
    assert noticed(other, raw=True) == b""


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b'{"identifier":"i","message":"text"}', b"text"),
        (b'{"identifier":"i","message":{"n": 12345678901234567890}}', b'{"n":12345678901234567890}'),
        (b'{"identifier":"i"}', b'{"identifier":"i"}'),
        (b'{"type":7,"message":"x"}', b"x"),
    ],
)
def test_a_message_that_a_backend_transmits_looks_like_any_other(payload: bytes, data: bytes) -> None:
    assert noticed(payload) == noticed(payload, raw=True) == b"data: %b\n\n" % data
    assert noticed(payload, whole=True) == b"data: %b\n\n" % payload


def test_what_a_backend_transmits_may_be_no_object() -> None:
    assert wire_of(whole=False, raw=False, chunked=False).notice(b"?\n?", None) == b"data: ?\ndata: ?\n\n"


def test_a_ping_is_an_event_or_for_raw_clients_a_comment() -> None:
    assert (
        wire_of(whole=False, raw=False, chunked=False).ping(5)
        == b'event: ping\ndata: {"type":"ping","message":5}\n\n'
    )
    assert wire_of(whole=False, raw=True, chunked=False).ping(5) == b":\n\n"


def test_a_chunked_response_has_a_chunk_for_each_event() -> None:
    wire = wire_of(whole=False, raw=False, chunked=True)
    assert wire.frame(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert wire.end == b"0\r\n\r\n"
    plain = wire_of(whole=False, raw=False, chunked=False)
    assert (plain.frame(b"x"), plain.end) == (b"x", b"")


def test_there_is_one_wire_format_of_each_kind() -> None:
    kinds = [{"whole": w, "raw": r, "chunked": c} for w in (0, 1) for r in (0, 1) for c in (0, 1)]
    wires = [wire_of(**{name: bool(value) for name, value in kind.items()}) for kind in kinds]
    assert len(set(map(id, wires))) == 8
    assert wires[0] is wire_of(whole=False, raw=False, chunked=False)
