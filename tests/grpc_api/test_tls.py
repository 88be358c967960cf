"""TLS on the TCP address, over real sockets."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.listening import ListenError
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.tls import TlsFiles, server_credentials
from sidecar.observability.metrics import Metrics
from tests.certificates import Authority, Party
from tests.grpc_api.standins import StandInRouter, registry, route_request

NOT_REACHED = "UNAVAILABLE"


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "other")


@pytest.fixture
def files(ours: Authority, tmp_path: Path) -> TlsFiles:
    party = ours.issue(tmp_path / "server")
    return TlsFiles(party.certificate, party.key)


@asynccontextmanager
async def serving(tls: TlsFiles, socket: Path | None = None) -> AsyncIterator[GrpcServer]:
    options = ServerOptions(tls=tls, socket=socket)
    server = GrpcServer(StandInRouter(), registry(), Metrics(), options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


def channel_to(port: int, ca: Path, client: Party | None = None) -> grpc.aio.Channel:
    pair = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *pair)
    # Each with a connection of its own.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def answer(channel: grpc.aio.Channel) -> str:
    """`OK`, or the code of the error."""
    async with channel:
        try:
            await RoutingServiceStub(channel).Route(route_request(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


@pytest.mark.parametrize(("ca", "expected"), [("ours", "OK"), ("other", NOT_REACHED)])
async def test_clients_check_who_the_server_is(
    files: TlsFiles, ours: Authority, other: Authority, ca: str, expected: str
) -> None:
    trusted = {"ours": ours, "other": other}[ca]
    async with serving(files) as server:
        assert await answer(channel_to(server.port, trusted.certificate)) == expected


async def test_plaintext_is_not_served_beside_tls_but_on_the_socket(
    files: TlsFiles, tmp_path: Path
) -> None:
    socket = tmp_path / "s.sock"
    async with serving(files, socket) as server:
        by_tcp = await answer(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        by_socket = await answer(grpc.aio.insecure_channel(f"unix:{socket}"))
    assert (by_tcp, by_socket) == (NOT_REACHED, "OK")


@pytest.mark.parametrize(
    ("signed_by", "expected"), [("ours", "OK"), ("other", NOT_REACHED), (None, NOT_REACHED)]
)
async def test_mutual_tls_serves_only_clients_of_its_authority(
    files: TlsFiles,
    ours: Authority,
    other: Authority,
    tmp_path: Path,
    signed_by: str | None,
    expected: str,
) -> None:
    mutual = TlsFiles(files.certificate, files.key, ours.certificate)
    client = None
    if signed_by is not None:
        client = {"ours": ours, "other": other}[signed_by].issue(tmp_path / "client", "envoy")
    async with serving(mutual) as server:
        assert await answer(channel_to(server.port, ours.certificate, client)) == expected


async def test_health_is_served_there_too(files: TlsFiles, ours: Authority) -> None:
    async with serving(files) as server, channel_to(server.port, ours.certificate) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        found = await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


async def test_files_that_are_written_over_count_for_new_connections(
    files: TlsFiles, ours: Authority, other: Authority, tmp_path: Path
) -> None:
    async with serving(files) as server, channel_to(server.port, ours.certificate) as kept:
        await RoutingServiceStub(kept).Route(route_request(), timeout=60)
        with capture_logs() as entries:
            other.issue(tmp_path / "server")
            renewed = await answer(channel_to(server.port, other.certificate))
            before = await answer(channel_to(server.port, ours.certificate))
        # A connection that is open stays.
        await RoutingServiceStub(kept).Route(route_request(), timeout=60)
    assert (renewed, before) == ("OK", NOT_REACHED)
    assert [e["event"] for e in entries if "TLS" in e["event"]] == ["new TLS files are in force"]


async def test_secret_that_is_swapped_by_a_symbolic_link_counts(
    ours: Authority, other: Authority, tmp_path: Path
) -> None:
    """As Kubernetes mounts one."""
    mounted = tmp_path / "mounted"
    ours.issue(mounted / "..1")
    other.issue(mounted / "..2")
    (mounted / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (mounted / name).symlink_to(f"..data/{name}")
    async with serving(TlsFiles(mounted / "tls.crt", mounted / "tls.key")) as server:
        before = await answer(channel_to(server.port, ours.certificate))
        (mounted / "..new").symlink_to("..2")
        (mounted / "..new").rename(mounted / "..data")
        renewed = await answer(channel_to(server.port, other.certificate))
    assert (before, renewed) == ("OK", "OK")


async def test_authority_of_clients_is_renewed_too(
    files: TlsFiles, ours: Authority, other: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "clients.crt"
    bundle.write_bytes(ours.certificate.read_bytes())
    client = other.issue(tmp_path / "client", "envoy")
    async with serving(TlsFiles(files.certificate, files.key, bundle)) as server:
        before = await answer(channel_to(server.port, ours.certificate, client))
        bundle.write_bytes(ours.certificate.read_bytes() + other.certificate.read_bytes())
        after = await answer(channel_to(server.port, ours.certificate, client))
    assert (before, after) == (NOT_REACHED, "OK")


def key_of_another(files: TlsFiles) -> Path:
    pair = Authority(files.key.parent.parent / "another").issue(files.key.parent.parent / "x")
    files.key.write_bytes(pair.key.read_bytes())
    return files.key


def broken_key(files: TlsFiles) -> Path:
    text = files.key.read_text()
    files.key.write_text(text[: len(text) // 2])
    return files.key


def key_with_a_passphrase(files: TlsFiles) -> Path:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return files.key


def broken_certificate(files: TlsFiles) -> Path:
    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return files.certificate


def no_certificate(files: TlsFiles) -> Path:
    files.certificate.write_bytes(files.key.read_bytes())
    return files.certificate


def gone(files: TlsFiles) -> Path:
    files.certificate.unlink()
    return files.certificate


def a_folder(files: TlsFiles) -> Path:
    files.key.unlink()
    files.key.mkdir()
    return files.key


def broken_authority(files: TlsFiles) -> Path:
    assert files.client_ca is not None
    files.client_ca.write_text("hello\n")
    return files.client_ca


BREAKS = {
    key_of_another: "does not belong to the first certificate",
    broken_key: "is no private key",
    key_with_a_passphrase: "without a passphrase",
    broken_certificate: "no certificates, or broken ones",
    no_certificate: "no certificates, or broken ones",
    gone: "cannot be read: No such file or directory",
    a_folder: "cannot be read: Is a directory",
    broken_authority: "no certificates, or broken ones",
}


@pytest.fixture
def mutual(files: TlsFiles, ours: Authority, tmp_path: Path) -> TlsFiles:
    bundle = tmp_path / "clients.crt"
    bundle.write_bytes(ours.certificate.read_bytes())
    return TlsFiles(files.certificate, files.key, bundle)


def content_of(path: Path) -> list[str]:
    """Lines that no text may quote."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines() if not line.startswith("-----")]


