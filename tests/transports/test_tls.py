"""TLS: which versions, which files, and that everything works through it."""

from __future__ import annotations

import datetime
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.testing.processes import free_port
from anycable_tx.transports.listeners import tls_context
from tests.transports.event_reader import Reader
from tests.transports.support import CLOSE, Cable, Client, command, identifier, masked


def make_files(directory: Path, password: bytes = b"") -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    encryption: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    cert_file, key_file = directory / f"cert{len(password)}.pem", directory / f"key{len(password)}.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return cert_file, key_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def cable(files: tuple[Path, Path]) -> Iterator[Any]:
    made: list[Cable] = []

    def make(**settings: Any) -> Cable:
        made.append(Cable("direct", ssl_cert=str(files[0]), ssl_key=str(files[1]), **settings))
        made[0].direct = False  # the harness follows
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def trust(files: tuple[Path, Path]) -> ssl.SSLContext:
    """What a client needs to trust the server."""
    return ssl.create_default_context(cafile=str(files[0]))


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """*context*, for one version of TLS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else our own side would refuse old versions
        context.minimum_version = context.maximum_version = version
    return context


def subscriber(made: Cable, port: int, trust: ssl.SSLContext) -> Client:
    client = made.dial(port, tls=trust)
    assert client.upgrade().status == 101
    client.until(bool)
    [client.welcome] = client.messages()
    client.send(command("subscribe", identifier=identifier()))
    client.until(bool)
    assert client.messages()[0]["type"] == "confirm_subscription"
    return client


@pytest.mark.statement("CO-27")
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_clients_are_served_over_current_versions(cable, trust, version):
    made = cable()
    [port] = made.listen()
    clients = [subscriber(made, port, only(trust, ssl.TLSVersion[version])) for _ in range(3)]
    assert {client.sock.version for client in clients} == {version.replace("_", ".")}
    made.publish("chat", 1)
    for client in clients:
        client.until(bool)
        assert client.payloads() == [1]


@pytest.mark.statement("CO-27")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused(cable, trust, version):
    made = cable()
    [port] = made.listen()
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        made.dial(port, tls=only(trust, ssl.TLSVersion[version]))


@pytest.mark.statement("CO-27")
def test_every_port_speaks_tls(cable, trust):
    made = cable(port=free_port(), http_broadcast_port=free_port())
    for port in made.listen():
        assert made.dial(port, tls=trust).get("/health").status in (200, 404)
        plain = made.dial(port)
        plain.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        plain.until(lambda received: False)
        assert b"healthy" not in plain.received


def test_controllers_see_a_secure_url_and_the_peer(cable, trust):
    made = cable()
    made.node.keeps_env = lambda: True
    [port] = made.listen()
    subscriber(made, port, trust)
    [session] = made.node.sessions
    assert session.env.url == "https://cable.example/cable"
    assert session.env.headers["REMOTE_ADDR"] == "127.0.0.1"


def test_http_and_pipelined_requests_work_too(cable, trust):
    made = cable()
    [port] = made.listen()
    client = made.dial(port, tls=trust)
    for _ in range(3):
        assert client.get("/health").status == 200
    client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    assert [client.head().status for _ in range(2)] == [200, 200]


def test_large_messages_arrive_whole_and_in_order(cable, trust):
    made = cable(ws_max_pending_size=0)
    [port] = made.listen()
    client = subscriber(made, port, trust)
    for n in range(20):
        made.publish("chat", [n, "x" * 300_000])
        made.run()
    client.until(lambda received: len(received) > 6_000_000)
    assert [payload[0] for payload in client.payloads()] == list(range(20))


def test_a_reader_that_takes_nothing_is_dropped(cable, trust):
    made = cable(ws_max_pending_size=0, ping_interval=100)
    [port] = made.listen()
    subscriber(made, port, trust)
    [session] = made.node.sessions
    for _ in range(100):
        made.publish("chat", "x" * 300_000)
        made.run()
    assert session.outlet.transport.backlog > 1_000_000
    made.wait(4.5, 0.5)
    assert session.outlet.transport is None
    assert made.metrics.value("closed_connections_total", "write_timeout") == 1


def test_events_flow_resume_and_end_like_over_plain_tcp(cable, trust):
    made = cable(sse=True)
    [port] = made.listen()
    reader = Reader(made, client=made.dial(port, tls=trust), stream="chat")
    reader.client.until(lambda received: b"confirm_subscription" in received)
    reader.events()
    for n in range(2):
        made.publish("chat", f"{n} " + "x" * 100_000)
    reader.client.until(lambda received: len(received) > 200_000)
    first, second = reader.events()
    assert (first.data[:2], second.data[:2]) == ("0 ", "1 ")
    back = Reader(made, client=made.dial(port, tls=trust), headers={"Last-Event-ID": first.id}, stream="chat")
    back.client.until(lambda received: b"confirm_history" in received)
    assert [event.data for event in back.events()[2:-1]] == [second.data]
    for session in made.node.sessions:
        session.disconnect(1000, "enough", "enough", reconnect=True)
    reader.client.until(lambda received: b"0\r\n\r\n" in received)
    assert [event.type for event in reader.events()] == ["disconnect"]
    made.wait(11, 0.5)  # these clients do not close their side
    assert made.factory.connections == 0


@pytest.mark.statement("CP-135")
def test_a_reader_that_stalls_beyond_the_limit_is_too_slow(cable, trust):
    made = cable(ws_max_pending_size=1_000_000, ping_interval=100)
    [port] = made.listen()
    client = subscriber(made, port, trust)
    for _ in range(100):
        made.publish("chat", "x" * 300_000)
        made.run()
    assert made.metrics.value("disconnected_slow_clients_total") == 1
    client.until(lambda received: received.endswith(b"\x88\x02\x03\xe8"))
    assert client.farewell()[0][-1] == {"type": "disconnect", "reason": "too_slow", "reconnect": True}


@pytest.mark.statement("CP-140")
def test_a_close_is_answered_and_tls_ends_in_order(cable, trust):
    made = cable()
    [port] = made.listen()
    client = subscriber(made, port, trust)
    client.send(masked(b"\x0f\xa0", opcode=CLOSE))
    client.until(lambda received: False)
    assert client.farewell() == ([], 4000, "", True)


@pytest.mark.parametrize("said", [b"GET /cable HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n"])
def test_a_peer_that_is_refused_and_never_ends_its_tls_is_dropped_and_nothing_of_it_is_kept(cable, trust, said):
    made = cable()
    [port] = made.listen()
    client = made.dial(port, tls=trust)
    client.send(said)
    made.until(lambda: not made.reactor.turn())
    assert made.factory.connections == 1
    connection = next(iter(made.reactor.getReaders()[1:])).protocol.wrappedProtocol
    for _ in range(10):
        client.send(b"x" * 10_000)
    assert connection.data == b""
    made.wait(11, 0.5)
    assert made.factory.connections == 0


def test_a_handshake_that_never_comes_is_not_waited_for(cable):
    made = cable(handshake_timeout=5)
    [port] = made.listen()
    client = made.dial(port)
    client.send(b"\x16\x03")
    made.until(lambda: made.factory.connections == 1)
    made.wait(5.2)
    made.until(lambda: made.factory.connections == 0)


# -- files


def refused(cert: Path, key: Path) -> str:
    """What a start with these files says."""
    with pytest.raises(ConfigurationError) as e:
        tls_context({"ssl_cert": str(cert), "ssl_key": str(key)})
    return str(e.value)


@pytest.mark.statement("CO-27")
@pytest.mark.parametrize("given", ["ssl_cert", "ssl_key"])
def test_one_file_without_the_other_stops_the_start(files, given):
    with pytest.raises(ConfigurationError, match=r"ssl_cert.*ssl_key|ssl_key.*ssl_cert"):
        defaults(**{given: str(files[0])})


@pytest.mark.statement("CO-27")
def test_files_that_cannot_be_used_are_named(files, tmp_path):
    cert, key = files
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    missing = tmp_path / "missing.pem"
    for wrong in (garbage, missing, key, tmp_path):
        message = refused(wrong, key)
        assert message.startswith(f"ssl_cert: cannot use {str(wrong)!r}")
    for wrong in (garbage, missing, cert, tmp_path):
        message = refused(cert, wrong)
        assert message.startswith(f"ssl_key: cannot use {str(wrong)!r}")


@pytest.mark.statement("CO-27")
def test_a_key_of_another_certificate_stops_the_start(files, tmp_path):
    _, other = make_files(tmp_path)
    message = refused(files[0], other)
    assert message == f"ssl_key: cannot use {str(other)!r}: it is not the key of {str(files[0])!r}"


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path, capfd):
    cert, key = make_files(tmp_path, b"secret")
    assert refused(cert, key).startswith("ssl_key: cannot use")
    assert "pass phrase" not in "".join(capfd.readouterr())


def test_a_chain_is_sent(tmp_path, files):
    cert, key = files
    chain = tmp_path / "chain.pem"
    chain.write_bytes(cert.read_bytes() + make_files(tmp_path)[0].read_bytes())
    made = Cable("plain", ssl_cert=str(chain), ssl_key=str(key))
    [port] = made.listen()
    assert made.dial(port, tls=ssl.create_default_context(cafile=str(cert))).get("/health").status == 200
    made.close()


def test_an_inherited_socket_speaks_tls_too(cable, trust):
    inherited = socket.create_server(("127.0.0.1", 0))
    port = inherited.getsockname()[1]
    made = cable(port=port, sockets=[inherited])
    assert made.listen() == [port]
    assert made.dial(port, tls=trust).upgrade().status == 101
