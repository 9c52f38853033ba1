"""The messages of gRPC calls: requests in the HTTP shape go in, whole replies come out."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from anycable_tx.rpc.definition import METHODS
from anycable_tx.rpc.grpc_messages import decode, encode
from anycable_tx.rpc.transport import CallFailed, Code, RestoredStreams, RpcReply

ENV = {"url": "http://a/cable", "headers": {"cookie": "a=b"}, "cstate": {"c": "1"}, "istate": {"i": "2"}}
REQUESTS: dict[str, dict[str, Any]] = {
    "connect": {"env": ENV},
    "command": {
        "command": "message",
        "identifier": "chat",
        "connection_identifiers": "u1",
        "data": "{}",
        "env": ENV,
    },
    "disconnect": {"identifiers": "u1", "subscriptions": ["chat", "news"], "env": ENV},
    "restore": {
        "identifiers": "u1",
        "subscriptions": ["chat"],
        "env": ENV,
        "prev_sid": "s0",
        "disconnect_notified": True,
    },
}
REPLIES: dict[str, tuple[dict[str, Any], RpcReply]] = {
    "connect": (
        {
            "status": 1,
            "identifiers": "u1",
            "transmissions": ["a", "b"],
            "error_msg": "e",
            "env": {"cstate": {"c": ""}, "istate": {"i": "ignored"}},
        },
        RpcReply(1, identifiers="u1", transmissions=["a", "b"], error_msg="e", cstate={"c": ""}),
    ),
    "command": (
        {
            "status": 2,
            "disconnect": True,
            "stop_streams": True,
            "streams": ["s"],
            "transmissions": ["t"],
            "error_msg": "e",
            "env": {"cstate": {"c": "1"}, "istate": {"i": "2"}},
            "stopped_streams": ["o"],
            "presence": {"type": "join", "id": "7", "info": "x", "ttl": 5},
        },
        RpcReply(
            2,
            transmissions=["t"],
            error_msg="e",
            cstate={"c": "1"},
            istate={"i": "2"},
            disconnect=True,
            stop_streams=True,
            streams=["s"],
            stopped_streams=["o"],
            presence={"type": "join", "id": "7", "info": "x"},
        ),
    ),
    "disconnect": ({"status": 1, "error_msg": "e"}, RpcReply(1, error_msg="e")),
    "restore": (
        {
            "status": 1,
            "identifiers": "u2",
            "transmissions": ["t"],
            "error_msg": "e",
            "env": {"cstate": {"c": "1"}, "istate": {"chat": "{}"}},
            "rejected_subscriptions": ["news"],
            "streams": [
                {"identifier": "chat", "stop_streams": True, "stopped_streams": ["o"], "streams": ["s"]},
                {"identifier": "mail"},
            ],
        },
        RpcReply(
            1,
            identifiers="u2",
            transmissions=["t"],
            error_msg="e",
            cstate={"c": "1"},
            istate={"chat": "{}"},
            rejected_subscriptions=["news"],
            restored_streams=[RestoredStreams("chat", True, ["o"], ["s"]), RestoredStreams("mail")],
        ),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_request_says_what_the_http_body_says(method: str) -> None:
    message = METHODS[method].request.FromString(encode(method, REQUESTS[method]))
    assert MessageToDict(message, preserving_proto_field_name=True) == REQUESTS[method]
    assert {field.name for field in message.DESCRIPTOR.fields} == REQUESTS[method].keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_reply_is_read(method: str) -> None:
    fields, reply = REPLIES[method]
    message = METHODS[method].reply
    assert {field.name for field in message.DESCRIPTOR.fields} == fields.keys()
    assert decode(method, message(**fields).SerializeToString()) == reply


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_reply_is_an_error_without_a_text(method: str) -> None:
    assert decode(method, b"") == RpcReply(0)


def test_fields_and_verdicts_of_newer_backends_are_no_obstacle() -> None:
    assert decode("disconnect", b"\x08\x09\xa2\x06\x01x") == RpcReply(9)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x12\x01\xff"], ids=["not a message", "not text"])
def test_what_is_not_a_reply_fails_and_may_have_been_carried_out(data: bytes) -> None:
    with pytest.raises(CallFailed) as failed:
        decode("connect", data)
    assert (failed.value.reason, failed.value.delivered) == (Code.UNKNOWN, True)


@pytest.mark.parametrize(
    "request_",
    [
        {"unknown": "secret"},
        {"env": "secret"},
        {"env": {"url": "secret\ud800"}},
        {"env": {"headers": {"a": None}}},
    ],
)
def test_a_request_that_cannot_be_written_is_not_sent_and_not_quoted(request_: dict[str, Any]) -> None:
    with pytest.raises(CallFailed) as failed:
        encode("connect", request_)
    assert (failed.value.reason, failed.value.delivered) == (Code.INVALID, False)
    assert "secret" not in str(failed.value)
