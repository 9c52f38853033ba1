"""What requests for events ask for."""

from __future__ import annotations

import json

import pytest

from anycable_tx.cable.codec import HistoryAsk
from anycable_tx.cable.messages import Position
from anycable_tx.errors import BadCommand
from anycable_tx.transports.event_requests import Wanted, read_request
from anycable_tx.transports.handshake import Head


def read(query: str = "", body: bytes = b"", *, method: str = "GET", **headers: str) -> Wanted:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_request(Head(method, f"/events?{query}", "/events", query, given), body)


def asked(query: str = "stream=s", **headers: str) -> HistoryAsk | None:
    [command] = read(query, **headers).commands
    return command.history


@pytest.mark.statement("HE-20")
def test_the_strongest_parameter_names_the_subscription() -> None:
    parameters = [
        ("identifier=any+text", "any text"),
        ("channel=A%22b", '{"channel":"A\\"b"}'),
        ("stream=s/1", '{"channel":"$pubsub","stream_name":"s/1"}'),
        ("signed_stream=x--y", '{"channel":"$pubsub","signed_stream_name":"x--y"}'),
        ("turbo_signed_stream_name=t", '{"channel":"Turbo::StreamsChannel","signed_stream_name":"t"}'),
    ]
    for n, (_, identifier) in enumerate(parameters):
        query = "&".join(reversed([parameter for parameter, _ in parameters[n:]]))
        [command] = read(query).commands
        assert (command.name, command.identifier, command.history) == ("subscribe", identifier, None)


def test_an_empty_parameter_is_none_and_of_repeated_ones_the_last_counts() -> None:
    assert read("identifier=&channel=a&channel=b").commands[0].identifier == '{"channel":"b"}'


@pytest.mark.statement("HE-18")
def test_without_a_parameter_there_is_nothing_to_subscribe_to() -> None:
    with pytest.raises(BadCommand, match=r"^nothing to subscribe to: one of the parameters identifier, channel,"):
        read("raw=1")


@pytest.mark.parametrize(
    ("value", "raw"),
    [("1", True), ("t", True), ("TRUE", True), ("y", True), ("0", False), ("yes", False), ("", False)],
)
def test_raw_is_switched_on_by_four_words(value: str, raw: bool) -> None:
    assert read(f"stream=s&raw={value}").raw is raw
    assert read(f"raw={value}", method="POST").raw is raw


@pytest.mark.statement("HE-27")
@pytest.mark.parametrize(
    ("id", "stream", "position"),
    [
        ("5/e/s", "s", Position("e", 5)),
        ("0/e/s", "s", Position("e", 0)),
        ("5/e/a/b//c", "a/b//c", Position("e", 5)),
        ("5/e/ü".encode().decode("latin-1"), "ü", Position("e", 5)),
    ],
)
def test_the_last_id_is_the_position_in_the_stream_it_names(id: str, stream: str, position: Position) -> None:
    assert asked(last_event_id=id) == HistoryAsk({stream: position}, 0, sole=True)


@pytest.mark.parametrize("id", ["", "x", "5/e", "5"])
def test_an_id_that_is_none_of_ours_is_ignored(id: str) -> None:
    assert asked(last_event_id=id) is None


@pytest.mark.parametrize("offset", ["", "x", "-1", "1.5", "٣", "9" * 30])
def test_an_id_with_a_broken_offset_is_refused(offset: str) -> None:
    with pytest.raises(BadCommand, match=r"^Last-Event-ID: expected <offset>/<epoch>/<stream>, got the offset "):
        asked(last_event_id=f"{offset}/e/s".encode().decode("latin-1"))


@pytest.mark.statement("HE-28")
def test_history_since_is_whole_seconds() -> None:
    assert asked("stream=s&history_since=1700000000") == HistoryAsk(None, 1_700_000_000, sole=True)
    assert asked("stream=s&history_since=0") == asked("stream=s&history_since=-5") == HistoryAsk(None, 1, sole=True)
    assert asked("stream=s&history_since=") is None
    both = asked("stream=s&history_since=7", last_event_id="5/e/s")
    assert both == HistoryAsk({"s": Position("e", 5)}, 7, sole=True)
    for wrong in ("x", "1.5", "1e9", "1_0", "%20 1", "9" * 30):
        with pytest.raises(BadCommand, match=r"^history_since: expected whole seconds since 1970, got "):
            asked(f"stream=s&history_since={wrong}")


@pytest.mark.statement("HE-33")
def test_every_line_of_a_post_subscribes_whatever_its_command_is() -> None:
    lines = [
        {"command": "subscribe", "identifier": "a", "history": {"streams": {"s": {"offset": 1, "epoch": "e"}}}},
        {"command": "whisper", "identifier": "b", "presence": {"id": "me"}},
        {"identifier": "c"},
    ]
    body = b"\n\r\n".join(json.dumps(line).encode() for line in lines) + b"\n"
    found = read("stream=ignored&history_since=x", body, method="POST", last_event_id="x/y/z")
    assert [c.identifier for c in found.commands] == ["a", "b", "c"]
    assert [c.history for c in found.commands] == [HistoryAsk({"s": Position("e", 1)}, 0), None, None]
    assert found.commands[1].presence == ("me", None)
    assert found.whole


@pytest.mark.statement("HE-33")
def test_a_post_may_be_empty_and_a_broken_line_is_named() -> None:
    assert read(body=b" \n\n", method="POST").commands == []
    for line, why in (
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object, got null"),
    ):
        with pytest.raises(BadCommand, match=f"^line 2: {why}"):
            read(body=b'{"identifier":"a"}\n' + line, method="POST")
