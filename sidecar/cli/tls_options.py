"""Options of the commands that may reach a sidecar by TLS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_META = "sidecar.tls"


@dataclass(frozen=True, slots=True)
class Tls:
    """How a sidecar is reached by TLS.

    Args:
        ca: PEM of the authorities that may have signed the server's certificate.
        certificate: PEM, shown to the server if it asks for one; with its key.
        server_name: that the server's certificate has instead of the address; empty: the address.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""


def tls_options(command: F) -> F:
    """Options that `given_tls` reads; the command itself is not handed them."""
    for name, kind, text in reversed(_OPTIONS):
        command = click.option(
            name,
            envvar=f"SIDECAR_{name.removeprefix('--').replace('-', '_').upper()}",
            show_envvar=True,
            type=kind,
            expose_value=False,
            callback=_keep,
            help=text,
        )(command)
    return command


_FILE = click.Path(path_type=Path)
_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--tls-ca", _FILE, "Reach the sidecar by TLS: PEM of the authority of its certificate."),
    ("--tls-certificate", _FILE, "PEM of the certificate to show the sidecar."),
    ("--tls-key", _FILE, "PEM of its key."),
    ("--tls-server-name", str, "Name in the sidecar's certificate, if it is not the address."),
)


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    context.meta.setdefault(_META, {})[option.name] = value or None


def given_tls() -> Tls | None:
    """What the options of the running command say; None: plaintext. Raises click.UsageError."""
    given = click.get_current_context().meta.get(_META, {})
    ca, certificate, key = (given.get(f"tls_{name}") for name in ("ca", "certificate", "key"))
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together; give both or neither")
    if ca is None:
        if certificate is not None:
            raise click.UsageError("--tls-certificate needs --tls-ca")
        return None
    return Tls(ca, certificate, key, given.get("tls_server_name") or "")
