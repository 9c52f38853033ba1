"""``rpc_tls_root_ca``: whom to believe that a backend is the right one, whichever way it is called."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from anycable_tx.errors import ConfigurationError

__all__ = ["read_authorities"]


def read_authorities(given: str) -> tuple[bytes, list[x509.Certificate]]:
    """The PEM text that *given* is, or that is in the file it names, and the certificates in it.

    Raises ConfigurationError for a file that cannot be read and for what holds no certificate.
    """
    inline = "-----BEGIN " in given
    try:
        pem = given.encode() if inline else Path(given).expanduser().read_bytes()
        return pem, x509.load_pem_x509_certificates(pem)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "there is no usable certificate in it"
        shown = "the text" if inline else repr(given)
        raise ConfigurationError(
            f"rpc_tls_root_ca: cannot use {shown}: {reason}; accepted: a file with PEM certificates, or their text"
        ) from None
