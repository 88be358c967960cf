"""The overlay for mutual TLS: its Envoy and its flags of Triton, both real, with certificates as
cert-manager would issue them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sidecar.core.model import InferenceError
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import EnvoyServer, TritonServer, free_ports
from tests.deployment.test_kubernetes import KUBERNETES

OVERLAY = KUBERNETES / "overlays" / "mtls"
MODEL = Path(__file__).parents[1] / "integration" / "llmapi_repository"
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


@dataclass(frozen=True)
class Secrets:
    """Folders as Kubernetes mounts the secrets of certificates."""

    server: Path
    client: Path
    stranger: Path


def issue(folder: Path, authority: Path, subject: str) -> Path:
    """A certificate of the authority, as a mounted secret: tls.crt, tls.key, ca.crt."""
    folder.mkdir()
    key, request = folder / "tls.key", folder / "request"
    openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, subject=subject
    )
    (folder / "names").write_text(f"subjectAltName=DNS:{subject}\n")
    openssl(
        *("x509", "-req", "-in", request, "-days", "2", "-out", folder / "tls.crt"),
        *("-CA", authority / "tls.crt", "-CAkey", authority / "tls.key", "-CAcreateserial"),
        *("-extfile", folder / "names"),
    )
    shutil.copy(authority / "tls.crt", folder / "ca.crt")
    return folder


def new_authority(folder: Path) -> Path:
    folder.mkdir()
    key, certificate = folder / "tls.key", folder / "tls.crt"
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", key, "-out", certificate),
        subject=folder.name,
    )
    return folder


def openssl(*arguments: str | Path, subject: str = "") -> None:
    assert OPENSSL is not None
    more = ["-subj", f"/CN={subject}"] if subject else []
    command = [OPENSSL, *map(str, arguments), *more]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = new_authority(folder / "ours"), new_authority(folder / "other")
    return Secrets(
        server=issue(folder / "server", ours, "triton"),
        client=issue(folder / "client", ours, "llm-router"),
        stranger=issue(folder / "stranger", other, "llm-router"),
    )


@pytest.fixture(scope="module")
def triton(secrets: Secrets) -> Iterator[TritonServer]:
    """Started with the flags of the overlay."""
    patch = YAML(typ="safe", pure=True).load((OVERLAY / "triton-patch.yaml").read_text())
    [container] = patch["spec"]["template"]["spec"]["containers"]
    separator, *flags = container["args"]
    assert separator == "--"
    flags = [flag.replace("/tls/", f"{secrets.server}/") for flag in flags]
    with TritonServer(MODEL, arguments=flags, exit_timeout_s=1) as server:
        yield server


def envoy_config(triton: TritonServer, secret: Path, folder: Path, port: int) -> str:
    """The overlay's, with this machine's paths and ports."""
    for name in ("client", "authority"):
        text = (OVERLAY / f"{name}-secret.yaml").read_text()
        (folder / f"{name}.yaml").write_text(re.sub(r"/tls(?=[/}])", str(secret), text))
    host, _, triton_port = triton.grpc_address.rpartition(":")
    text = (OVERLAY / "envoy.yaml").read_text()
    for old, new in {
        "/etc/envoy/": f"{folder}/",
        "address: triton, port_value: 8001": f"address: {host}, port_value: {triton_port}",
        "address: 127.0.0.1, port_value: 8001": f"address: 127.0.0.1, port_value: {port}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return f"node: {{id: test, cluster: test}}\n{text}"


async def check_reached(
    triton: TritonServer, secret: Path, folder: Path, patience_s: float
) -> None:
    """Triton answers through the Envoy beside a sidecar. Raises InferenceError."""
    [port] = free_ports(1)
    async with EnvoyServer(envoy_config(triton, secret, folder, port)):
        model = TritonModel(TritonTarget(f"127.0.0.1:{port}", "tensorrt_llm", 2, 0, 100))
        try:
            await _soon(model, patience_s)
        finally:
            await model.close()


async def _soon(model: TritonModel, patience_s: float) -> None:
    """Envoy opens its listener before it has read the certificates."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return await model.check_ready(patience_s)
        except InferenceError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def test_a_sidecar_reaches_triton(
    triton: TritonServer, secrets: Secrets, tmp_path: Path
) -> None:
    await check_reached(triton, secrets.client, tmp_path, patience_s=60)


async def test_nobody_without_a_certificate_of_the_authority_does(
    triton: TritonServer, secrets: Secrets, tmp_path: Path
) -> None:
    with pytest.raises(InferenceError):
        await check_reached(triton, secrets.stranger, tmp_path, patience_s=5)


async def test_nobody_in_the_clear_does(triton: TritonServer) -> None:
    model = TritonModel(TritonTarget(triton.grpc_address, "tensorrt_llm", 2, 0, 100))
    with pytest.raises(InferenceError):
        await model.check_ready(3)
    await model.close()
