"""TLS to a gRPC backend: whom it is spoken with, and with whom not."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.logger import globalLogPublisher

from anycable_tx.errors import ConfigurationError
from anycable_tx.rpc.grpc_tls import Tunnel, authorities
from anycable_tx.rpc.transport import Code
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_grpc_app import GrpcApp
from tests.rpc.grpc_support import backend, client, make, run
from tests.rpc.support import settings


class Certificate(NamedTuple):
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def credentials(self) -> Any:
        """Those of a server with this certificate."""
        plain = serialization.NoEncryption()
        key = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return grpc.ssl_server_credentials([(key, self.pem.encode())])


def certificate(*names: str, by: Certificate | None = None, days: int = 1) -> Certificate:
    """A certificate for *names*, good for so many days from now; without names, that of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else f"authority {id(key)}")])
    extension: Any = x509.BasicConstraints(ca=True, path_length=None)
    if names:
        extension = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(extension, critical=not names)
    )
    return Certificate(key, builder.sign(by.key if by else key, hashes.SHA256()))


AUTHORITY = certificate()
STRANGER = certificate()
GOOD = certificate("localhost", by=AUTHORITY)
ELSEWHERE = certificate("elsewhere.test", by=AUTHORITY)
OLD = certificate("localhost", by=AUTHORITY, days=-1)
SELF_SIGNED = certificate("localhost")


class TestChecked:
    @pytest.mark.parametrize(
        "form", ["localhost:{}", "dns:///localhost:{}", "grpcs://localhost:{}", "grpc-list://localhost:{}"]
    )
    @run
    async def test_a_backend_that_a_given_authority_vouches_for_is_called(self, form: str) -> None:
        with GrpcApp(Application(), credentials=GOOD.credentials) as app:
            async with client(form.format(app.port), rpc_tls_root_ca=AUTHORITY.pem) as it:
                assert (await it.call()).status == 1

    @pytest.mark.parametrize(
        ("shown", "trusted"),
        [(GOOD, STRANGER), (ELSEWHERE, AUTHORITY), (OLD, AUTHORITY), (SELF_SIGNED, AUTHORITY)],
        ids=["another authority", "another name", "expired", "self-signed"],
    )
    @run
    async def test_any_other_backend_is_not(self, shown: Certificate, trusted: Certificate) -> None:
        application = Application()
        with GrpcApp(application, credentials=shown.credentials) as app:
            async with client(f"localhost:{app.port}", rpc_tls_root_ca=trusted.pem) as it:
                failed = await it.failure()
                assert it.transport.connections() == 0
        assert (failed.reason, failed.delivered) == (Code.UNAVAILABLE, False)
        assert application.asked == []

    @run
    async def test_the_system_does_not_vouch_for_a_stranger(self) -> None:
        with GrpcApp(Application(), credentials=GOOD.credentials) as app:
            async with client(f"grpcs://localhost:{app.port}") as it:
                assert not (await it.failure()).delivered

    @run
    async def test_a_backend_without_tls_is_not_called(self) -> None:
        application = Application()
        with GrpcApp(application) as app:
            async with client(f"localhost:{app.port}", rpc_enable_tls=True) as it:
                assert not (await it.failure()).delivered
        assert application.asked == []

    @pytest.mark.statement("RA-23")
    @run
    async def test_every_host_of_a_list_has_to_show_its_own_name(self) -> None:
        good, bad = Application(), Application()
        with (
            GrpcApp(good, credentials=GOOD.credentials) as first,
            GrpcApp(bad, credentials=ELSEWHERE.credentials) as second,
        ):
            hosts = f"grpc-list://localhost:{first.port},localhost:{second.port}"
            async with client(hosts, rpc_tls_root_ca=AUTHORITY.pem) as it:
                for _ in range(4):
                    assert (await it.call()).status == 1
                assert it.transport.connections() == 1
        assert (len(good.asked), len(bad.asked)) == (4, 0)


