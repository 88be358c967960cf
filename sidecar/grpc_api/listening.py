"""Opens the addresses of a gRPC server, with errors that say what to do."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

SOCKET_MODE = 0o660
"""Owner and group: who may connect to a Unix domain socket decides who may ask."""

MAX_SOCKET_PATH = 107
"""Bytes; sun_path of unix(7) less the final zero."""


class ListenError(Exception):
    """An address that cannot be listened on; the text names it and says what to do."""


def is_loopback(address: str) -> bool:
    """True if only this machine reaches `host:port`."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name can come to mean another address.
        return False


def listen_tcp(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """The port that was opened, with TLS if there are credentials. Raises ListenError."""
    # Tried before: gRPC says only that it failed, and where a name has several addresses it is
    # content with one of them.
    check_tcp(address)
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError:
        kind = ", or gRPC cannot use this kind of TLS key" if credentials is not None else ""
        raise ListenError(
            f"cannot listen on {address}: it was taken a moment ago{kind}; try again or choose "
            "another"
        ) from None


def check_tcp(address: str) -> None:
    """Raises ListenError if the address cannot be bound now."""
    why = _why_not(address)
    if why:
        raise ListenError(f"cannot listen on {address}: {why}")


def _why_not(address: str) -> str:
    """Empty if the address can be bound."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        return f"{error.strerror}; choose another address"
    except UnicodeError:
        return "a host name has parts of 1 to 63 characters; choose another address"
    errors = [_bind_error(*each) for each in found]
    if errno.EADDRINUSE in errors:
        return "another process listens there; stop it or choose another port"
    if all(errors):
        return f"{os.strerror(errors[0])}; choose another address"
    return ""


def _bind_error(family: int, kind: int, protocol: int, _: str, where: tuple[Any, ...]) -> int:
    """The errno of binding; 0 if it can be bound."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def listen_unix(server: grpc.aio.Server, path: Path) -> None:
    """Opens a Unix domain socket with `SOCKET_MODE`.

    A socket that nobody listens on, left by a process that was killed, is replaced. Raises
    ListenError.
    """
    check_unix(path)
    try:
        # The mode is there from the first moment on: changed afterwards, it would come too late.
        with _umask(0o777 & ~SOCKET_MODE):
            server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise ListenError(
            f"cannot listen on {path}: check that the folder {path.parent} can be written to"
        ) from None


def bound_unix(path: Path) -> socket.socket:
    """As `listen_unix`, for what is not served by gRPC's library."""
    check_unix(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _umask(0o777 & ~SOCKET_MODE):
            bound.bind(os.fspath(path))
    except OSError as error:
        bound.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}") from None
    return bound


def check_unix(path: Path) -> None:
    """Raises ListenError if nothing can listen there now; removes a socket that was left."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ListenError(
            f"cannot listen on {path}: longer than {MAX_SOCKET_PATH} bytes, the most that a Unix "
            "domain socket can have; choose a shorter path"
        )
    if not path.parent.is_dir():
        raise ListenError(f"cannot listen on {path}: make the folder {path.parent} first")
    _remove_stale(path)


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListenError(
            f"cannot listen on {path}: it is there and is not a socket; remove it or choose "
            "another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Who listens there may be frozen, with as many waiting as can: another would wait forever.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {error.strerror}") from None
    raise ListenError(
        f"cannot listen on {path}: another process listens there; stop it or choose another path"
    )


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
