"""Commands to bytes, bytes to answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.redis.api import RedisError
from anycable_tx.redis.resp import BadAnswer, Reader, encode


def to_bytes(value: object) -> bytes:
    """*value* as a server sends it."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    assert isinstance(value, list)
    return b"*%d\r\n" % len(value) + b"".join(map(to_bytes, value))


values = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40), lambda v: st.lists(v, max_size=4)
)


@given(st.lists(values, max_size=5), st.lists(st.integers(1, 30), min_size=1))
def test_answers_are_the_same_however_they_are_cut(sent: list[object], sizes: list[int]) -> None:
    data = b"".join(map(to_bytes, sent))
    reader, got, n = Reader(), [], 0
    while data:
        size = sizes[n % len(sizes)]
        n += 1
        got += reader.feed(data[:size])
        data = data[size:]
    assert got == sent


def test_a_large_text_in_many_pieces_is_put_together_once() -> None:
    text = b"x" * 3_000_000
    data = to_bytes([text, 1])
    reader = Reader()
    got = [answer for at in range(0, len(data), 1000) for answer in reader.feed(data[at : at + 1000])]
    assert got == [[text, 1]]


def test_status_errors_and_empty_lists() -> None:
    status, error, nothing, empty, inside = Reader().feed(
        b"+OK\r\n-ERR no such thing\r\n*-1\r\n*0\r\n*2\r\n-MOVED 1 a:2\r\n:3\r\n"
    )
    assert (status, nothing, empty) == (b"OK", None, [])
    assert isinstance(error, RedisError)
    assert (str(error), error.kind) == ("ERR no such thing", "ERR")
    assert (inside[0].kind, inside[1]) == ("MOVED", 3)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"*1x\r\n", b"+" + 70_000 * b"x"])
def test_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Reader().feed(data)


def test_arguments_are_sent_as_texts_and_decimals() -> None:
    assert encode(("SET", b"\x00", "é", 12, 1.5, 1e22, 1e-7)) == (
        b"*7\r\n$3\r\nSET\r\n$1\r\n\x00\r\n$2\r\n\xc3\xa9\r\n$2\r\n12\r\n$3\r\n1.5\r\n"
        b"$23\r\n10000000000000000000000\r\n$9\r\n0.0000001\r\n"
    )
