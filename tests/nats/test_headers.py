"""Headers as bytes."""

from __future__ import annotations

import pytest

from anycable_tx.nats.headers import Decoded, decode, encode


def test_what_is_encoded_is_decoded() -> None:
    headers = {"Nats-Msg-Id": "a/b:c", "Ac-Meta": '{"x": "ä:é"}', "Empty": ""}
    assert decode(encode(headers)) == Decoded(headers)
    assert encode({"A": "1"}) == b"NATS/1.0\r\nA: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"NATS/1.0\r\n\r\n", Decoded({})),
        (b"NATS/1.0 503\r\n\r\n", Decoded({}, 503)),
        (b"NATS/1.0 404 Message Not Found\r\n\r\n", Decoded({}, 404, "Message Not Found")),
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n", Decoded({"Nats-Num-Pending": "3"}, 204, "EOB")),
        (b"NATS/1.0\r\nA:1\r\nB:\t2 \r\nnonsense\r\nA: 3\r\n\r\n", Decoded({"A": "3", "B": "2"})),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", Decoded({"A": "�"})),
        (b"", Decoded({})),
    ],
)
def test_what_servers_and_others_send(block: bytes, expected: Decoded) -> None:
    assert decode(block) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "x"), ("a b", "x"), ("a:", "x"), ("ä", "x"), ("A", "x\r\nB: y"), ("A", "x\n"), ("A", " x"), ("A", "x ")],
)
def test_what_would_not_arrive_as_it_is_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        encode({name: value})