@pytest.mark.parametrize(("spoil", "says"), BREAKS.items(), ids=[each.__name__ for each in BREAKS])
def test_files_that_cannot_be_used_are_named_and_not_quoted(
    mutual: TlsFiles, spoil: Callable[[TlsFiles], Path], says: str
) -> None:
    spoilt = spoil(mutual)

    with pytest.raises(ListenError, match=says) as refused:
        server_credentials(mutual)

    assert str(spoilt) in str(refused.value)
    for line in content_of(spoilt):
        assert line not in str(refused.value)


@pytest.mark.parametrize(("spoil", "says"), BREAKS.items(), ids=[each.__name__ for each in BREAKS])
async def test_renewal_that_cannot_be_used_leaves_the_earlier_files_in_force(
    mutual: TlsFiles,
    ours: Authority,
    tmp_path: Path,
    spoil: Callable[[TlsFiles], Path],
    says: str,
) -> None:
    client = ours.issue(tmp_path / "client", "envoy")
    async with serving(mutual) as server:
        with capture_logs() as entries:
            spoilt = spoil(mutual)
            found = [
                await answer(channel_to(server.port, ours.certificate, client)) for _ in range(2)
            ]
    [entry] = [each for each in entries if "TLS" in each["event"]]

    assert found == ["OK", "OK"]
    assert entry["log_level"] == "error"
    assert says in entry["problem"]
    assert str(spoilt) in entry["problem"]


async def test_files_that_are_mended_count_again(
    files: TlsFiles, other: Authority, tmp_path: Path
) -> None:
    async with serving(files) as server:
        broken_certificate(files)
        await answer(channel_to(server.port, other.certificate))
        other.issue(tmp_path / "server")
        assert await answer(channel_to(server.port, other.certificate)) == "OK"


async def test_files_that_could_not_be_read_for_a_moment_count_once_they_can(
    files: TlsFiles,
    ours: Authority,
    other: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where they get their owner after their content: it does not change any more."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with serving(files) as server:
        meanwhile = channel_to(server.port, ours.certificate)
        other.issue(tmp_path / "server")
        with monkeypatch.context() as unreadable:
            unreadable.setattr(Path, "read_bytes", refuse)
            assert await answer(meanwhile) == "OK"
        assert await answer(channel_to(server.port, other.certificate)) == "OK"


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)]
)
def test_key_that_every_user_can_read_is_warned_of(
    files: TlsFiles, mode: int, warned: bool
) -> None:
    os.chmod(files.key, mode)
    with capture_logs() as entries:
        server_credentials(files)
    assert [e["file"] for e in entries] == ([str(files.key)] if warned else [])
