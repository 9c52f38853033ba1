"""TLS to Redis: whom to trust, and what to show (BR-75)."""

# Much of Twisted carries no annotations:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet import ssl
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator

from anycable_tx.errors import ConfigurationError
from anycable_tx.tls import Unverified, trust_in

__all__ = ["client_side"]


def client_side(settings: Mapping[str, Any], verify: bool) -> Callable[[str], IOpenSSLClientConnectionCreator]:
    """Gives the client's side of TLS 1.2 or newer to a host; with *verify* that has to show a certificate for it.

    From *settings*: the ``redis_tls_*_path`` options. Raises ConfigurationError for a file that cannot be used, and
    for a certificate without a key or the reverse.
    """
    ca = settings["redis_tls_ca_cert_path"]
    trust: Any = ssl.platformTrust()
    if ca:
        trust = trust_in(_certificates("ca_cert", ca))
    shown = _pair(settings["redis_tls_client_cert_path"], settings["redis_tls_client_key_path"])

    @lru_cache(64)
    def create(host: str) -> IOpenSSLClientConnectionCreator:
        if verify:
            return ssl.optionsForClientTLS(host, trustRoot=trust, extraCertificateOptions=shown)
        return Unverified(host, ssl.CertificateOptions(verify=False, **shown).getContext())

    return create


def _pair(cert_path: str, key_path: str) -> dict[str, Any]:
    """What CertificateOptions need to show a certificate, in the form that pyOpenSSL takes since 24.3."""
    if bool(cert_path) != bool(key_path):
        given, missing = ("cert", "key") if cert_path else ("key", "cert")
        raise ConfigurationError(
            f"redis_tls_client_{missing}_path: it is needed together with redis_tls_client_{given}_path"
        )
    if not cert_path:
        return {}
    certificate, *chain = _certificates("client_cert", cert_path)
    option = "redis_tls_client_key_path"
    try:
        key = load_pem_private_key(_read(option, key_path), None)
    except (ValueError, TypeError) as e:
        why = "it has a passphrase" if isinstance(e, TypeError) else "there is no usable PEM key in it"
        raise ConfigurationError(f"{option}: cannot use {key_path!r}: {why}") from None
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{option}: the key in {key_path!r} is not the one of the certificate")
    return {"privateKey": key, "certificate": certificate, "extraCertChain": chain}


def _certificates(name: str, path: str) -> list[x509.Certificate]:
    option = f"redis_tls_{name}_path"
    try:
        return x509.load_pem_x509_certificates(_read(option, path))
    except ValueError:
        raise ConfigurationError(f"{option}: cannot use {path!r}: there is no usable PEM certificate in it") from None


def _read(option: str, path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read()
    except OSError as e:
        raise ConfigurationError(f"{option}: cannot read {path!r}: {e.strerror or e}") from None
