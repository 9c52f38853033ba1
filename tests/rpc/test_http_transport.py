"""Calls over HTTP, to real servers that answer, fail, and misbehave."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogPublisher

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.http_connections import IDLE
from anycable_tx.rpc.http_transport import HttpTransport, create
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply, Transport
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_http_app import HttpApp
from tests.rpc.http_support import RawServer, RealReactor, Received, answer
from tests.transports.test_tls import make_files, only

SETTINGS = {
    "rpc_host": "http://127.0.0.1:1/",
    "http_rpc_secret": "",
    "rpc_request_timeout": 0,
    "rpc_concurrency": 28,
    "rpc_concurrency_max": 100,
    "rpc_max_call_recv_size": 0,
    "rpc_tls_root_ca": "",
    "rpc_tls_verify": True,
}
ENV = {"url": "http://localhost:8080/cable", "headers": {"REMOTE_ADDR": "127.0.0.1"}}
MESSAGE = {"command": "message", "identifier": "i", "connection_identifiers": "u", "data": "{}", "env": ENV}
#: An answer that is not all there.
HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"st'

Make = Callable[..., HttpTransport]


@pytest.fixture(scope="module")
def reactor() -> Iterator[RealReactor]:
    reactor = RealReactor()
    yield reactor
    reactor.close()


@pytest.fixture
def make(reactor: RealReactor) -> Iterator[Make]:
    """Makes transports; at the end they are stopped, and nothing may be left of them."""
    made: list[HttpTransport] = []

    def make(url: str, **settings: Any) -> HttpTransport:
        made.append(create({**SETTINGS, "rpc_host": url, **settings}, reactor, Metrics()))
        reactor.result(made[-1].start())
        return made[-1]

    yield make
    for each in made:
        reactor.result(each.stop())
    reactor.until(reactor.at_rest)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    made: list[RawServer] = []

    def serve(script: Callable[[Received], bytes | None] | bytes | None = None, **more: Any) -> RawServer:
        server = RawServer(script if callable(script) else lambda _: script, **more)
        made.append(server)
        return server.__enter__()

    yield serve
    for each in made:
        each.__exit__()


@pytest.fixture
def ask(reactor: RealReactor) -> Callable[..., RpcReply]:
    """One call, and its reply."""

    def ask(
        transport: Transport, method: str = "command", request: Any = MESSAGE, sid: str = "s1", within: Any = None
    ) -> Any:
        return reactor.result(transport.call(method, request, sid, within))

    return ask


@pytest.fixture
def fail(ask: Callable[..., RpcReply]) -> Callable[..., CallFailed]:
    """One call, and its failure."""

    def fail(*args: Any, **more: Any) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            ask(*args, **more)
        return caught.value

    return fail


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


# -- requests


def test_an_application_is_asked_and_its_replies_arrive(make, ask):
    with HttpApp(Application(), secret="key") as http:
        transport = make(http.url, http_rpc_secret="key")
        assert transport.announcement == f"HTTP, {http.url}"
        assert ask(transport, "connect", {"env": ENV}).identifiers == '{"user": "s1"}'
        assert ask(transport).transmissions == ['{"identifier": "i", "message": {}}']
        assert ask(transport, "disconnect", {"identifiers": "u", "env": ENV}).status == 1
        assert http.app.asked == [
            ("connect", {"env": ENV}, "s1"),
            ("command", MESSAGE, "s1"),
            ("disconnect", {"identifiers": "u", "env": ENV}, "s1"),
        ]


def test_a_request_has_the_headers_backends_look_at(make, ask, serve):
    server = serve(answer())
    ask(make(server.url, http_rpc_secret="k3y"), "connect", {"env": ENV}, "V1StGXR8")
    [request] = server.received
    assert request.line == "POST /_anycable/connect HTTP/1.1"
    assert request.headers == {
        "host": server.url.split("/")[2],
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "authorization": "Bearer k3y",
        "x-anycable-meta-sid": "V1StGXR8",
        "x-anycable-meta-protov": "v1",
    }


@pytest.mark.statement("RA-8")
def test_without_a_secret_there_is_no_authorization(make, ask, serve):
    server = serve(answer())
    ask(make(server.url))
    assert "authorization" not in server.received[0].headers


@pytest.mark.parametrize(
    ("base", "target"),
    [
        ("", "/command"),
        ("/", "/command"),
        ("/_anycable", "/_anycable/command"),
        ("//a//b/", "/a/b/command"),
        ("/a?key=1&x=/y//z", "/a/command?key=1&x=/y//z"),
        ("?key=1", "/command?key=1"),
    ],
)
def test_the_method_is_joined_to_the_path_of_the_base(make, ask, serve, base: str, target: str):
    server = serve(answer())
    ask(make(server.url.removesuffix("/_anycable") + base))
    assert server.received[0].line == f"POST {target} HTTP/1.1"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:50051",
        "ftp://localhost/",
        "http://",
        "http:///path",
        "http://localhost:port/",
        "http://localhost:0/",
        "http://localhost:70000/",
        "http://[::1/",
        "http://local host/",
        "http://localhost/pfad/ä",
        "http://user:s3cr3t@localhost/",
        "http://user:s3cr3t@local host/",
        "http://localhost:port/?token=s3cr3t",
        "https://my_service/",
        "https://a..b/",
    ],
)
def test_an_address_that_cannot_be_used_stops_the_start_without_showing_secrets(reactor, url: str):
    with pytest.raises(ConfigurationError, match=r"^rpc_host: ") as caught:
        create({**SETTINGS, "rpc_host": url}, reactor, Metrics())
    assert "s3cr3t" not in str(caught.value)


def test_the_announcement_has_no_query(reactor):
    transport = create({**SETTINGS, "rpc_host": "https://app.example:8443/a?token=s3cr3t"}, reactor, Metrics())
    assert transport.announcement == "HTTP, https://app.example:8443/a"


def test_a_secret_that_no_header_can_hold_stops_the_start(reactor):
    with pytest.raises(ConfigurationError, match="http_rpc_secret") as caught:
        create({**SETTINGS, "http_rpc_secret": "s3c\nr3t"}, reactor, Metrics())
    assert "s3c" not in str(caught.value).removeprefix("http_rpc_secret")


def test_proxies_of_the_environment_are_not_used(make, ask, serve, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert ask(make(serve(answer()).url)).status == 1


# -- answers


@pytest.mark.statement("RA-29")
@pytest.mark.parametrize(
    ("status", "code", "delivered"),
    [
        (400, Code.INVALID, True),
        (401, Code.UNAUTHENTICATED, False),
        (404, Code.UNKNOWN, True),
        (422, Code.INVALID, True),
        (429, Code.EXHAUSTED, False),
        (500, Code.UNKNOWN, True),
        (502, Code.UNAVAILABLE, True),
        (503, Code.EXHAUSTED, False),
        (504, Code.UNAVAILABLE, True),
        (201, Code.UNKNOWN, True),
        (299, Code.UNKNOWN, True),
    ],
)
def test_each_status_says_what_failed(make, fail, serve, status: int, code: Code, delivered: bool):
    server = serve(answer("that is why", f"{status} Whatever"))
    error = fail(make(server.url))
    assert (error.reason, error.delivered, error.retry_after) == (code, delivered, None)
    assert str(error).endswith(f"answered {status} Whatever: that is why")
    assert len(server.received) == 1


def test_no_content_is_no_reply(make, fail, serve):
    error = fail(make(serve(b"HTTP/1.1 204 No Content\r\n\r\n").url))
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)


@pytest.mark.statement("RA-29")
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": "0"}, 0.0),
        (
            {"retry_after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"},
            30.0,
        ),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "Wed, 21 Oct 99999 07:28:30 GMT"}, None),
    ],
)
def test_the_backend_may_say_when_to_come_again(make, fail, serve, status: int, headers: Any, seconds: Any):
    error = fail(make(serve(answer("", f"{status} Busy", **headers)).url))
    assert (error.reason, error.retry_after) == (Code.EXHAUSTED, seconds)


@pytest.mark.statement("RA-29")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(make, fail, serve, status: int):
    elsewhere = serve(answer())
    server = serve(answer("", f"{status} Moved", location=f"{elsewhere.url}/command"))
    error = fail(make(server.url))
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)
    assert f"to {elsewhere.url}/command" in str(error)
    assert not elsewhere.received


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_backend_without_restore_says_so(make, ask, fail, serve, status: int):
    def script(request: Received) -> bytes:
        return answer("", f"{status} No") if request.line.startswith("POST /_anycable/restore ") else answer()

    transport = make(serve(script).url)
    for _ in range(12):
        error = fail(transport, "restore", {"env": ENV})
        assert (error.reason, error.delivered) == (Code.UNIMPLEMENTED, False)
    assert ask(transport).status == 1  # it never affects other methods


def test_an_application_without_restore_is_an_old_one(make, fail):
    with HttpApp(Application()) as http:
        assert fail(make(http.url), "restore", {"env": ENV}).reason is Code.UNIMPLEMENTED


def test_a_wrong_bearer_is_refused(make, fail):
    with HttpApp(Application(), secret="right") as http:
        error = fail(make(http.url, http_rpc_secret="wrong"))
        assert error.reason is Code.UNAUTHENTICATED
        assert "wrong" not in str(error)
        assert http.app.asked == []


@pytest.mark.parametrize("body", ["", "<html>", '{"status":"GREAT"}', '{"transmissions":[1]}', "[]"])
def test_an_answer_nobody_can_read_fails_the_call(make, fail, serve, body: str):
    error = fail(make(serve(answer(body)).url))
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 OK fine\r\n\r\n", b"\x15\x03\x01\x00\x02\n"]
)
def test_an_answer_that_is_not_http_fails_the_call(make, fail, serve, garbage: bytes):
    error = fail(make(serve(garbage).url))
    assert (error.reason, error.delivered) == (Code.UNKNOWN, True)
    assert str(error).endswith("what came is not HTTP")


def test_an_answer_may_come_in_chunks_or_end_with_its_connection(make, ask, serve):
    chunks = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"sta\r\n7\r\ntus":1}\r\n0\r\n\r\n'
    assert ask(make(serve(chunks).url)).status == 1
    server = serve(b'HTTP/1.0 200 OK\r\n\r\n{"status":2}')
    server.hang_up = True
    assert ask(make(server.url)).status == 2


@pytest.mark.statement("RA-30")
@pytest.mark.parametrize("length", ["known", "chunks", "unknown"])
@pytest.mark.parametrize("limit", [0, 1000])
def test_an_oversized_answer_is_not_read(make, fail, serve, length: str, limit: int):
    body = b" " * ((limit or 4 * 1024 * 1024) + 1)
    whole = {
        "known": answer(body),
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body),
        "unknown": b"HTTP/1.1 200 OK\r\n\r\n" + body,
    }[length]
    server = serve(whole)
    error = fail(make(server.url, rpc_max_call_recv_size=limit))
    assert (error.reason, error.delivered) == (Code.TOO_LARGE, True)
    assert str(limit or 4194304) in str(error)


@pytest.mark.statement("RA-30")
def test_an_answer_of_just_the_limit_is_read(make, ask, serve):
    assert ask(make(serve(answer(b'{"status":1}'.ljust(1000))).url, rpc_max_call_recv_size=1000)).status == 1


# -- no answer


@pytest.mark.statement("RA-22")
def test_a_refused_connection_delivered_nothing(make, fail):
    error = fail(make(f"http://127.0.0.1:{free_port()}/"))
    assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)
    assert "refused" in str(error)


@pytest.mark.statement("RA-22")
def test_a_name_without_an_address_delivered_nothing(make, fail, reactor, monkeypatch: pytest.MonkeyPatch):
    def unknown(*args: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(reactor.nameResolver, "_getaddrinfo", unknown)
    error = fail(make("http://backend.invalid/"))
    assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)


def test_a_name_that_cannot_be_one_delivered_nothing(make, fail):
    error = fail(make("http://a..b/"))
    assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)
    assert "invalid hostname" in str(error)


def test_an_address_that_refuses_costs_little_time(make, ask, serve, reactor, monkeypatch: pytest.MonkeyPatch):
    server = serve(answer())
    port, dead = server.server_address[1], free_port()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number)) for number in (dead, port)]
    monkeypatch.setattr(reactor.nameResolver, "_getaddrinfo", lambda *_: found)
    transport = make("http://backend.test/_anycable")
    began = time.monotonic()
    assert ask(transport).status == 1
    assert time.monotonic() - began < 0.25


@pytest.mark.statement("RA-22")
@pytest.mark.parametrize("beginning", [None, HALF[:20], HALF])
def test_after_a_connection_that_broke_the_call_may_have_been_carried_out(make, fail, serve, beginning: Any):
    server = serve(beginning)
    server.hang_up = True
    error = fail(make(server.url))
    assert (error.reason, error.delivered) == (Code.UNAVAILABLE, True)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("settings", "within", "seconds"),
    [
        ({}, None, 3.0),
        ({}, 0, 3.0),
        ({}, 60.0, 3.0),
        ({}, 1.0, 1.0),
        ({"rpc_request_timeout": 7000}, None, 7.0),
        ({"rpc_request_timeout": 7000}, 5.0, 5.0),
    ],
)
@pytest.mark.parametrize("beginning", [b"", HALF])
def test_an_attempt_has_its_time(make, reactor, settings: Any, within: Any, seconds: float, beginning: bytes):
    with SlowServer(beginning) as server:
        calling = Deferred.fromCoroutine(make(server.url, **settings).call("command", MESSAGE, "s", within))
        reactor.until(lambda: server.asked)
        reactor.pass_time(seconds - 0.5)
        reactor.until(lambda: True)
        assert not calling.called
        reactor.pass_time(0.5)
        with pytest.raises(CallFailed) as caught:
            reactor.result(calling)
        assert (caught.value.reason, caught.value.delivered) == (Code.TIMEOUT, True)
        reactor.until(lambda: server.left)  # the connection was closed, and nobody waits for the rest


@pytest.mark.parametrize("beginning", [b"", HALF])
def test_a_cancelled_call_aborts_its_request(make, ask, reactor, beginning: bytes):
    with SlowServer(beginning) as server:
        transport = make(server.url)
        calling = Deferred.fromCoroutine(transport.call("command", MESSAGE, "s", None))
        reactor.until(lambda: server.asked)
        calling.cancel()
        with pytest.raises(CancelledError):
            reactor.result(calling)
        reactor.until(lambda: server.left)
        assert transport.problem() == ""


def test_a_stop_ends_the_calls_that_run_and_takes_no_more(make, fail, reactor):
    with SlowServer() as server:
        transport = make(server.url)
        calling = Deferred.fromCoroutine(transport.call("command", MESSAGE, "s", None))
        reactor.until(lambda: server.asked)
        reactor.result(transport.stop())
        with pytest.raises(CallFailed) as caught:
            reactor.result(calling)
        assert (caught.value.reason, caught.value.delivered) == (Code.UNAVAILABLE, True)
        error = fail(transport)
        assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)
        reactor.until(lambda: server.left)


class SlowServer:
    """Takes one request up to its *ending*, sends *beginning*, and no more; ``left`` once the client has gone."""

    def __init__(self, beginning: bytes = b"", *, ending: bytes = b"}") -> None:
        self._beginning, self._ending = beginning, ending
        self.asked = self.left = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"

    def __enter__(self) -> SlowServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.close()

    def _serve(self) -> None:
        sock, _ = self._listening.accept()
        with sock:
            while not sock.recv(65536).endswith(self._ending):
                pass
            sock.sendall(self._beginning)
            self.asked = True
            with contextlib.suppress(OSError):
                assert not sock.recv(1)
            self.left = True


# -- connections


def test_a_connection_is_used_again(make, ask, serve):
    server = serve(answer())
    transport = make(server.url)
    for _ in range(5):
        ask(transport)
    assert server.connections == 1


@pytest.mark.parametrize("status", ["404 Not Found", "503 Busy"])
def test_a_connection_is_used_again_after_an_error(make, fail, serve, status: str):
    server = serve(answer("no", status))
    transport = make(server.url)
    for _ in range(3):
        fail(transport)
    assert server.connections == 1


@pytest.mark.statement("RA-30")
@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 28), ({"rpc_concurrency": 3}, 3), ({"rpc_concurrency": 0, "rpc_concurrency_max": 40}, 40)],
)
def test_as_many_connections_are_kept_as_calls_run_at_a_time(make, reactor, serve, settings: Any, kept: int):
    barrier = threading.Barrier(40)

    def script(request: Received) -> bytes:
        barrier.wait(10)
        return answer()

    server = serve(script)
    transport = make(server.url, **settings)
    for _ in range(2):
        calls = [Deferred.fromCoroutine(transport.call("command", MESSAGE, "s", None)) for _ in range(40)]
        for call in calls:
            assert reactor.result(call).status == 1
    assert server.connections == 80 - kept


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nConnection: close\r\n",
        "HTTP/1.1 200 OK\r\nConnection: Close\r\n",
        "HTTP/1.1 200 OK\r\nConnection: foo, CLOSE\r\n",
        "HTTP/1.0 200 OK\r\n",
    ],
)
def test_a_connection_that_the_server_will_close_is_not_used_again(make, ask, serve, head: str):
    server = serve(f'{head}Content-Length: 12\r\n\r\n{{"status":1}}'.encode())  # and does not close it at once
    transport = make(server.url)
    for _ in range(3):
        assert ask(transport).status == 1
    assert server.connections == 3


def test_a_server_of_the_first_kind_may_keep_connections_too(make, ask, serve):
    server = serve(b'HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 12\r\n\r\n{"status":1}')
    transport = make(server.url)
    for _ in range(3):
        ask(transport)
    assert server.connections == 1


def test_an_idle_connection_is_closed_soon(make, ask, reactor, serve):
    server = serve(answer())
    transport = make(server.url)
    ask(transport)
    reactor.pass_time(IDLE - 0.1)
    ask(transport)
    assert server.connections == 1
    reactor.pass_time(IDLE)
    reactor.until(lambda: server.ended)
    ask(transport)
    assert server.connections == 2


def test_a_server_that_closes_idle_connections_fails_no_call(make, reactor, serve):
    """Real time: what is shown is that requests and the server's closing never cross."""
    server = serve(answer(), patience=1.0)
    transport = make(server.url)
    for pause in (0.98, 1.0, 1.0):
        calls = [Deferred.fromCoroutine(transport.call("command", MESSAGE, "s", None)) for _ in range(10)]
        for call in calls:
            assert reactor.result(call).status == 1
        until = time.monotonic() + pause
        reactor.until(lambda until=until: time.monotonic() >= until)
    assert server.given_up == 0
    assert len(server.received) == 30


