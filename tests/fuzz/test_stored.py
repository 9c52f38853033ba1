"""What comes back from a broker or over the bus, damaged: it is understood or it is not, and nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anycable_tx.cable import bus
from anycable_tx.cable.messages import Position, Publication, RemoteCommand, StreamMessage
from anycable_tx.cable.publications import decode
from anycable_tx.cable.records import SessionRecord, StreamRecord
from anycable_tx.cable.replies import RequestEnv
from anycable_tx.errors import BadPublication
from tests.fuzz.inputs import almost, bodies, grafted

pytestmark = pytest.mark.statement("F64")

RECORD = SessionRecord(
    '{"user":1}',
    {"chat": {"s": StreamRecord(3, Position("e", 7), True)}, "b": {"t": StreamRecord(0, Position("e", 1), False)}},
    {"a": "b"},
    {"chat": {"c": "d"}},
    previous=("x", "y"),
    unfinished={"gone": {}},
    env=RequestEnv("http://localhost/cable", {"cookie": "a=b"}),
).encode()
MESSAGE = bus.encode(StreamMessage("s", b'{"a":1}', 3, 2, "e", 1.5, "sid", "kind", "id"))
PUBLICATIONS = b'[{"stream":"s","data":"x","meta":{"id":"1","transient":false}},{"stream":"t","data":{"a":[1]}}]'


@settings(max_examples=500)
@given(grafted(RECORD) | almost(st.just(RECORD)) | bodies)
def test_a_session_record_is_one_or_none(text):
    record = SessionRecord.decode(text)
    assert record is None or SessionRecord.decode(record.encode()) is not None


@given(grafted(MESSAGE) | almost(st.just(MESSAGE)) | bodies)
def test_a_message_from_the_bus_is_one_or_none(text):
    found = bus.decode(text)
    assert found is None or isinstance(found, (StreamMessage, RemoteCommand))


@given(grafted(PUBLICATIONS) | almost(st.just(PUBLICATIONS)) | bodies, st.booleans())
def test_a_publication_is_understood_or_refused_with_a_reason(body, lenient):
    try:
        work = decode(body, lenient=lenient)
    except BadPublication:
        return
    assert isinstance(work, RemoteCommand) or all(isinstance(p, Publication) and p.stream for p in work)
