"""The TLS certificate of a running server."""

from __future__ import annotations

import base64
import datetime
import signal
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.process import HOST, Process, until

pytestmark = pytest.mark.e2e


def certify(directory: Path, name: str) -> None:
    """Write a self-signed certificate for *name*, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


class Client:
    """A TLS connection that has been upgraded; pings come a few times a second."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(socket.create_connection((HOST, port), 5))
        key = base64.b64encode(bytes(16)).decode()
        self._socket.sendall(
            f"GET /cable?pi=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def sees(self, text: bytes) -> bool:
        """Does the server say it soon?"""
        self._socket.settimeout(5)
        seen = b""
        while text not in seen:
            data = self._socket.recv(4096)
            if not data:
                return False
            seen += data
        return True

    @property
    def certified(self) -> str:
        """The name in the server's certificate."""
        der = self._socket.getpeercert(binary_form=True)
        assert der is not None
        return str(x509.load_der_x509_certificate(der).subject.rfc4514_string())

    def close(self) -> None:
        self._socket.close()


@pytest.mark.statement("CO-50")
def test_hup_reads_the_certificate_again_and_cuts_nobody(tmp_path: Path) -> None:
    certify(tmp_path, "first")
    options = ("--public", f"--ssl_cert={tmp_path / 'cert.pem'}", f"--ssl_key={tmp_path / 'key.pem'}")
    with Process(*options, cwd=tmp_path) as process:
        process.ready()
        before = Client(process.port)
        assert before.sees(b"welcome")
        assert before.certified == "CN=first"

        (tmp_path / "cert.pem").write_text("not a certificate")
        process.send(signal.SIGHUP)
        until(lambda: "the certificate stays as it was: ssl_cert: cannot use" in process.out, "the refusal")

        certify(tmp_path, "second")
        process.send(signal.SIGHUP)

        def renewed() -> bool:
            after = Client(process.port)
            try:
                return after.certified == "CN=second" and after.sees(b"welcome")
            finally:
                after.close()

        until(renewed, "the new certificate")
        assert before.sees(b'"type":"ping"')
        before.close()
