"""Publishing over the API: what is answered, and what it shares with the HTTP broadcaster."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from anycable_tx.errors import BrokerUnavailable
from anycable_tx.testing.sync import result_of
from tests.api.support import content


@pytest.mark.statement("HE-38")
def test_a_publication_is_answered_201_with_its_position(world):
    it = world()
    epoch = it.node.broker.epoch
    for offset in (1, 2):
        answer = it.publish({"stream": "chat", "data": "x"})
        assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
        assert content(answer) == {"stream": "chat", "offset": offset, "epoch": epoch, "duplicate": False}
    assert result_of(it.node.broker.tail("chat")).offset == 2
    assert it.metrics.value("publications_total") == 2


def test_a_batch_is_answered_in_its_order_and_of_one_too(world):
    it = world()
    answer = it.publish([{"stream": "a", "data": "1"}, {"stream": "b", "data": "2"}, {"stream": "a", "data": "3"}])
    assert [(e["stream"], e["offset"]) for e in content(answer)] == [("a", 1), ("b", 1), ("a", 2)]
    assert len(content(it.publish(b' [{"stream":"a","data":"1"}]'))) == 1


def test_what_is_not_stored_has_no_position(world):
    transient = {"stream": "chat", "data": "x", "meta": {"transient": True}}
    assert content(world().publish(transient)) == {"stream": "chat", "duplicate": False}
    kept_nowhere = world(broker="none").publish({"stream": "chat", "data": "x"})
    assert content(kept_nowhere) == {"stream": "chat", "duplicate": False}


@pytest.mark.statement("F34")
def test_a_repeated_publication_is_answered_with_the_first_position(world):
    it = world()
    body = {"stream": "chat", "data": "x"}
    first = content(it.publish(body, Idempotency_Key="order-17"))
    it.publish({"stream": "chat", "data": "y"})
    again = content(it.publish(body, Idempotency_Key="order-17"))
    assert again == first | {"duplicate": True}
    assert result_of(it.node.broker.tail("chat")).offset == 2


def test_an_id_counts_for_both_ways_in(world):
    it = world(http_broadcast_port=8090, public=True)
    body = b'{"stream":"chat","data":"x","meta":{"id":"i"}}'
    assert it.peer(port=8090).ask("POST", "/_broadcast", body).status == 201
    assert content(it.publish(body))["duplicate"] is True


def test_a_remote_disconnect_is_sent(world):
    it = world()
    answer = it.publish({"command": "disconnect", "payload": {"identifier": "u1", "reconnect": False}})
    assert (answer.status, content(answer)) == (201, {"command": "disconnect"})
    assert it.metrics.value("remote_commands_total") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"data":"x"}',
        b'{"stream":"a","data":"x","meta":1}',
        b'[{"stream":"a","data":"x"},{"data":"x"}]',
        b'{"command":"takeover","payload":{"sid":"x"}}',
    ],
)
def test_what_is_no_publication_is_answered_422_with_the_reason(world, body):
    it = world()
    answer = it.publish(body)
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    assert content(answer)["code"] == "bad_publication"
    assert content(answer)["detail"]
    assert it.metrics.value("failed_broadcast_msg_total") == 1
    assert result_of(it.node.broker.tail("a")) is None or result_of(it.node.broker.tail("a")).offset == 0


def test_when_not_strict_it_is_counted_and_answered_201(world):
    it = world(api_strict=False)
    answer = it.publish(b"{")
    assert (answer.status, answer.body) == (201, b"")
    assert it.metrics.value("failed_broadcast_msg_total") == 1


def test_data_that_is_no_string_is_refused_where_that_is_asked_for(world):
    assert world().publish({"stream": "a", "data": {"b": 1}}).status == 201
    assert world(broadcast_lenient=False).publish({"stream": "a", "data": {"b": 1}}).status == 422


def test_a_body_that_is_too_large_is_answered_413(world):
    it = world(api_max_body=100)
    assert it.publish({"stream": "a", "data": "x" * 100}).status == 413


def test_a_broker_that_is_away_is_waited_for_and_then_answered_501(world, monkeypatch):
    it = world(broadcast_hold=3)

    async def unavailable(publication):
        raise BrokerUnavailable("it is down")

    monkeypatch.setattr(it.node.broker, "publish", unavailable)
    peer = it.peer()
    peer.request("POST", "/api/publish", b'{"stream":"a","data":"x"}')
    it.reactor.pump([0.1] * 25)
    assert peer.answers() == []
    it.reactor.pump([0.1] * 10)
    [answer] = peer.answers()
    assert (answer.status, content(answer)["code"]) == (501, "unavailable")
    assert it.metrics.value("rejected_publications_total", "unavailable") == 1


def test_a_stopped_api_answers_nothing_and_finishes_what_it_took(world, monkeypatch):
    it = world()
    publish, waiting = it.node.broker.publish, []

    async def held(publication):
        waiting.append(Deferred())
        await waiting[-1]
        return await publish(publication)

    monkeypatch.setattr(it.node.broker, "publish", held)
    taken, late = it.peer(), it.peer()
    taken.request("POST", "/api/publish", b'{"stream":"a","data":"x"}')
    stopping = Deferred.fromCoroutine(it.server.api.stop())
    assert not stopping.called
    late.request("POST", "/api/publish", b'{"stream":"a","data":"y"}')
    assert (late.closed, late.answers()) == (True, [])
    waiting[0].callback(None)
    assert taken.answers()[0].status == 201
    assert stopping.called


def test_an_error_nobody_expected_is_answered_500_and_counted(world, monkeypatch):
    it = world()

    async def broken(publication):
        raise ZeroDivisionError

    monkeypatch.setattr(it.node.broker, "publish", broken)
    answer = it.publish({"stream": "a", "data": "x"})
    assert (answer.status, content(answer)["code"]) == (500, "internal")
    assert it.metrics.value("internal_errors_total") == 1