class TestUnchecked:
    @pytest.mark.parametrize(
        "shown", [GOOD, ELSEWHERE, OLD, SELF_SIGNED], ids=["good", "name", "expired", "self-signed"]
    )
    @run
    async def test_whoever_speaks_tls_is_called(self, shown: Certificate) -> None:
        with GrpcApp(Application(), credentials=shown.credentials) as app:
            async with client(f"grpcs://localhost:{app.port}", rpc_tls_verify=False) as it:
                assert (await it.call()).status == 1
                large = {"url": "x" * 2_000_000}
                assert (await it.call(env=large)).status == 1
                assert it.transport.connections() == 1

    @run
    async def test_but_nobody_without_tls(self) -> None:
        application = Application()
        with GrpcApp(application) as app:
            async with client(f"grpcs://localhost:{app.port}", rpc_tls_verify=False) as it:
                failed = await it.failure()
        assert (failed.reason, failed.delivered) == (Code.UNAVAILABLE, False)
        assert application.asked == []

    @run
    async def test_a_backend_that_is_not_there_is_told_of_and_found_when_it_is(self) -> None:
        port = free_port()
        async with client(f"grpcs://127.0.0.1:{port}", rpc_tls_verify=False) as it:
            failed = await it.failure()
            assert (failed.reason, failed.delivered) == (Code.UNAVAILABLE, False)
            assert str(port) in it.transport.problem()
            for shown in (GOOD, SELF_SIGNED):  # it may come back with another certificate
                with GrpcApp(Application(), port, shown.credentials):
                    await it.until(it.transport.connections)
                    assert (await it.call()).status == 1
                await it.until(it.transport.problem)

    @run
    async def test_every_host_of_a_list_is_called(self) -> None:
        applications = Application(), Application()
        with (
            GrpcApp(applications[0], credentials=GOOD.credentials) as first,
            GrpcApp(applications[1], credentials=SELF_SIGNED.credentials) as second,
        ):
            hosts = f"grpc-list://localhost:{first.port},localhost:{second.port}"
            async with client(hosts, rpc_enable_tls=True, rpc_tls_verify=False) as it:
                await it.until(lambda: it.transport.connections() == 2)
                for _ in range(4):
                    await it.call()
        assert [len(each.asked) for each in applications] == [2, 2]

    @run
    async def test_the_backend_hears_its_own_name(self) -> None:
        heard: list[str] = []

        def behave(path: str, request: bytes, context: Any) -> bytes:
            heard.append(context._rpc_event.call_details.host.decode())  # what HTTP/2 calls the authority
            return b""

        with backend(behave, credentials=GOOD.credentials) as port:
            async with client(f"grpcs://localhost:{port}", rpc_tls_verify=False) as it:
                await it.call()
        assert heard == [f"localhost:{port}"]

    @run
    async def test_nothing_is_left_of_it(self) -> None:
        tunnel = Tunnel("localhost", 1)
        directory = Path(tunnel.target.removeprefix("unix:")).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        tunnel.close()
        assert not directory.exists()
        async with client("grpcs://localhost:1", rpc_tls_verify=False) as it:
            directory = Path(it.transport._tunnels[0].target.removeprefix("unix:")).parent
            await it.failure()
            assert directory.exists()
        assert not directory.exists()

    @pytest.mark.parametrize(("given", "told"), [({"rpc_tls_verify": False}, 1), ({}, 0)])
    @run
    async def test_it_is_told_of_at_the_start(self, given: dict[str, Any], told: int) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        try:
            async with client(f"grpcs://127.0.0.1:{free_port()}", **given):
                assert len([each for each in events if "rpc_tls_verify" in each.get("log_format", "")]) == told
        finally:
            globalLogPublisher.removeObserver(events.append)

    def test_a_socket_of_the_file_system_cannot_be_reached_unchecked(self) -> None:
        with pytest.raises(ConfigurationError, match="rpc_tls_verify"):
            make("unix:/run/rpc.sock", rpc_enable_tls=True, rpc_tls_verify=False)


class TestAuthorities:
    def test_they_are_read_from_a_file_or_are_the_text_itself(self, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        file.write_text(AUTHORITY.pem + STRANGER.pem)
        assert authorities(settings(rpc_tls_root_ca=str(file))) == file.read_bytes()
        assert authorities(settings(rpc_tls_root_ca=AUTHORITY.pem)) == AUTHORITY.pem.encode()

    @pytest.mark.parametrize(
        "given", ["missing.pem", ".", "empty.pem", "-----BEGIN CERTIFICATE-----\nhush\n-----END CERTIFICATE-----"]
    )
    def test_anything_else_is_refused(self, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.pem").write_text("nothing")
        with pytest.raises(
            ConfigurationError, match=r"rpc_tls_root_ca: cannot use .*; accepted: a file with PEM"
        ) as error:
            make("localhost:50051", rpc_tls_root_ca=given)
        assert "hush" not in str(error.value)

    def test_by_default_they_are_those_of_the_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "system.pem"
        file.write_text(AUTHORITY.pem)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert authorities(settings()) == file.read_bytes()

    def test_a_directory_of_the_system_will_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "0a1b2c3d.0").write_text(AUTHORITY.pem)
        (tmp_path / "4a1b2c3d.0").write_text(STRANGER.pem)
        (tmp_path / "README").write_text("not one")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        assert authorities(settings()) == (AUTHORITY.pem + "\n" + STRANGER.pem).encode()
        (tmp_path / "0a1b2c3d.0").unlink()
        (tmp_path / "4a1b2c3d.0").unlink()
        assert authorities(settings()) is None
