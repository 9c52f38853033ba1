"""Logging in: passwords, tokens, NKeys and credentials; and which files stop the start."""

from __future__ import annotations

import json
import time
from base64 import b32encode, urlsafe_b64encode
from binascii import crc_hqx
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.logger import globalLogPublisher

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.nats.client import Client
from anycable_tx.nats.nkeys import read
from anycable_tx.testing.nats_servers import KINDS, NatsServer
from tests.nats.conftest import Make
from tests.nats.support import SETTINGS

_OPERATOR, _ACCOUNT, _USER = 14 << 3, 0, 20 << 3


class Key:
    """An NKey of any kind."""

    def __init__(self, kind: int, private: bytes = b"") -> None:
        self._private = (
            Ed25519PrivateKey.from_private_bytes(private) if private else Ed25519PrivateKey.generate()
        )  # fmt: skip
        self.public = _text(bytes((kind,)) + self._private.public_key().public_bytes_raw())
        self.seed = _text(bytes((18 << 3 | kind >> 5, (kind & 31) << 3)) + self._private.private_bytes_raw())

    def jwt(self, subject: str, name: str, nats: dict[str, Any]) -> str:
        """What this key says of *subject*."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        claims = {"jti": name, "iat": int(time.time()), "iss": self.public, "name": name, "sub": subject}
        nats = {"version": 2, **nats}
        text = ".".join(_base64(json.dumps(each).encode()) for each in (header, {**claims, "nats": nats}))
        return f"{text}.{_base64(self._private.sign(text.encode()))}"


def _text(raw: bytes) -> str:
    return b32encode(raw + crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def creds(jwt: str, seed: str) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\nkeep this secret\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def options(**given: str) -> dict[str, Any]:
    return {**SETTINGS, **given}


@pytest.mark.parametrize("kind", KINDS)
class TestServers:
    def test_user_and_password_are_in_the_address(self, kind: str, make: Make) -> None:
        with NatsServer("authorization { user: jo, password: 's@cret' }", kind=kind, jetstream=False) as server:
            it = make(f"nats://jo:s%40cret@127.0.0.1:{server.port}")
            assert it.problem == ""
            wrong = make(f"nats://jo:other@127.0.0.1:{server.port}", started=False)
            wrong.begin(wrong.client.start())
            wrong.until(lambda: "Authorization Violation" in wrong.problem)
            wrong.stop()
            wrong._running = True

    def test_a_token_is_in_the_address(self, kind: str, make: Make) -> None:
        with NatsServer(
            "authorization { token: s3cret }", kind=kind, jetstream=False, credentials="s3cret"
        ) as server:
            assert make(server.url).problem == ""

    def test_a_key_proves_who_we_are(self, kind: str, make: Make, tmp_path: Path) -> None:
        user = Key(_USER)
        (tmp_path / "user.nk").write_text(user.seed + "\n")
        rule = f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"
        with NatsServer(rule, kind=kind, jetstream=False) as server:
            assert make(server.url, nats_nkey_file=str(tmp_path / "user.nk")).problem == ""

    def test_credentials_prove_who_we_are(self, kind: str, make: Make, tmp_path: Path) -> None:
        operator, account, user = Key(_OPERATOR), Key(_ACCOUNT), Key(_USER)
        of_operator = operator.jwt(operator.public, "O", {"type": "operator"})
        of_account = operator.jwt(
            account.public, "A", {"type": "account", "limits": {"conn": -1, "subs": -1, "data": -1, "payload": -1}}
        )
        of_user = account.jwt(user.public, "U", {"type": "user", "subs": -1, "data": -1, "payload": -1})
        (tmp_path / "user.creds").write_text(creds(of_user, user.seed))
        lines = (
            f"operator: {of_operator}",
            "resolver: MEMORY",
            f"resolver_preload: {{ {account.public}: {of_account} }}",
        )
        with NatsServer(*lines, kind=kind, jetstream=False) as server:
            it = make(server.url, nats_creds_file=str(tmp_path / "user.creds"))
            assert it.problem == ""
            heard, _ = it.subscribe("a")
            it.client.publish("a", b"x")
            it.until(lambda: heard)


def test_a_key_that_was_replaced_is_read_again(make: Make, tmp_path: Path) -> None:
    old, new = Key(_USER), Key(_USER)
    path = tmp_path / "user.nk"
    path.write_text(old.seed)
    server = NatsServer(f"authorization {{ users: [ {{ nkey: {old.public} }} ] }}", jetstream=False)
    with server:
        it = make(server.url, nats_nkey_file=str(path))
        server.stop()
        it.until(lambda: it.problem)
        server.configure(f"authorization {{ users: [ {{ nkey: {new.public} }} ] }}")
        path.unlink()
        server.start()
        it.until(lambda: "nats_nkey_file: cannot read" in it.problem)
        path.write_text(new.seed)
        it.until_up()


class TestFiles:
    def write(self, path: Path, text: str) -> str:
        path.write_text(text)
        return str(path)

    def test_there_is_no_identity_without_one(self) -> None:
        assert read(options()) is None

    def test_identities_do_not_show_what_is_secret(self, tmp_path: Path) -> None:
        user = Key(_USER, bytes(32))
        file = self.write(tmp_path / "u", creds("eyJ0.eyJz.c2ln", user.seed))
        identity = read(options(nats_creds_file=file))
        assert identity is not None
        assert (identity.key, identity.jwt) == (user.public, "eyJ0.eyJz.c2ln")
        assert repr(identity) == f"<{user.public}>"

    def test_a_file_that_cannot_be_read_stops_the_start(self, tmp_path: Path) -> None:
        for option in ("nats_creds_file", "nats_nkey_file"):
            with pytest.raises(ConfigurationError, match=f"{option}: cannot read '.*/missing': No such file"):
                Client(options(**{option: str(tmp_path / "missing")}), None, Metrics())

    def test_so_do_two(self, tmp_path: Path) -> None:
        file = self.write(tmp_path / "u", Key(_USER).seed)
        with pytest.raises(ConfigurationError, match="nats_creds_file: it cannot be used together with"):
            read(options(nats_creds_file=file, nats_nkey_file=file))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nonsense",
            "SU",
            "SUAAAA",
            "SU!!",
            Key(_ACCOUNT).seed,
            Key(_USER).public,
            Key(_USER).seed[:-1],
            "ä\xff",
        ],
        ids=["empty", "nonsense", "short", "shorter", "letters", "of an account", "public", "cut", "not text"],
    )
    def test_so_does_one_without_a_seed(self, tmp_path: Path, text: str) -> None:
        file = self.write(tmp_path / "u", text)
        with pytest.raises(ConfigurationError, match=r"nats_nkey_file: .*there is no user's seed \(SU...\) in it"):
            read(options(nats_nkey_file=file))

    def test_so_does_a_seed_with_a_letter_changed(self, tmp_path: Path) -> None:
        seed = Key(_USER).seed
        file = self.write(tmp_path / "u", seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:])
        with pytest.raises(ConfigurationError, match="no user's seed"):
            read(options(nats_nkey_file=file))

    def test_so_do_credentials_without_a_jwt(self, tmp_path: Path) -> None:
        file = self.write(tmp_path / "u", Key(_USER).seed)
        with pytest.raises(ConfigurationError, match=r"nats_creds_file: .*there is no user's JWT in it"):
            read(options(nats_creds_file=file))


def test_no_secret_reaches_the_log(make: Make) -> None:
    lines: list[str] = []

    def see(event: Any) -> None:
        lines.append(repr(event))

    globalLogPublisher.addObserver(see)
    try:
        with NatsServer("authorization { user: jo, password: right }", jetstream=False) as server:
            it = make(f"nats://jo:s3cret@127.0.0.1:{server.port},nats://t0ken@127.0.0.1:1", started=False)
            it.begin(it.client.start())
            it.until(lambda: it.metrics.value("nats_failed_attempts_total") >= 2)
            assert it.client.log_name == f"127.0.0.1:{server.port},127.0.0.1:1"
            it.reactor.result(it.client.stop())
    finally:
        globalLogPublisher.removeObserver(see)
    assert any("Authorization Violation" in line for line in lines)
    assert not any("s3cret" in line or "t0ken" in line for line in lines)
