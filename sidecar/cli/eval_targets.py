"""What `sidecar eval` asks: a router in this process, or a sidecar that runs already."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from sidecar._generated.llmrouter.v1 import policy_pb2, policy_pb2_grpc, routing_pb2_grpc
from sidecar.app_policies import begin_live, open_policies
from sidecar.app_routing import Routing, build_routing
from sidecar.cli.client import SidecarClient
from sidecar.cli.connection import connect_aio, no_answer
from sidecar.cli.failures import Failure
from sidecar.cli.stack import interrupted_by_signals, load_timeout_s
from sidecar.cli.steps import Steps
from sidecar.cli.tls_options import Tls
from sidecar.config import Settings, load_settings
from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.engines import EngineInfo, render_cpu_repository
from sidecar.evaluation.asking import Decide
from sidecar.evaluation.policies import MODEL_ID
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.grpc_api.convert.outgoing_requests import request_to_proto
from sidecar.grpc_api.convert.requests import RequestLimits, check_size
from sidecar.local import TritonServer, new_run_folder, remove_run_folder
from sidecar.observability.decisions import DecisionSinks

_BUDGET_MS = 60_000
"""What is measured are decisions: none should be a fallback because this computer is slow."""

_READY_TIMEOUT_S = 120
_POLL_S = 0.05
_CALL_TIMEOUT_S = 120.0
_HEALTH_TIMEOUT_S = 2.0

_POLICIES = f"""
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - {{id: {MODEL_ID}, upstream_model: none}}
---
apiVersion: llmrouter.v1
kind: Policy
name: evaluation
default: {{models: [{MODEL_ID}]}}
routes:
  - {{name: unused, description: Nothing; every case brings its routes., models: [{MODEL_ID}]}}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that decides.

    Args:
        model_id: a model of its catalog.
        check: raises Failure if it has died.
    """

    decide: Decide
    model_id: str
    check: Callable[[], None]


@contextmanager
def local_triton(engine: EngineInfo, steps: Steps) -> Iterator[TritonServer]:
    """A Triton that serves `engine`, stopped at the end of the block, which is
    `interrupted_by_signals`.

    Raises:
        LocalError: Triton cannot run here or did not start.
    """
    with interrupted_by_signals():
        folder = new_run_folder("eval")
        try:
            with steps.step("Starting Triton with the routing model") as report:
                repository = render_cpu_repository(engine.path, folder)
                triton = TritonServer(
                    repository,
                    ready_timeout_s=load_timeout_s(engine),
                    exit_timeout_s=2,
                    report=report,
                )
                triton.start()
            try:
                yield triton
            finally:
                triton.stop()
        finally:
            remove_run_folder(folder)


@asynccontextmanager
async def local_router(
    engine: EngineInfo, triton_address: str, check: Callable[[], None]
) -> AsyncIterator[Target]:
    """The router of a sidecar, with its default settings but for the budget, without its edges.

    Raises:
        Failure: the routing model was not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="sidecar-eval-") as folder:
        policies = Path(folder) / "policies.yaml"
        policies.write_text(_POLICIES)
        settings = _settings(engine, triton_address, policies)
        # Decisions are kept by who asked for them.
        routing = build_routing(settings, DecisionSinks())
        with closing(open_policies(settings)) as store:
            begin_live(store, routing.registry, routing.targets, settings)
    routing.start()
    try:
        await _until_ready(routing, check)
        yield Target(routing.router.decide, MODEL_ID, check)
    finally:
        await routing.close()


def _settings(engine: EngineInfo, triton_address: str, policies: Path) -> Settings:
    return load_settings(
        flags={
            "policies": {"paths": (policies,), "default_policy": "evaluation"},
            "routing": {"decision_budget_ms": _BUDGET_MS, "max_waiting": 10_000},
            # Each round asks the model, however often a case comes.
            "cache": {"max_bytes": 0},
            "triton": {"address": triton_address},
            "routing_model": {"directory": engine.path},
        },
        # Not those of a sidecar that is configured on this machine.
        environ={},
    )


async def _until_ready(routing: Routing, check: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while routing.router.degraded:
                check()
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise Failure(f"the routing model is not ready: {routing.router.degraded}") from None


@asynccontextmanager
async def running_sidecar(address: str, tls: Tls | None = None) -> AsyncIterator[Target]:
    """The sidecar at `address`, with its own budget.

    Raises:
        Failure: it does not answer, its routing model does not, or it has no model to route to.
    """
    async with connect_aio(address, tls) as channel:
        routing: routing_pb2_grpc.RoutingServiceStub = routing_pb2_grpc.RoutingServiceStub(channel)

        async def decide(request: RoutingRequest) -> Decision:
            message = request_to_proto(request)
            # It would be refused with the status of a sidecar that has too much to do.
            check_size(message, RequestLimits())
            try:
                answer = await routing.Route(message, timeout=_CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise SidecarError(
                        ErrorCode.INVALID_REQUEST, error.details() or "refused"
                    ) from None
                raise _unreachable(address, tls, error) from None
            return decision_to_core(answer.decision)

        model_id = await _some_model(channel, address, tls)
        await _until_deciding(address, tls)
        yield Target(decide, model_id, lambda: None)


async def _until_deciding(address: str, tls: Tls | None) -> None:
    """Until the sidecar asks its routing model: one that has just started answers by fallback."""

    def deciding() -> bool:
        with SidecarClient(address, _HEALTH_TIMEOUT_S, tls) as client:
            return client.decides_by_model()

    end = time.monotonic() + _READY_TIMEOUT_S
    while not await asyncio.to_thread(deciding):
        if time.monotonic() > end:
            raise Failure(f"the routing model of the sidecar at {address} does not answer")
        await asyncio.sleep(_POLL_S)


async def _some_model(channel: grpc.aio.Channel, address: str, tls: Tls | None) -> str:
    """The model of the sidecar's catalog with the most room: no case is to be too long for it."""
    stub: policy_pb2_grpc.PolicyServiceStub = policy_pb2_grpc.PolicyServiceStub(channel)
    request = policy_pb2.GetModelCatalogRequest()
    try:
        catalog = await stub.GetModelCatalog(request, timeout=_CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise _unreachable(address, tls, error) from None
    if not catalog.models:
        raise Failure(f"the sidecar at {address} has no model catalog; apply one first")
    return max(catalog.models, key=_room).id


def _room(model: policy_pb2.CatalogModel) -> float:
    return model.context_window if model.HasField("context_window") else math.inf


def _unreachable(address: str, tls: Tls | None, error: grpc.aio.AioRpcError) -> Failure:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Failure(f"{no_answer(address, tls, error.details())}; start one with `sidecar up`")
    return Failure(f"the sidecar at {address}: {error.details()} ({error.code().name})")
