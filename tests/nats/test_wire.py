"""What messages look like on NATS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anycable_tx.cable.messages import Publication, StreamMessage
from anycable_tx.nats.api import Message
from anycable_tx.nats.headers import decode, encode
from anycable_tx.nats.jetstream import Stored
from anycable_tx.nats.names import Names
from anycable_tx.nats.wire import headers_of, live_message, stored_message

NAMES = Names("ac")
NOW = 1_700_000_000.0
FULL = StreamMessage("chat", b'{"n":1}', 7, 5, "ep", 12.345, "s\u00e9\n", ' \U0001f600" ', " id:\r\n\u00e9%20 ")
LONG = "\U0001f600 " * 200


def over_the_wire(headers: dict[str, str]) -> dict[str, str]:
    return decode(encode(headers)).headers


def live(stream: str = "chat", data: bytes = b"1", **headers: str) -> StreamMessage:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return live_message(NAMES, "default", stream, Message("any", data, named), NOW)


@pytest.mark.parametrize("message", [FULL, replace(FULL, stream=LONG), StreamMessage("a", b"1", 1, 0, "e", 2.0)])
def test_a_message_with_a_position_of_its_own_arrives_as_it_was_sent(message: StreamMessage):
    arrived = Message("any", message.payload, over_the_wire(headers_of(message)))
    assert live_message(NAMES, "default", message.stream, arrived, NOW) == message


def test_a_transient_message_has_no_position_and_the_time_of_its_arrival():
    message = replace(FULL, offset=0, prev=0, epoch="")
    arrived = Message("any", message.payload, over_the_wire(headers_of(message)))
    assert live_message(NAMES, "default", "chat", arrived, NOW) == replace(message, time=NOW)


def test_a_plain_publication_needs_no_headers():
    assert headers_of(Publication("chat", b"1")) == {}


def test_the_name_of_a_stream_is_told_where_the_subject_does_not_tell_it():
    assert headers_of(Publication(LONG, b"1")).keys() == {"Ac-Stream"}


def test_what_the_server_republished_has_the_position_that_the_server_says():
    arrived = live(
        Nats_Stream="AC_H_default_eP0c",
        Nats_Sequence="12",
        Nats_Last_Sequence="9",
        Nats_Time_Stamp="2023-11-14T22:13:21.123456789Z",
        Ac_Id="i%20d",
    )
    assert arrived == StreamMessage("chat", b"1", 12, 9, "eP0c", 1_700_000_001.123456, id="i d")


def test_a_server_that_tells_no_time_is_believed_to_tell_it_at_once():
    arrived = live(Nats_Stream="AC_H_default_e", Nats_Sequence="1", Nats_Last_Sequence="0")
    assert (arrived.offset, arrived.prev, arrived.time) == (1, 0, NOW)


def test_a_stored_message_is_read_as_it_was_published():
    publication = Publication("chat", b'{"n":1}', "sid", "note", False, "id")
    stored = Stored("ac.s.default.x", 9, 5.0, over_the_wire(headers_of(publication)), publication.payload)
    assert stored_message("chat", stored, "e", 4) == StreamMessage(
        "chat", b'{"n":1}', 9, 4, "e", 5.0, "sid", "note", "id"
    )


@pytest.mark.statement("BR-6")
@pytest.mark.parametrize(
    "wrong",
    [
        {"data": b"no JSON"},
        {"data": b""},
        {"data": b"[" * 10_000},
        {"data": b"\xff"},
        {"Ac_Meta": "5"},
        {"Ac_Meta": "{"},
        {"Ac_Meta": '{"exclude_socket":5}'},
        {"Ac_Meta": '{"broadcast_type":null}'},
        {"Ac_Stream": "another"},
        {"Ac_Position": "1 0 5"},
        {"Ac_Position": "1 0 x e"},
        {"Ac_Position": "-1 0 5 e"},
        {"Ac_Position": "1 2 5 e"},
        {"Nats_Sequence": "5"},
        {"Nats_Sequence": "5", "Nats_Stream": "ORDERS"},
        {"Nats_Sequence": "5", "Nats_Stream": "AC_H_chat_e"},
        {"Nats_Sequence": "x", "Nats_Stream": "AC_H_default_e"},
        {"Nats_Sequence": "5", "Nats_Stream": "AC_H_default_e", "Nats_Time_Stamp": "noon"},
    ],
)
def test_what_nobody_can_have_meant_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=r".+"):
        live(**wrong)
