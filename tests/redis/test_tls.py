"""TLS to Redis: what is checked, what is shown, and what stops the start."""

from __future__ import annotations

import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.defer import Deferred

from anycable_tx.errors import ConfigurationError
from anycable_tx.redis.tls import client_side
from anycable_tx.testing.redis_servers import RedisServer, Sentinels
from tests.redis.conftest import Make
from tests.redis.support import SETTINGS, Kept
from tests.rpc.test_grpc_tls import AUTHORITY, ELSEWHERE, GOOD, STRANGER, Certificate, certificate

pytestmark = pytest.mark.statement("BR-75")

CLIENT = certificate("client.test", by=AUTHORITY)


class Files:
    """PEM files of certificates and their keys."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def cert(self, of: Certificate) -> str:
        path = self._directory / f"{of.certificate.serial_number}.crt"
        path.write_text(of.pem)
        return str(path)

    def key(self, of: Certificate) -> str:
        path = self._directory / f"{of.certificate.serial_number}.key"
        path.write_bytes(of.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def front(target: int, context: ssl.SSLContext) -> Iterator[int]:
    """Speaks TLS on the port it gives, and hands on to *target*: the servers of the tests have no TLS themselves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with (
            suppress(OSError),
            plain,
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", target)) as server,
        ):
            back = threading.Thread(target=carry, args=(server, client), daemon=True)
            back.start()
            carry(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def server_side(files: Files, shown: Certificate, clients: Certificate | None = None) -> ssl.SSLContext:
    """Shows *shown*; with *clients*, wants a certificate that authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert(shown), files.key(shown))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.cert(clients))
    return context


def test_without_a_check_any_certificate_will_do(own: RedisServer, make: Make, files: Files) -> None:
    with front(own.port, server_side(files, ELSEWHERE)) as port:
        it = make(f"rediss://127.0.0.1:{port}")
        assert it.ask("SET", "k", "v") == b"OK"
        it.subscribe("a")
        own.ask("PUBLISH", "a", "x")
        it.until(lambda: it.heard.messages)
        it.stop()


def test_with_the_check_the_certificate_has_to_be_for_the_host(own: RedisServer, make: Make, files: Files) -> None:
    trusted = {"redis_tls_verify": True, "redis_tls_ca_cert_path": files.cert(AUTHORITY)}
    with front(own.port, server_side(files, GOOD)) as port:
        it = make(f"rediss://localhost:{port}", **trusted)
        assert it.ask("SET", "k", "v") == b"OK"
        it.stop()
    with front(own.port, server_side(files, ELSEWHERE)) as port:
        assert "not for this name" in _why(make, f"rediss://localhost:{port}", **trusted)
        it = make(f"rediss://localhost:{port}?skip_verify=true", **trusted)
        assert it.ask("SET", "k", "v") == b"OK"
        it.stop()
    stranger = {"redis_tls_verify": True, "redis_tls_ca_cert_path": files.cert(STRANGER)}
    with front(own.port, server_side(files, GOOD)) as port:
        assert "certificate verify failed" in _why(make, f"valkeys://localhost:{port}", **stranger)


def _why(make: Make, url: str, **settings: Any) -> str:
    """Why a client does not get there."""
    it: Kept = make(url, started=False, **settings)
    starting = Deferred.fromCoroutine(it.client.start())
    it.until(lambda: it.metrics.value("redis_failed_attempts_total"))
    why = it.client.problem()
    it.reactor.result(it.client.stop())
    it.reactor.result(starting)
    return why


def test_a_server_that_wants_a_certificate_is_shown_one(own: RedisServer, make: Make, files: Files) -> None:
    shown = {"redis_tls_client_cert_path": files.cert(CLIENT), "redis_tls_client_key_path": files.key(CLIENT)}
    trusted = {"redis_tls_verify": True, "redis_tls_ca_cert_path": files.cert(AUTHORITY)}
    with front(own.port, server_side(files, GOOD, clients=AUTHORITY)) as port:
        for settings in (shown, {**shown, **trusted}):
            it = make(f"rediss://localhost:{port}", **settings)
            assert it.ask("SET", "k", "v") == b"OK"
            it.stop()
        assert _why(make, f"rediss://localhost:{port}", **trusted)


def test_a_version_before_1_2_is_not_spoken(own: RedisServer, make: Make, files: Files) -> None:
    context = server_side(files, GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is what the test is about
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1
    with front(own.port, context) as port:
        assert _why(make, f"rediss://localhost:{port}")


@pytest.mark.statement("BR-76")
def test_tls_to_the_master_that_plain_sentinels_name(make: Make, files: Files) -> None:
    with Sentinels() as group, front(group.master().port, server_side(files, GOOD)) as port:
        master = group.master()
        for watcher in group.watchers:
            watcher.ask("SENTINEL", "REMOVE", group.name)
            watcher.ask("SENTINEL", "MONITOR", group.name, "127.0.0.1", str(port), "2")
        it = make(f"rediss://{group.name}", redis_sentinels=group.sentinels)
        it.until(lambda: it.client.problem() == "")
        assert it.ask("SET", "k", "v") == b"OK"
        assert master.ask("GET", "k") == b"v"
        it.stop()


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_go_together(files: Files, given: str, missing: str) -> None:
    settings = {**SETTINGS, f"redis_tls_client_{given}_path": getattr(files, given)(CLIENT)}
    with pytest.raises(ConfigurationError, match=rf"^redis_tls_client_{missing}_path: .*_{given}_path"):
        client_side(settings, verify=False)


@pytest.mark.parametrize("option", [f"redis_tls_{each}_path" for each in ("ca_cert", "client_cert", "client_key")])
@pytest.mark.parametrize("content", [None, "no PEM"])
def test_a_file_that_cannot_be_used_stops_the_start(
    files: Files, make: Make, tmp_path: Path, option: str, content: str | None
) -> None:
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_text(content)
    good = {"redis_tls_client_cert_path": files.cert(CLIENT), "redis_tls_client_key_path": files.key(CLIENT)}
    with pytest.raises(ConfigurationError, match=rf"^{option}: .*bad\.pem"):
        make("rediss://localhost", started=False, **{**good, option: str(path)})
    make("redis://localhost", started=False, **{**good, option: str(path)})  # it is for TLS only


def test_so_does_the_key_of_another_certificate(files: Files) -> None:
    shown = {"redis_tls_client_cert_path": files.cert(CLIENT), "redis_tls_client_key_path": files.key(GOOD)}
    with pytest.raises(ConfigurationError, match=r"^redis_tls_client_key_path: .* not the one of the certificate"):
        client_side({**SETTINGS, **shown}, verify=False)
