"""anycable_tx.nats.monitor"""

from __future__ import annotations

import json
from typing import Any

import pytest

from anycable_tx.nats.monitor import Monitor, Unanswered
from tests.rpc.http_support import RawServer, RealReactor, answer

ALL_WELL = {"name": "b", "current": True}


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (answer('{"status":"ok"}'), ""),
        (answer('{"status":"unavailable","error":"JetStream is away"}', "503 X"), "JetStream is away"),
        (answer('{"status":"unavailable"}', "503 X"), "unavailable"),
        (answer("{}", "404 X"), "it answers with 404"),
        (answer("[]"), "it does not answer with an object"),
    ],
)
def test_what_is_wrong_is_what_it_says(reactor: RealReactor, reply: bytes, problem: str) -> None:
    with RawServer(lambda request: reply) as server:
        monitor = Monitor(reactor, server.server_address[1], "/secret")
        assert reactor.result(monitor.problem()) == problem
        assert server.received[0].line == "GET /secret/healthz HTTP/1.1"
    reactor.until(reactor.at_rest)


@pytest.mark.parametrize("reply", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", answer("no JSON")])
def test_what_cannot_be_understood_is_no_answer(reactor: RealReactor, reply: bytes | None) -> None:
    with RawServer(lambda request: reply) as server:
        server.hang_up = True
        monitor = Monitor(reactor, server.server_address[1], "")
        assert reactor.result(monitor.problem()).startswith("it does not answer: ")
        with pytest.raises(Unanswered):
            reactor.result(monitor.lagging("me"))


def test_an_answer_that_does_not_come_is_not_waited_for(reactor: RealReactor) -> None:
    with RawServer(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") as server:
        monitor = Monitor(reactor, server.server_address[1], "")
        assert reactor.result(monitor.problem()).startswith("it does not answer: ")
        reactor.until(reactor.at_rest)


@pytest.mark.parametrize(
    ("meta", "streams", "expected"),
    [
        ({"leader": "me", "replicas": [ALL_WELL]}, [], []),
        ({"leader": "me", "replicas": [ALL_WELL, {"name": "c", "current": False}]}, [], ["c"]),
        ({"leader": "b", "replicas": [ALL_WELL, {"name": "c", "current": False}]}, [], []),
        ({"leader": "b", "replicas": [ALL_WELL, {"name": "c", "current": True, "offline": True}]}, [], ["c"]),
        (None, [], []),
        (
            {"leader": "b", "replicas": [ALL_WELL]},
            [
                {"cluster": {"leader": "me", "replicas": [{"name": "d"}, ALL_WELL]}},
                {"cluster": {"leader": "b", "replicas": [{"name": "c", "offline": True}]}},
                {"cluster": {"leader": "me"}},
                {},
            ],
            ["c", "d"],
        ),
    ],
)
def test_others_lag_by_the_word_of_whom_leads_or_when_they_are_away(
    reactor: RealReactor, meta: Any, streams: list[Any], expected: list[str]
) -> None:
    told = {"meta_cluster": meta, "account_details": [{"stream_detail": streams}, {}]}
    with RawServer(lambda request: answer(json.dumps(told))) as server:
        assert reactor.result(Monitor(reactor, server.server_address[1], "").lagging("me")) == expected
