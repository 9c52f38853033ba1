"""TLS to NATS: whom to trust, and what to show."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

from anycable_tx.errors import ConfigurationError

__all__ = ["client_side"]


def client_side(settings: Mapping[str, Any]) -> ssl.SSLContext:
    """The client's side of TLS 1.2 or newer, as the ``nats_tls_*`` options say.

    Raises ConfigurationError for a file that cannot be used, and for a certificate without a key or the reverse.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    ca = settings["nats_tls_ca_cert_path"]
    if ca:
        _trust(context, _readable("ca_cert", ca))
    else:
        context.load_default_certs()
    if not settings["nats_tls_verify"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _show(context, settings["nats_tls_client_cert_path"], settings["nats_tls_client_key_path"])
    return context


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise _useless("ca_cert", path, "there is no usable PEM certificate in it") from None


def _show(context: ssl.SSLContext, cert: str, key: str) -> None:
    if bool(cert) != bool(key):
        given, missing = ("cert", "key") if cert else ("key", "cert")
        raise ConfigurationError(
            f"nats_tls_client_{missing}_path: it is needed together with nats_tls_client_{given}_path"
        )
    if not cert:
        return
    cert, key = _readable("client_cert", cert), _readable("client_key", key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError:
        raise _useless("client_cert", cert, "there is no usable PEM certificate in it") from None
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _Passphrase:
        raise _useless("client_key", key, "it has a passphrase") from None
    except ssl.SSLError as e:
        other = e.reason == "KEY_VALUES_MISMATCH"
        why = "it is not the one of the certificate" if other else "there is no usable PEM key in it"
        raise _useless("client_key", key, why) from None


class _Passphrase(Exception):
    """The key has one."""


def _no_passphrase() -> str:
    raise _Passphrase  # else it would be asked for at the terminal


def _readable(name: str, path: str) -> str:
    path = os.path.expanduser(path)
    try:
        with open(path, "rb"):
            return path
    except OSError as e:
        raise ConfigurationError(f"nats_tls_{name}_path: cannot read {path!r}: {e.strerror or e}") from None


def _useless(name: str, path: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"nats_tls_{name}_path: cannot use {path!r}: {why}")
