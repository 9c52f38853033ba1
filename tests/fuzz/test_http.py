"""Whatever is sent to the HTTP endpoints: a typed answer or a closed connection, and the server goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, globalLogPublisher

from tests.fuzz.inputs import almost, bodies, cut
from tests.transports.support import Cable, Client

pytestmark = pytest.mark.statement("F64")

KEY = "key"
#: Every endpoint there is on the main port.
PATHS = (
    *("/_broadcast", "/api/publish", "/api/presence/chat/users", "/api/streams/chat/history", "/health", "/ready"),
    *("/events", "/events?stream=chat", "/cable", "/nowhere", "/metrics", "/api/presence/chat%2F1/users"),
    "/api/streams/chat/history?offset=1&epoch=x&limit=2",
)
STATUSES = {200, 201, 400, 401, 403, 404, 405, 410, 413, 422, 426, 431, 501, 503}


@pytest.fixture(params=["direct", "plain"])
def made(request: pytest.FixtureRequest) -> Iterator[Cable]:
    """A server with every endpoint on one port; errors that only reach the log fail the test."""
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None or event.get("isError"):
            failures.append(event)

    server = Cable(
        request.param,
        broadcast_key=KEY,
        api_secret=KEY,
        sse=True,
        metrics_http="/metrics",
        http_broadcast_max_body=4000,
        api_max_body=4000,
    )
    globalLogPublisher.addObserver(observe)
    yield server
    globalLogPublisher.removeObserver(observe)
    server.close()
    assert failures == []


names = st.sampled_from(
    [
        *("Authorization", "Content-Length", "Content-Type", "Transfer-Encoding", "Connection", "Upgrade", "Expect"),
        *("Idempotency-Key", "Last-Event-ID", "Origin", "X-Request-ID", "X-Forwarded-For", "Accept", "Host", "Range"),
        *("X-JID", "If-None-Match", "Cookie", "Sec-WebSocket-Key", "Sec-WebSocket-Version"),
    ]
)
values = st.sampled_from(
    [
        *(f"Bearer {KEY}", "Bearer", "chunked", "chunked, gzip", "close", "keep-alive", "upgrade", "websocket"),
        *("100-continue", "-1", "0", "5", "99999999999999999999", "1/e/chat", "9" * 500, "application/json", "13"),
        *("bytes=0-1", "multipart/form-data; boundary=x", "multipart/form-data", "::1, ", "\xff\xfe", ""),
    ]
) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=20)


segments = st.binary(max_size=4).map(quote) | st.text("%/.;?0aF", max_size=5)
numbers = st.integers().map(str) | st.sampled_from(["", "1", "9" * 5000, "1e3", "%FF", "x"])
queries = st.dictionaries(
    st.sampled_from(["offset", "epoch", "since", "limit", "stream", "channel", "raw", "history_since", "identifier"]),
    numbers | segments,
    max_size=4,
).map(lambda parameters: "&".join(f"{name}={value}" for name, value in parameters.items()))
reads = st.builds("/api/presence/{}/users".format, segments) | st.builds(
    "/api/streams/{}/history?{}".format, st.just("chat") | segments, queries
)
paths = st.sampled_from(PATHS) | reads | st.builds("/events?{}".format, queries)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is well formed, but may make no sense."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "TRACE", "get", "PRI", "\xff"]))
    path = draw(paths) + draw(st.just("") | st.text("?&=%/.0aF\xff;", max_size=8))
    body = draw(bodies)
    headers = [("Host", "cable.example")]
    if draw(st.booleans()):
        headers.append(("Authorization", f"Bearer {KEY}"))
    headers += draw(st.lists(st.tuples(names, values), max_size=4))
    if draw(st.integers(0, 3)):
        headers.append(("Content-Length", str(len(body))))
    elif draw(st.booleans()):
        headers.append(("Transfer-Encoding", "chunked"))
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    lines = [f"{method} {path} HTTP/1.{draw(st.sampled_from('0119'))}", *(f"{n}: {v}" for n, v in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def publishing(body: bytes) -> bytes:
    """A request that publishes *body*."""
    head = f"POST /api/publish HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def statuses(client: Client) -> list[int]:
    """What the answers in everything it was sent say."""
    client.read()
    return [int(found) for found in re.findall(rb"(?:^|\n|\}|\])HTTP/1\.1 (\d{3}) ", client.received)]


def check(made: Cable, pieces: list[bytes]) -> None:
    """Send them on a connection of their own; nothing may be wrong then, and others are served."""
    client = made.connect()
    for piece in pieces:
        if client.ended:
            break
        try:
            client.send(piece)
        except OSError:  # the server had enough
            break
        client.read()
    found = set(statuses(client))
    assert found - {100, 101} <= STATUSES, found
    client.sock.close()
    made.clients.remove(client)
    made.run()
    assert made.metrics.value("internal_errors_total") == 0
    other = made.connect()
    assert other.get("/health").status == 200
    other.sock.close()
    made.clients.remove(other)
    made.run()


def run(made: Cable, strategy: st.SearchStrategy[list[bytes]], examples: int) -> None:
    """So many examples on one server, which then publishes and delivers as ever."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(pieces: list[bytes]) -> None:
        check(made, pieces)

    each()
    subscriber = made.subscriber("after")
    subscriber.messages()
    poster = made.connect()
    poster.send(publishing(b'{"stream":"after","data":"x"}'))
    assert poster.head().status == 201
    assert subscriber.payloads() == ["x"]


def test_a_request_that_makes_no_sense_is_answered_and_the_server_goes_on(made):
    run(made, cut(requests()), 300)


def test_bytes_that_are_almost_a_request_do_no_harm(made):
    run(made, cut(almost(requests())), 150)


def test_any_question_about_a_stream_is_answered_or_refused(made):
    def reading(target: str) -> list[bytes]:
        return [f"GET {target} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()]

    run(made, reads.map(reading), 300)


def test_any_body_of_a_publication_is_stored_or_refused(made):
    run(made, bodies.map(lambda body: [publishing(body)]), 150)
