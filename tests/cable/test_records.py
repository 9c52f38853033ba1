"""Session records: what is kept, and that nothing else is taken for one."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.cable.messages import Position
from anycable_tx.cable.records import MAX_PREVIOUS, SessionRecord, StreamRecord

FULL = SessionRecord(
    '{"user":1}',
    {"I": {"a": StreamRecord(2, Position("E", 5), True), "b": StreamRecord(-1, Position("F", 0), False)}, "J": {}},
    {"k": "v"},
    {"I": {"$p": "a"}},
    True,
    ("S1", "S2"),
)


@pytest.mark.statement("CP-96")
@pytest.mark.parametrize("record", [FULL, SessionRecord("")], ids=["full", "empty"])
def test_a_record_is_what_it_was(record):
    assert SessionRecord.decode(record.encode()) == record


def test_a_record_has_the_keys_of_the_anycable_server():
    value = orjson.loads(FULL.encode())
    assert value["ids"] == '{"user":1}'
    assert value["subs"] == {"I": ["a", "b"], "J": []}
    assert value["cstate"] == {"k": "v"}
    assert value["istate"] == {"I": {"$p": "a"}}
    assert value["Disconnectable"] is True


def test_a_record_of_the_anycable_server_is_read():
    record = SessionRecord.decode(
        b'{"ids":"u","subs":{"I":["a"]},"cstate":null,"istate":{"I":{"k":"v"}},"Disconnectable":false,"more":1}'
    )
    assert record is not None
    assert record.subscriptions == {"I": {"a": StreamRecord(-1, Position("", 0), False)}}
    assert record.istate == {"I": {"k": "v"}}


def test_only_the_newest_earlier_ids_are_kept():
    sids = tuple(f"S{n}" for n in range(12))
    record = SessionRecord.decode(SessionRecord("u", previous=sids).encode())
    assert record is not None
    assert record.previous == sids[-MAX_PREVIOUS:]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b"{}",
        b'{"ids":"u","subs":[]}',
        b'{"ids":"u","subs":{"I":1}}',
        b'{"ids":"u","subs":{"I":["a"]},"at":[[]]}',
        b'{"ids":"u","subs":{"I":["a"]},"at":[[["E",1]]]}',
        b'{"ids":"u","subs":{"I":["a"]},"at":[[["E","x",1,false]]]}',
        b'{"ids":"u","istate":{"I":1}}',
        b'{"ids":"u","cstate":1}',
        b'{"ids":"u","prev":1}',
    ],
)
def test_what_is_no_record_is_none(text):
    assert SessionRecord.decode(text) is None


@given(st.binary(max_size=40))
def test_garbage_never_raises(text):
    SessionRecord.decode(text)


@given(st.data())
def test_a_damaged_record_never_raises(data):
    text = bytearray(FULL.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    SessionRecord.decode(bytes(text))
