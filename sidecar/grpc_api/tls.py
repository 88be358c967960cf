"""TLS of the TCP address, with certificates that are renewed while it serves."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from sidecar.grpc_api.listening import ListenError
from sidecar.grpc_api.pem import PemError, read_certificates, read_key_pair

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Args:
        certificate: the server's, then those that signed it.
        client_ca: clients must present a certificate that one of these signed; None: they need not.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What to open a port with. Raises ListenError if the files cannot be used now."""
    try:
        renewal = _Renewal(files)
    except PemError as error:
        raise ListenError(f"TLS: {error}") from None
    return grpc.dynamic_ssl_server_credentials(
        renewal.first,
        # The stubs do not know that it may say that nothing is new.
        renewal.newer,  # type: ignore[arg-type]
        require_client_authentication=files.client_ca is not None,
    )


class _Renewal:
    """Looks at the files whenever a client connects, which takes microseconds."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        # gRPC asks in threads of its own.
        self._lock = threading.Lock()
        self._seen = self._refused = self._state()
        self.first = self._read()

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """None if nothing has changed that can be used."""
        with self._lock:
            # Before they are read: what changes meanwhile is then seen as another change.
            state = self._state()
            if state == self._seen:
                return None
            try:
                found = self._read()
            except PemError as error:
                # The next connection tries again. The files need not change until it succeeds: they
                # may get their owner after their content, or no file could be opened for a moment.
                if state != self._refused:
                    self._refused = state
                    _log.error(
                        "new TLS files cannot be used; the earlier ones stay in force",
                        problem=str(error),
                    )
                return None
            self._seen = state
        _log.info("new TLS files are in force", certificate=str(self._files.certificate))
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        files, before = self._files, self._state()
        pair = read_key_pair(files.certificate, files.key)
        client_ca = read_certificates(files.client_ca) if files.client_ca else None
        if self._state() != before:
            raise PemError(f"{files.certificate} or what goes with it changed while it was read")
        if _others_read(files.key):
            _log.warning(
                "every user of this machine can read the TLS key; take the permission from others",
                file=str(files.key),
            )
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    def _state(self) -> tuple[object, ...]:
        """Differs when a file was written or replaced, also behind a symbolic link."""
        paths = (self._files.certificate, self._files.key, self._files.client_ca)
        return tuple(_identity(path) for path in paths if path is not None)


def _others_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        # Away since it was read.
        return False


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
