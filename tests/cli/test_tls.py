"""Commands that reach a sidecar by TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from sidecar._generated.llmrouter.v1 import policy_pb2, policy_pb2_grpc
from sidecar.cli import cli
from sidecar.cli.connection import connect_aio, no_answer
from sidecar.cli.tls_options import Tls
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.tls import TlsFiles
from sidecar.observability.metrics import Metrics
from tests.certificates import Authority, Party
from tests.grpc_api.standins import StandInRouter, registry

POLICY = """
apiVersion: llmrouter.v1
kind: Policy
name: tried
default: {models: [acme/fast]}
routes:
  - {name: billing, description: invoices, models: [acme/fast], examples: [where is my invoice?]}
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def client(authority: Authority, tmp_path: Path) -> Party:
    return authority.issue(tmp_path / "client", "operator")


@pytest.fixture
async def address(authority: Authority, tmp_path: Path) -> AsyncIterator[str]:
    """Of a sidecar that asks for certificates; its own is for another name."""
    party = authority.issue(tmp_path / "server", "router.example")
    tls = TlsFiles(party.certificate, party.key, authority.certificate)
    socket = tmp_path / "s.sock"
    options = ServerOptions(tls=tls, socket=socket)
    server = GrpcServer(StandInRouter(), registry(), Metrics(), options)
    await server.start()
    yield f"127.0.0.1:{server.port}"
    await server.stop(0)


def arguments(authority: Authority, client: Party | None) -> list[str]:
    given = ["--tls-ca", authority.certificate, "--tls-server-name", "router.example"]
    if client is not None:
        given += ["--tls-certificate", client.certificate, "--tls-key", client.key]
    return [str(each) for each in given]


async def sidecar(*arguments: object, environment: dict[str, str] | None = None) -> Result:
    """Beside the server of this event loop."""
    return await asyncio.to_thread(
        CliRunner().invoke, cli, [str(each) for each in arguments], env=environment
    )


@pytest.mark.parametrize(
    "command",
    [("route", "where is my invoice?", "--address"), ("policy", "list", "--at")],
    ids=["route", "policy"],
)
async def test_commands_reach_a_sidecar_by_mutual_tls(
    address: str, authority: Authority, client: Party, command: tuple[str, ...]
) -> None:
    by_options = await sidecar(*command, address, *arguments(authority, client))
    variables = {
        "SIDECAR_TLS_CA": str(authority.certificate),
        "SIDECAR_TLS_CERTIFICATE": str(client.certificate),
        "SIDECAR_TLS_KEY": str(client.key),
        "SIDECAR_TLS_SERVER_NAME": "router.example",
    }
    by_environment = await sidecar(*command, address, environment=variables)
    assert (by_options.exit_code, by_environment.exit_code) == (0, 0), by_options.output


@pytest.mark.parametrize("compared", [False, True], ids=["examples", "conversations"])
async def test_policies_are_tried_by_mutual_tls(
    address: str, authority: Authority, client: Party, tmp_path: Path, compared: bool
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    conversations = ("--conversations", asked, "--against", policy) if compared else ()

    tried = await sidecar(
        "policy",
        "test",
        policy,
        *conversations,
        "--address",
        address,
        *arguments(authority, client),
    )

    assert tried.exit_code == 0, tried.output


async def test_evaluation_reaches_a_sidecar_by_mutual_tls(
    address: str, authority: Authority, client: Party
) -> None:
    tls = Tls(authority.certificate, client.certificate, client.key, "router.example")
    async with connect_aio(address, tls) as channel:
        policies: policy_pb2_grpc.PolicyServiceStub = policy_pb2_grpc.PolicyServiceStub(channel)
        found = await policies.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent="namespaces/-"), timeout=60
        )
    assert found.policies


async def test_sockets_are_plaintext_whatever_the_environment_says(
    address: str, authority: Authority, tmp_path: Path
) -> None:
    environment = {"SIDECAR_TLS_CA": str(authority.certificate)}
    where = f"unix:{tmp_path / 's.sock'}"
    found = await sidecar("route", "hello", "--address", where, environment=environment)
    assert found.exit_code == 0, found.output


async def test_what_is_missing_is_said(
    address: str, authority: Authority, client: Party, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    unknown = other.issue(tmp_path / "unknown", "operator")
    asked = ("route", "hello", "--address", address)
    plain = await sidecar(*asked)
    nobody = await sidecar(*asked, *arguments(authority, None))
    stranger = await sidecar(*asked, *arguments(authority, unknown))
    distrusted = await sidecar(*asked, *arguments(other, client))
    assert "which may serve TLS alone (--tls-ca); start one" in plain.output
    assert "by TLS (it may ask for a certificate: --tls-certificate, --tls-key)" in nobody.output
    assert "it may not accept the certificate of --tls-certificate" in stranger.output
    assert "CERTIFICATE_VERIFY_FAILED" in distrusted.output


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (["--tls-certificate", "a", "--tls-ca", "b"], 2, "go together; give both or neither"),
        (["--tls-certificate", "a", "--tls-key", "b"], 2, "--tls-certificate needs --tls-ca"),
        (["--tls-ca", "none.crt"], 1, "TLS: none.crt cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize(
    "command", [("route", "hello"), ("policy", "list"), ("policy", "get", "x")], ids=" ".join
)
def test_wrong_options_are_named(
    command: tuple[str, ...], given: list[str], status: int, says: str
) -> None:
    found = CliRunner().invoke(cli, [*command, *given])
    assert (found.exit_code, says in " ".join(found.output.split())) == (status, True), found.output


@pytest.mark.parametrize("tls", [None, Tls(Path("ca.crt"))], ids=["plain", "tls"])
def test_address_where_nothing_listens_gets_no_wrong_hint(tls: Tls | None) -> None:
    details = "failed to connect to all addresses; last error: UNKNOWN: x: Connection refused"
    assert "--tls" not in no_answer("a:1", tls, details)


def test_address_without_a_port_is_told_so() -> None:
    refused = "failed to connect to all addresses; last error: UNKNOWN: x: Connection refused"
    assert "names no port, so that 443 was tried" in no_answer("localhost", None, refused)
    assert "443" not in no_answer("localhost:50051", None, refused)


def test_address_of_an_http_server_is_told_so() -> None:
    class Page(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            found = CliRunner().invoke(
                cli, ["route", "hello", "--address", f"127.0.0.1:{server.server_port}"]
            )
        finally:
            server.shutdown()
    assert found.exit_code == 1
    assert "where no gRPC is spoken; 50051 is the usual port" in " ".join(found.output.split())
