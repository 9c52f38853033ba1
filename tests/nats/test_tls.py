"""TLS to NATS: what is checked, what is shown, and what stops the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from anycable_tx.errors import ConfigurationError
from anycable_tx.nats.tls import client_side
from anycable_tx.testing.nats_servers import KINDS, NatsServer
from tests.nats.conftest import Make
from tests.nats.support import SETTINGS, FakeServer, Kept
from tests.redis.test_tls import CLIENT, Files
from tests.rpc.test_grpc_tls import AUTHORITY, ELSEWHERE, GOOD, STRANGER, Certificate


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def secured(
    files: Files, shown: Certificate, *, kind: str = "nats", clients: Certificate | None = None
) -> NatsServer:
    """A server that shows *shown*; with *clients*, it wants a certificate that authority signed."""
    lines = [f'cert_file: "{files.cert(shown)}"', f'key_file: "{files.key(shown)}"']
    if clients is not None:
        lines += [f'ca_file: "{files.cert(clients)}"', "verify: true"]
    return NatsServer(f"tls {{ {', '.join(lines)} }}", kind=kind, jetstream=False)


def wait_for_problem(it: Kept, text: str) -> None:
    it.begin(it.client.start())
    it.until(lambda: text in it.problem)
    it.reactor.result(it.client.stop())


def works(it: Kept) -> None:
    heard, _ = it.subscribe("a")
    it.client.publish("a", bytes(300_000))
    it.until(lambda: heard)
    assert heard[0].data == bytes(300_000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_has_to_be_for_the_host(kind: str, make: Make, files: Files) -> None:
    with secured(files, GOOD, kind=kind) as server:
        works(make(f"tls://localhost:{server.port}", nats_tls_ca_cert_path=files.cert(AUTHORITY)))
        wait_for_problem(
            make(f"tls://localhost:{server.port}", started=False), "CERTIFICATE_VERIFY_FAILED"
        )  # the system's authorities do not know it
    with secured(files, ELSEWHERE, kind=kind) as server:
        it = make(f"tls://localhost:{server.port}", nats_tls_ca_cert_path=files.cert(AUTHORITY), started=False)
        wait_for_problem(it, "CERTIFICATE_VERIFY_FAILED")


def test_without_a_check_any_certificate_will_do(make: Make, files: Files) -> None:
    with secured(files, STRANGER) as server:
        works(make(f"tls://127.0.0.1:{server.port}", nats_tls_verify=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_wants_a_certificate_is_shown_one(kind: str, make: Make, files: Files) -> None:
    options: dict[str, Any] = {"nats_tls_ca_cert_path": files.cert(AUTHORITY)}
    with secured(files, GOOD, kind=kind, clients=AUTHORITY) as server:
        url = f"tls://localhost:{server.port}"
        own = {"nats_tls_client_cert_path": files.cert(CLIENT), "nats_tls_client_key_path": files.key(CLIENT)}
        works(make(url, **options, **own))
        it = make(url, **options, started=False)
        it.begin(it.client.start())
        it.until(lambda: it.metrics.value("nats_failed_attempts_total"))
        assert it.problem != ""
        it.reactor.result(it.client.stop())


def test_tls_is_used_when_the_server_wants_it(make: Make, files: Files) -> None:
    with secured(files, GOOD) as server:
        works(make(f"nats://localhost:{server.port}", nats_tls_ca_cert_path=files.cert(AUTHORITY)))


def test_nothing_secret_is_said_to_a_server_that_should_have_tls_and_has_none(make: Make) -> None:
    with FakeServer(auth_required=True) as server:
        it = make(f"tls://jo:s3cret@{server.url.removeprefix('nats://')}", started=False)
        wait_for_problem(it, "it has no TLS, which its address asks for")
        assert server.heard == []


def test_after_a_loss_it_is_there_again(make: Make, files: Files) -> None:
    with secured(files, GOOD) as server:
        it = make(f"tls://localhost:{server.port}", nats_tls_ca_cert_path=files.cert(AUTHORITY))
        heard, _ = it.subscribe("b")
        server.kill()
        it.until(lambda: it.events == ["down"])
        server.start()
        it.until(lambda: it.events == ["down", "up"])
        it.client.publish("b", b"x")
        it.until(lambda: heard)


class TestFiles:
    @pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
    def test_certificate_and_key_go_together(self, files: Files, given: str, missing: str) -> None:
        path = getattr(files, given)(CLIENT)
        with pytest.raises(ConfigurationError, match=f"nats_tls_client_{missing}_path: it is needed together with"):
            client_side({**SETTINGS, f"nats_tls_client_{given}_path": path})

    @pytest.mark.parametrize("name", ["ca_cert", "client_cert", "client_key"])
    def test_a_file_that_cannot_be_used_stops_the_start(self, files: Files, tmp_path: Path, name: str) -> None:
        pair = {"nats_tls_client_cert_path": files.cert(CLIENT), "nats_tls_client_key_path": files.key(CLIENT)}
        option = f"nats_tls_{name}_path"
        with pytest.raises(ConfigurationError, match=f"{option}: cannot read '.*/missing': No such file"):
            client_side({**SETTINGS, **pair, option: str(tmp_path / "missing")})
        (tmp_path / "empty").write_text("nothing")
        with pytest.raises(ConfigurationError, match=f"{option}: cannot use '.*/empty': there is no usable PEM"):
            client_side({**SETTINGS, **pair, option: str(tmp_path / "empty")})

    def test_so_does_the_key_of_another_certificate(self, files: Files) -> None:
        pair = {"nats_tls_client_cert_path": files.cert(CLIENT), "nats_tls_client_key_path": files.key(GOOD)}
        with pytest.raises(ConfigurationError, match=r"nats_tls_client_key_path: .*not the one of the certificate"):
            client_side({**SETTINGS, **pair})

    def test_so_does_a_key_with_a_passphrase(self, files: Files, tmp_path: Path) -> None:
        locked = CLIENT.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        (tmp_path / "locked").write_bytes(locked)
        pair = {
            "nats_tls_client_cert_path": files.cert(CLIENT),
            "nats_tls_client_key_path": str(tmp_path / "locked"),
        }
        with pytest.raises(ConfigurationError, match=r"nats_tls_client_key_path: .*it has a passphrase"):
            client_side({**SETTINGS, **pair})