def test_a_connection_that_the_server_closed_is_not_used(make, ask, reactor, serve):
    server = serve(answer())
    server.hang_up = True
    transport = make(server.url)
    for n in range(3):
        assert ask(transport).status == 1
        reactor.until(lambda: set(reactor.getReaders()) <= reactor._internalReaders)
        assert server.connections == n + 1


# -- the breaker


@pytest.mark.statement("RA-41")
def test_after_ten_failures_no_call_is_made_for_five_seconds(make, ask, fail, reactor, serve, logged):
    port = free_port()
    transport = make(f"http://127.0.0.1:{port}/_anycable")
    for _ in range(10):
        assert transport.problem() == ""
        assert fail(transport).reason is Code.UNAVAILABLE
    server = serve(answer(), port=port)
    error = fail(transport)
    assert (error.reason, error.delivered) == (Code.UNREACHABLE, False)
    assert not server.received
    assert f"calls to http://127.0.0.1:{port} failed so often" in transport.problem()
    assert [event["attrs"] for event in logged if "problem" in event] == [{"context": "rpc", "reason": "unreachable"}]
    reactor.pass_time(5)
    assert transport.problem() == ""
    assert ask(transport).status == 1


@pytest.mark.statement("RA-29")
@pytest.mark.parametrize("status", ["500 No", "502 No", "503 No", "504 No"])
def test_server_errors_open_the_breaker(make, fail, serve, status: str):
    server = serve(answer("", status))
    transport = make(server.url)
    for _ in range(10):
        assert fail(transport).reason is not Code.UNREACHABLE
    assert fail(transport).reason is Code.UNREACHABLE
    assert len(server.received) == 10


