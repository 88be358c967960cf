"""The whole sidecar with a policy store: what is written through it is what it decides by."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.app import Sidecar
from sidecar.app_policies import open_policies
from sidecar.app_routing import StartupError
from sidecar.cli.connection import connect_aio
from sidecar.cli.tls_options import Tls
from sidecar.config import SettingsError, load_settings
from sidecar.engines import EngineInfo
from sidecar.grpc_api.health import POLICY_STORE
from sidecar.grpc_api.listening import is_loopback
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.stores import ChangeKind, open_store
from tests.certificates import Authority
from tests.grpc_api.standins import route_request
from tests.lone_sidecar import Flags, lone_flags, settings
from tests.policies.stores.parts import (
    CATALOG,
    changed,
    name_of,
    policy,
    write,
    write_catalog,
    write_files,
)
from tests.waiting import until


@pytest.fixture
def flags(cpu_engine: EngineInfo, tmp_path: Path) -> Flags:
    """With a store."""
    seeds = tmp_path / "seeds.yaml"
    documents = catalog_document(CATALOG.values()), policy_document(policy("default"))
    seeds.write_text(yaml_text(*documents))
    store = {"url": f"sqlite:{tmp_path / 'policies.db'}", "poll_ms": 50}
    return {**lone_flags(cpu_engine, seeds), "policy_store": store}


def channel_to(sidecar: Sidecar) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}")


def loaded(sidecar: Sidecar) -> dict[str, int]:
    return {each.name.rpartition("/")[2]: each.revision for each in sidecar.state().policies}


def update(description: str) -> policy_pb2.UpdatePolicyRequest:
    models = policy_pb2.ModelList(models=[policy_pb2.WeightedModel(model="acme/large")])
    content = policy_pb2.Policy(
        name=name_of("default"), description=description, default_models=models
    )
    return policy_pb2.UpdatePolicyRequest(policy=content)


async def test_store_is_filled_from_files_once_and_changed_through_the_api(flags: Flags) -> None:
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    async with channel_to(sidecar) as channel:
        before = (await RoutingServiceStub(channel).Route(route_request())).decision
        await PolicyServiceStub(channel).UpdatePolicy(update("no routes any more"))
        await until(lambda: loaded(sidecar) == {"default": 2})
        after = (await RoutingServiceStub(channel).Route(route_request())).decision
    await sidecar.stop(0)

    assert (before.policy_revision, after.policy_revision) == (1, 2)
    assert after.model.model == "acme/large"
    again = Sidecar(settings(flags))
    assert loaded(again) == {"default": 2}
    await again.stop(0)


@pytest.mark.parametrize("started_anew", [False, True])
async def test_revision_that_is_too_large_for_the_routing_model_is_shown(
    flags: Flags, started_anew: bool
) -> None:
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    # Written beside the sidecars, as by a tool that does not know their routing model.
    store = open_store(flags["policy_store"]["url"])
    write(store, ChangeKind.UPDATE, too_large())
    store.close()
    await until(lambda: bool(sidecar.state().policy_store.problem))
    if started_anew:
        await sidecar.stop(0)
        sidecar = Sidecar(settings(flags))
        await sidecar.start()
    shown, text = await published(sidecar)
    async with channel_to(sidecar) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await until_not_serving(health)
        whole = await health.Check(health_pb2.HealthCheckRequest())
    in_force = loaded(sidecar)
    await sidecar.stop(0)

    assert in_force == {"default": 1}
    refused = shown["refused"][0]
    assert (refused["revision"], refused["in_force"]) == (2, 1)
    assert "tokens" in refused["why"]
    assert "llmrouter_policies_refused 1.0" in text
    assert "llmrouter_policy_store_up 0.0" in text
    # The sidecar itself serves: no probe may stop it for this.
    assert whole.status == health_pb2.HealthCheckResponse.SERVING


def too_large() -> Any:
    content = policy("default")
    words = "a description that goes on and on about invoices, refunds and payments; " * 25
    routes = tuple(
        type(route)(f"route-{number}", words[:1900], route.models)
        for number in range(200)
        for route in content.routes[:1]
    )
    return type(content)(content.name, routes, content.default)


async def published(sidecar: Sidecar) -> tuple[dict[str, Any], str]:
    """What its status says of the policy store, and its metrics."""
    assert sidecar.admin is not None
    async with (
        ClientSession(f"http://127.0.0.1:{sidecar.admin.port}") as http,
        http.get("/status") as status,
        http.get("/metrics") as metrics,
    ):
        return (await status.json())["policy_store"], await metrics.text()


async def until_not_serving(health: Any) -> None:
    request = health_pb2.HealthCheckRequest(service=POLICY_STORE)
    async with asyncio.timeout(60):
        while (await health.Check(request)).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            await asyncio.sleep(0.05)


async def test_start_with_a_catalog_that_cannot_be_read_decides_by_the_one_before(
    flags: Flags,
) -> None:
    url = flags["policy_store"]["url"]
    with closing(open_policies(settings(flags))) as store:
        write_catalog(store, *CATALOG.values())
    newest = "WHERE name = 'modelCatalog' AND revision = 2"
    changed(url, f"UPDATE changes SET content = '17' {newest}")
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    shown, text = await published(sidecar)
    async with channel_to(sidecar) as channel:
        decision = (await RoutingServiceStub(channel).Route(route_request())).decision
        await until_not_serving(health_pb2_grpc.HealthStub(channel))
    await sidecar.stop(0)

    assert decision.model.model == "acme/large"
    assert shown["problem"].startswith("modelCatalog, revision 2, cannot be read")
    assert "llmrouter_policy_store_up 0.0" in text


async def test_empty_store_starts_and_waits_for_its_first_policy(flags: Flags) -> None:
    del flags["policies"]
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    async with channel_to(sidecar) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RoutingServiceStub(channel).Route(route_request())
    await sidecar.stop(0)

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_writes_are_off_on_an_address_that_others_can_reach(
    flags: Flags, tmp_path: Path
) -> None:
    flags["server"] |= {"grpc_address": "0.0.0.0:0", "uds_path": tmp_path / "s.sock"}
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    async with channel_to(sidecar) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await PolicyServiceStub(channel).UpdatePolicy(update("by TCP"))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's.sock'}") as channel:
        made = await PolicyServiceStub(channel).UpdatePolicy(update("by the socket"))
    await sidecar.stop(0)

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "server.uds_path" in str(caught.value.details())
    assert made.revision == 2


@pytest.mark.parametrize("mutual", [True, False], ids=["mutual TLS", "TLS"])
async def test_writes_over_tcp_are_for_callers_with_a_certificate(
    flags: Flags, tmp_path: Path, mutual: bool
) -> None:
    authority = Authority(tmp_path / "ca")
    server = authority.issue(tmp_path / "server")
    client = authority.issue(tmp_path / "client", "operator")
    flags["server"] |= {
        "grpc_address": "0.0.0.0:0",
        "tls_certificate": server.certificate,
        "tls_key": server.key,
        "tls_client_ca": authority.certificate if mutual else None,
    }
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    tls = Tls(authority.certificate, client.certificate, client.key)
    async with connect_aio(f"127.0.0.1:{sidecar.grpc.port}", tls) as channel:
        try:
            said = str((await PolicyServiceStub(channel).UpdatePolicy(update("x"))).revision)
        except grpc.aio.AioRpcError as error:
            said = f"{error.code().name} {error.details()}"
    await sidecar.stop(0)

    if mutual:
        assert said == "2"
    else:
        assert said.startswith("PERMISSION_DENIED server.grpc_address is 0.0.0.0:0, which others")
        assert "callers are not authenticated" in said
        assert "server.tls_client_ca" in said


async def test_tls_file_that_cannot_be_used_is_named_at_the_start(
    flags: Flags, tmp_path: Path
) -> None:
    flags["server"] |= {"tls_certificate": tmp_path / "a.crt", "tls_key": tmp_path / "a.key"}
    with pytest.raises(StartupError, match=r"TLS: \S+/a\.key cannot be read: No such file"):
        await Sidecar(settings(flags)).start()


async def test_writes_can_be_switched_off(flags: Flags, tmp_path: Path) -> None:
    flags["policy_store"]["writes"] = False
    flags["server"]["uds_path"] = tmp_path / "s.sock"
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    for address in (f"127.0.0.1:{sidecar.grpc.port}", f"unix:{tmp_path / 's.sock'}"):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await PolicyServiceStub(channel).UpdatePolicy(update("no"))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await sidecar.stop(0)


def test_store_is_filled_from_files_whose_names_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    write_files(folder, policy("default"))
    (folder / "default-default.yaml").rename(folder / os.fsdecode(b"\xff.yaml"))
    store = {"url": f"sqlite:{tmp_path / 'policies.db'}"}
    flags: Flags = {"policies": {"paths": (folder,)}, "policy_store": store}

    with closing(open_policies(load_settings(flags=flags, environ={}))) as filled:
        made = filled.policy(name_of("default")).attribution

    assert made is not None
    assert made.message.endswith("/\\udcff.yaml")


def test_store_that_cannot_be_reached_is_named_at_the_start(flags: Flags) -> None:
    flags["policy_store"]["url"] = "sqlite:/no/such/folder/policies.db"

    says = r"policy_store\.url: .*/no/such/folder/policies\.db cannot be opened"
    with pytest.raises(StartupError, match=says):
        Sidecar(settings(flags))


def test_address_of_no_store_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"policy_store\.url: 'mysql' is no kind of store"):
        load_settings(environ={"SIDECAR_POLICY_STORE__URL": "mysql://x/y"})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
