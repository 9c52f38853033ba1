"""The bodies of HTTP calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anycable_tx.rpc.json_messages import decode, encode
from anycable_tx.rpc.transport import CallFailed, Code, RestoredStreams, RpcReply

CHANNEL = '{"channel":"ChatChannel","id":7}'
ENV = {"url": "http://localhost:8080/cable", "headers": {"REMOTE_ADDR": "127.0.0.1", "cookie": "_sid=abc"}}

BODIES = {
    "connect": '{"env":{"url":"http://localhost:8080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"_sid=abc"}}}',
    "command": '{"command":"subscribe","identifier":"{\\"channel\\":\\"ChatChannel\\",\\"id\\":7}",'
    '"connection_identifiers":"{\\"user_id\\":42}","env":{"url":"http://localhost:8080/cable",'
    '"headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"_sid=abc"},"cstate":{"plan":"\\"pro\\""}}}',
    "disconnect": '{"identifiers":"{\\"user_id\\":42}",'
    '"subscriptions":["{\\"channel\\":\\"ChatChannel\\",\\"id\\":7}"],'
    '"env":{"url":"http://localhost:8080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"_sid=abc"},'
    '"cstate":{"plan":"\\"pro\\""},"istate":{"{\\"channel\\":\\"ChatChannel\\",\\"id\\":7}":"{\\"room\\":\\"7\\"}"}}}',
    "restore": '{"identifiers":"{\\"user_id\\":42}","subscriptions":["{\\"channel\\":\\"ChatChannel\\",\\"id\\":7}"],'
    '"env":{"url":"http://localhost:8080/cable","headers":{"REMOTE_ADDR":"127.0.0.1"}},'
    '"prev_sid":"V1StGXR8_Z5jdHi6B-myT","disconnect_notified":true}',
}


def reply(method: str, **values: Any) -> RpcReply:
    return decode(method, json.dumps(values).encode())


def failure(method: str, body: bytes) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        decode(method, body)
    return caught.value


@pytest.mark.statement("RA-31")
@pytest.mark.parametrize("method", BODIES)
def test_a_request_is_written_as_the_backends_of_today_expect_it(method: str):
    assert encode(method, json.loads(BODIES[method])) == BODIES[method].encode()


def test_what_is_empty_is_left_out_of_a_request_except_env():
    given = {"command": "message", "identifier": "", "data": "", "connection_identifiers": "", "env": {"cstate": {}}}
    assert encode("command", given) == b'{"command":"message","env":{}}'
    assert encode("connect", {}) == b'{"env":{}}'
    assert encode("restore", {"prev_sid": "a", "disconnect_notified": False}) == b'{"env":{},"prev_sid":"a"}'


def test_nothing_is_added_to_a_request_for_backends_that_refuse_unknown_keys():
    given = {"env": {"url": "u", "trace": "t"}, "sid": "s", "prev_sid": "p"}
    assert encode("disconnect", given) == b'{"env":{"url":"u"}}'


def test_a_request_that_is_no_text_fails_before_it_is_sent():
    with pytest.raises(CallFailed) as caught:
        encode("command", {"data": "\ud800"})
    assert (caught.value.reason, caught.value.delivered) == (Code.INVALID, False)


def test_every_key_of_a_reply_arrives():
    assert reply(
        "command",
        status=1,
        disconnect=True,
        stop_streams=True,
        streams=["a"],
        transmissions=["{}"],
        error_msg="e",
        env={"cstate": {"c": "1"}, "istate": {"i": "2"}},
        stopped_streams=["b"],
        presence={"type": "join", "id": "7", "info": "{}", "ttl": 5},
    ) == RpcReply(
        status=1,
        disconnect=True,
        stop_streams=True,
        streams=["a"],
        transmissions=["{}"],
        error_msg="e",
        cstate={"c": "1"},
        istate={"i": "2"},
        stopped_streams=["b"],
        presence={"type": "join", "id": "7", "info": "{}"},
    )
    assert reply("connect", status=1, identifiers="u").identifiers == "u"


def test_missing_and_null_keys_are_the_default_and_unknown_ones_ignored():
    assert decode("command", b"{}") == RpcReply(status=0)
    nothing = dict.fromkeys(("status", "streams", "env", "presence", "disconnect", "error_msg"))
    assert reply("command", **nothing, whatever={"x": 1}) == RpcReply()
    # What only another method has is as unknown.
    assert reply("connect", streams=["a"], env={"istate": {"a": "1"}}) == RpcReply()
    assert reply("disconnect", transmissions=["a"], rejected_subscriptions=["a"]) == RpcReply()


@pytest.mark.statement("RA-31")
@pytest.mark.parametrize(("status", "number"), [("ERROR", 0), ("SUCCESS", 1), ("FAILURE", 2), (2, 2), (0, 0)])
def test_a_status_is_a_number_or_a_name(status: Any, number: int):
    assert reply("connect", status=status).status == number


@pytest.mark.statement("RA-31")
def test_keys_may_be_in_camel_case_and_snake_case_wins():
    answer = reply("command", errorMsg="e", stopStreams=True, stoppedStreams=["a"])
    assert (answer.error_msg, answer.stop_streams, answer.stopped_streams) == ("e", True, ["a"])
    assert reply("restore", rejectedSubscriptions=["a"]).rejected_subscriptions == ["a"]
    assert reply("command", errorMsg="camel", error_msg="snake").error_msg == "snake"


def test_null_in_a_state_deletes_like_the_empty_string():
    assert reply("connect", env={"cstate": {"a": None, "b": ""}}).cstate == {"a": "", "b": ""}


def test_a_restore_reply_changes_states_streams_and_subscriptions():
    answer = reply(
        "restore",
        status=1,
        env={"istate": {CHANNEL: '{"room":"8"}'}},
        rejected_subscriptions=["gone"],
        streams=[
            {"identifier": CHANNEL, "stop_streams": True, "stopped_streams": ["a"], "streams": ["b"]},
            {"identifier": "x", "stoppedStreams": ["c"]},
        ],
    )
    assert answer.istate == {CHANNEL: '{"room":"8"}'}
    assert answer.rejected_subscriptions == ["gone"]
    assert answer.restored_streams == [
        RestoredStreams(CHANNEL, True, ["a"], ["b"]),
        RestoredStreams("x", False, ["c"], []),
    ]
    assert answer.streams == []


@pytest.mark.parametrize(
    ("method", "values", "key"),
    [
        ("connect", {"status": "GREAT"}, "status"),
        ("connect", {"status": 3}, "status"),
        ("connect", {"status": True}, "status"),
        ("connect", {"status": 1.0}, "status"),
        ("connect", {"status": [1]}, "status"),
        ("connect", {"identifiers": {"user": 1}}, "identifiers"),
        ("connect", {"transmissions": "{}"}, "transmissions"),
        ("connect", {"transmissions": ["{}", {"type": "welcome"}]}, "transmissions[1]"),
        ("connect", {"transmissions": [None]}, "transmissions[0]"),
        ("connect", {"env": []}, "env"),
        ("connect", {"env": {"cstate": {"plan": 1}}}, "env.cstate['plan']"),
        ("command", {"env": {"istate": ""}}, "env.istate"),
        ("command", {"disconnect": 0}, "disconnect"),
        ("command", {"stopStreams": "true"}, "stop_streams"),
        ("command", {"streams": {"a": 1}}, "streams"),
        ("command", {"error_msg": 5}, "error_msg"),
        ("command", {"presence": "join"}, "presence"),
        ("command", {"presence": {"info": {}}}, "presence.info"),
        ("restore", {"streams": ["a"]}, "streams[0]"),
        ("restore", {"streams": {}}, "streams"),
        ("restore", {"streams": [{"streams": ["a"]}]}, "streams[0].identifier"),
        ("restore", {"streams": [{"identifier": "a", "stop_streams": 1}]}, "streams[0].stop_streams"),
    ],
)
def test_a_wrong_type_fails_the_call_and_names_the_key(method: str, values: dict[str, Any], key: str):
    error = failure(method, json.dumps(values).encode())
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)
    assert str(error).startswith(f"{key}: ")


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"status":1', b"null", b"[]", b'{"a":"\xff"}', b"[" * 5000])
def test_what_is_no_json_object_fails_the_call(body: bytes):
    error = failure("connect", body)
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)
    assert "answer" in str(error)
