"""Connections of commands to a running sidecar: in plaintext, or with TLS."""

from __future__ import annotations

import os
from typing import Any

import grpc

from sidecar.cli.failures import Failure
from sidecar.cli.tls_options import Tls
from sidecar.grpc_api.listening import MAX_SOCKET_PATH
from sidecar.grpc_api.pem import PemError, read_certificates, read_key_pair

_NOT_OURS = ("http", "https", "grpc", "grpcs")


def connect(address: str, tls: Tls | None, *options: tuple[str, int]) -> grpc.Channel:
    """A channel. Raises Failure for an address or files that cannot be used."""
    credentials = _credentials(address, tls)
    if credentials is None:
        return grpc.insecure_channel(address, _options(None, *options))
    return grpc.secure_channel(address, credentials, _options(tls, *options))


def connect_aio(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """As `connect`, for an event loop."""
    credentials = _credentials(address, tls)
    if credentials is None:
        return grpc.aio.insecure_channel(address, _options(None))
    return grpc.aio.secure_channel(address, credentials, _options(tls))


def _credentials(address: str, tls: Tls | None) -> grpc.ChannelCredentials | None:
    scheme, is_url, rest = address.partition("://")
    if is_url and scheme in _NOT_OURS:
        # gRPC would look for a host of that name.
        raise Failure(
            f"{address} is a URL; the address of a sidecar is host:port, {rest.rstrip('/')}"
        )
    if not address:
        raise Failure("the address of the sidecar is empty; write it as host:port or unix:path")
    path = address.removeprefix("unix:").removeprefix("//")
    if address.startswith("unix:") and len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise Failure(
            f"{address} is longer than the {MAX_SOCKET_PATH} bytes that the path of a Unix domain "
            "socket can have; name it by a shorter one, such as a link"
        )
    if tls is None or address.startswith("unix:"):
        # A sidecar's Unix domain sockets are plaintext.
        return None
    try:
        ca = read_certificates(tls.ca)
        if tls.certificate is None or tls.key is None:
            return grpc.ssl_channel_credentials(ca)
        return grpc.ssl_channel_credentials(ca, *read_key_pair(tls.certificate, tls.key))
    except PemError as error:
        raise Failure(f"TLS: {error}") from None


def _options(tls: Tls | None, *more: tuple[str, int]) -> list[tuple[str, Any]]:
    # A proxy that is meant for the internet knows nothing of a sidecar.
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0), *more]
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


_CLOSED = "Socket closed"
"""What gRPC says where the other side ends the connection without a word."""
_OTHER_PROTOCOL = "Failed parsing HTTP/2"
"""What it says where the other side speaks HTTP/1, as a sidecar's own HTTP address does."""


def no_answer(address: str, tls: Tls | None, details: str | None) -> str:
    """What is wrong where a call was UNAVAILABLE, with the `details` of its status."""
    details = details or ""
    if address.startswith("unix:"):
        return f"no sidecar answers at {address}"
    if ":" not in address:
        return f"no sidecar answers at {address}, which names no port, so that 443 was tried"
    if _OTHER_PROTOCOL in details and tls is None:
        return f"no sidecar answers at {address}, where no gRPC is spoken; 50051 is the usual port"
    if tls is None:
        hint = ", which may serve TLS alone (--tls-ca)" if _CLOSED in details else ""
        return f"no sidecar answers at {address}{hint}"
    why = details.rpartition("last error: ")[2]
    if _CLOSED in details and tls.certificate is None:
        why = "it may ask for a certificate: --tls-certificate, --tls-key"
    elif _CLOSED in details:
        why = "it may not accept the certificate of --tls-certificate"
    return f"no sidecar answers at {address} by TLS ({why})"
