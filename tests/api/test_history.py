"""The history of a stream, over the API: whole or refused (P4)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anycable_tx.api.pages import page
from anycable_tx.cable.messages import History, Position, StreamMessage
from tests.api.support import World, content


def test_everything_is_answered_when_nothing_is_gone(world):
    it = world()
    it.store("chat", "a", {"b": 1})
    answer = it.history("chat")
    assert answer.status == 200
    body = content(answer)
    assert [(m["offset"], m["message"]) for m in body["messages"]] == [(1, "a"), (2, {"b": 1})]
    assert body["position"] == {"offset": 2, "epoch": it.node.broker.epoch}
    assert body["more"] is False
    assert it.metrics.value("history_confirms_total") == 1


def test_what_follows_a_position_is_answered(world):
    it = world()
    epoch = it.store("chat", 1, 2, 3)[0].epoch
    for offset, expected in ((0, [1, 2, 3]), (2, [3]), (3, [])):
        body = content(it.history("chat", offset=offset, epoch=epoch))
        assert [m["message"] for m in body["messages"]] == expected
        assert body["position"] == {"offset": 3, "epoch": epoch}


def test_the_digits_and_the_type_of_a_publication_are_kept(world):
    it = world()
    it.publish(
        b'{"stream":"chat","data":"{\\"z\\":12345678901234567890.10,\\"a\\":1}","meta":{"broadcast_type":"t"}}'
    )
    answer = it.history("chat")
    assert b'"message":{"z":12345678901234567890.10,"a":1}' in answer.body
    assert content(answer)["messages"][0]["type"] == "t"


def test_an_unknown_stream_has_an_empty_history_and_a_position(world):
    it = world()
    assert content(it.history("chat/1")) == {
        "messages": [],
        "position": {"offset": 0, "epoch": it.node.broker.epoch},
        "more": False,
    }


def refusal(it: World, **query: object) -> tuple[int, str]:
    answer = it.history("chat", **query)
    assert answer.headers["content-type"] == "application/problem+json"
    assert it.metrics.value("rejected_reads_total", content(answer)["code"]) == 1
    return answer.status, content(answer)["code"]


def test_what_cannot_be_proven_whole_is_refused_with_the_reason(world):
    it = world(history_limit=2)
    epoch = it.store("chat", 1, 2, 3)[0].epoch
    assert refusal(it, offset=1, epoch="other") == (410, "unknown_epoch")
    assert refusal(it, offset=4, epoch=epoch) == (410, "future_offset")
    assert refusal(it, offset=0, epoch=epoch) == (410, "trimmed")
    assert it.metrics.value("history_rejects_total") == 3


def test_nothing_is_refused_where_nothing_is_missing(world):
    it = world(history_limit=2)
    epoch = it.store("chat", 1, 2, 3)[0].epoch
    assert [m["message"] for m in content(it.history("chat", offset=1, epoch=epoch))["messages"]] == [2, 3]


def test_what_is_too_old_is_refused_as_expired(world):
    it = world(history_ttl=10)
    epoch = it.store("chat", 1)[0].epoch
    it.reactor.advance(11)
    assert refusal(it, offset=0, epoch=epoch) == (410, "expired")
    assert it.history("chat", offset=1, epoch=epoch).status == 200


def test_a_broker_without_history_is_answered_501(world):
    assert refusal(world(broker="none")) == (501, "unsupported")


@pytest.mark.parametrize(
    "query",
    [
        {"offset": 1},
        {"epoch": "e"},
        {"offset": 1, "epoch": "e", "since": 1},
        {"offset": "x", "epoch": "e"},
        {"offset": -1, "epoch": "e"},
        {"offset": 2**53, "epoch": "e"},
        {"offset": "9" * 5000, "epoch": "e"},
        {"since": "now"},
        {"since": "1.5"},
        {"since": "\u0661"},
        {"limit": 0},
        {"limit": 1001},
        {"limit": ""},
    ],
)
def test_parameters_that_make_no_sense_are_named(world, query):
    it = world()
    answer = it.history("chat", **query)
    assert (answer.status, content(answer)["code"]) == (400, "bad_request")
    assert any(name in content(answer)["detail"] for name in query)


def test_a_long_history_is_read_page_by_page_with_none_twice_and_none_missing(world):
    it = world(history_limit=1000)
    it.store("chat", *range(25))
    seen, query = [], {"limit": 10}
    for more in (True, True, False):
        body = content(it.history("chat", **query))
        assert body["more"] is more
        seen += [m["message"] for m in body["messages"]]
        query = {"limit": 10, **body["position"]}
    assert seen == list(range(25))


def messages(sizes: list[int]) -> list[StreamMessage]:
    return [StreamMessage("s", b'"%b"' % (b"x" * size), n, n - 1, "e") for n, size in enumerate(sizes, 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=30), st.integers(1, 10), st.integers(0, 1000))
def test_a_page_ends_where_the_next_begins_whatever_its_bounds(sizes, limit, most):
    kept, top = messages(sizes), Position("e", len(sizes))
    seen, after, more = [], 0, True
    while more:
        body = json.loads(page(History(kept[after:], top), limit, most))
        offsets = [m["offset"] for m in body["messages"]]
        more = body["more"]
        assert len(offsets) <= limit
        assert offsets or not more
        seen += offsets
        after = body["position"]["offset"]
    assert seen == [m.offset for m in kept]
    assert after == top.offset
