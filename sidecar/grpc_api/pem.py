"""Reads certificates and keys, with errors that name the file and never what is in it."""

from __future__ import annotations

import ssl
from pathlib import Path


class PemError(Exception):
    """A file that TLS cannot use; the text names it."""


def read_certificates(path: Path) -> bytes:
    """The PEM file, which has at least one certificate. Raises PemError."""
    content = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise PemError(f"{path} holds no certificates, or broken ones; write them as PEM") from None
    return content


def read_key_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Key and certificates, in this order, which gRPC takes them in. Raises PemError."""
    pair = _read(key), read_certificates(certificate)
    try:
        # Without a passphrase of its own, OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except ssl.SSLError as error:
        raise PemError(_unfit(certificate, key, error.reason or "")) from None
    except OSError:
        raise PemError(f"{certificate} and {key}: one is away again; try again") from None
    return pair


def _unfit(certificate: Path, key: Path, reason: str) -> str:
    if reason == "KEY_VALUES_MISMATCH":
        return (
            f"the key {key} does not belong to the first certificate of {certificate}; the server's"
            " or client's own comes first, then those that signed it"
        )
    why = f" ({reason.lower().replace('_', ' ')})" if reason else ""
    return f"{key} is no private key for {certificate}{why}; write it as PEM, without a passphrase"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PemError(f"{path} cannot be read: {error.strerror}") from None