@pytest.mark.statement("RA-29")
@pytest.mark.parametrize("text", ["429 Later", "401 No", "404 No", "422 No", "200 OK"])
def test_other_answers_do_not_open_the_breaker(make, fail, serve, text: str):
    transport = make(serve(answer("no json", text)).url)
    for _ in range(12):
        assert fail(transport).reason is not Code.UNREACHABLE


def test_oversized_answers_do_not_open_the_breaker(make, fail, serve):
    transport = make(serve(answer("x" * 200)).url, rpc_max_call_recv_size=100)
    for _ in range(12):
        assert fail(transport).reason is Code.TOO_LARGE


def test_a_flapping_backend_answers_whenever_it_is_there(make, ask, fail):
    port = free_port()
    transport = make(f"http://127.0.0.1:{port}/_anycable")
    for _ in range(3):
        with RawServer(lambda _: answer(), port=port) as server:
            for _ in range(3):
                assert ask(transport).status == 1
            server.hang_up = True
            assert ask(transport).status == 1
        error = fail(transport)
        assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)


# -- TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_files(tmp_path_factory.mktemp("others"))


@pytest.fixture
def tls(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def authority(name: str) -> bytes:
    """A certificate, as PEM, of somebody called *name*."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("inline", [False, True])
def test_authorities_are_a_file_or_their_text(make, ask, serve, tls, files, inline: bool, tmp_path: Path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority("somebody") + files[0].read_bytes() + authority("somebody else"))
    server = serve(answer(), tls=tls)
    transport = make(server.url, rpc_tls_root_ca=bundle.read_text() if inline else str(bundle))
    for _ in range(3):
        assert ask(transport).status == 1
    assert server.connections == 1


@pytest.mark.statement("RA-22")
@pytest.mark.parametrize("authority", ["another", "the system's"])
def test_a_certificate_nobody_vouches_for_is_refused_before_anything_is_said(
    make, fail, serve, tls, others, authority: str
):
    server = serve(answer(), tls=tls)
    error = fail(make(server.url, rpc_tls_root_ca=str(others[0]) if authority == "another" else ""))
    assert (error.reason, error.delivered) == (Code.UNAUTHENTICATED, False)
    assert "certificate verify failed" in str(error)
    assert not server.received


def test_a_certificate_for_another_name_is_refused(make, fail, serve, tls, files):
    server = serve(answer(), tls=tls)
    error = fail(make(server.url.replace("localhost", "127.0.0.1"), rpc_tls_root_ca=str(files[0])))
    assert (error.reason, error.delivered) == (Code.UNAUTHENTICATED, False)
    assert "another name" in str(error)
    assert not server.received


@pytest.mark.statement("RA-9")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_check_can_be_turned_off_and_a_warning_says_so(make, ask, serve, tls, logged, host: str):
    server = serve(answer(), tls=tls)
    assert ask(make(server.url.replace("localhost", host), rpc_tls_verify=False)).status == 1
    [warning] = [event for event in logged if event["log_level"].name == "warn"]
    assert "rpc_tls_verify" in warning["log_format"]


@pytest.mark.statement("RA-9")
def test_there_is_no_warning_where_there_is_no_tls_or_it_is_checked(make, serve, tls, logged):
    make(serve(answer()).url, rpc_tls_verify=False)
    make(serve(answer(), tls=tls).url)
    assert not [event for event in logged if event["log_level"].name == "warn"]


@pytest.mark.parametrize("verify", [True, False])
def test_tls_is_1_2_or_newer(make, ask, fail, serve, tls, files, verify: bool):
    server = serve(answer(), tls=only(tls, ssl.TLSVersion.TLSv1_1))
    error = fail(make(server.url, rpc_tls_root_ca=str(files[0]), rpc_tls_verify=verify))
    assert (error.reason, error.delivered) == (Code.UNAUTHENTICATED, False)
    tls = only(tls, ssl.TLSVersion.TLSv1_2)
    assert ask(make(serve(answer(), tls=tls).url, rpc_tls_root_ca=str(files[0]), rpc_tls_verify=verify)).status == 1


def test_a_server_without_tls_is_no_https_backend(make, fail):
    with SlowServer(b"HTTP/1.1 400 Bad Request\r\n\r\n", ending=b"") as server:
        error = fail(make(server.url.replace("http", "https"), rpc_tls_verify=False))
    assert (error.reason, error.delivered) == (Code.UNAUTHENTICATED, False)


@pytest.mark.statement("RA-22")
def test_a_handshake_that_does_not_end_delivered_nothing(make, reactor, fail):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = make(f"https://127.0.0.1:{silent.getsockname()[1]}/")
        error = fail(transport, within=0.1)
        assert (error.reason, error.delivered) == (Code.TIMEOUT, False)


@pytest.mark.statement("RA-22")
def test_a_handshake_that_breaks_off_delivered_nothing(make, fail, serve):
    server = serve(None)
    server.patience = 0.05
    error = fail(make(server.url.replace("http", "https")))
    assert (error.reason, error.delivered) == (Code.UNAVAILABLE, False)


@pytest.mark.parametrize("given", ["/nowhere/ca.pem", "-----BEGIN CERTIFICATE-----\nrubbish", __file__])
def test_authorities_that_cannot_be_read_stop_the_start(reactor, given: str):
    with pytest.raises(ConfigurationError, match=r"^rpc_tls_root_ca: "):
        create({**SETTINGS, "rpc_host": "https://localhost/", "rpc_tls_root_ca": given}, reactor, Metrics())
