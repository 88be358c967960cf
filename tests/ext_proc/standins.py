"""Stand-ins for what the service talks to, and the service on a socket of its own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision, PolicyRef, Reason, RoutingRequest, Source
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import ApiDialect, Catalog, Model
from sidecar.ext_proc.envoy_socket import EnvoySocket
from sidecar.ext_proc.issued import IssuedObserver
from sidecar.ext_proc.options import ExtProcOptions, Waiting
from sidecar.ext_proc.request import (
    Dialects,
    HttpHead,
    HttpRequest,
    Passed,
    PassReason,
    Understood,
)
from sidecar.ext_proc.service import SERVICE, ExtProcService
from sidecar.ext_proc.timing import LatencyObserver
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.health import HealthService
from sidecar.grpc_api.interceptors import Errors, Layer, LayeredServer
from sidecar.grpc_api.listening import bound_unix

if TYPE_CHECKING:
    from sidecar.observability.tracing import Tracing

CATALOG: Catalog = {
    "big/coder": Model("big/coder", "coder-1", cluster="big"),
    "small/mini": Model("small/mini", "mini-2", cluster="small"),
}


ALONE = ".alone"
PATIENT = ExtProcOptions(waiting=Waiting(message_timeout_s=60))
"""Other tests compute beside these: a large body may not be read within the second of service."""


class StubRouter:
    """Chooses the coder where the last message says `code`. `gate` holds decisions back."""

    def __init__(self) -> None:
        self.requests: list[RoutingRequest] = []
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.catalog = CATALOG
        self.choose: Callable[[RoutingRequest], str] = coder_for_code

    async def decide(self, request: RoutingRequest) -> Decision:
        self.requests.append(request)
        if self.error:
            raise self.error
        if self.gate is not None or self.delay_s:
            try:
                await (self.gate.wait() if self.gate else asyncio.sleep(self.delay_s))
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        name = getattr(request.policy, "name", "")
        if name == "missing":
            raise SidecarError(ErrorCode.POLICY_NOT_FOUND, "there is no policy missing")
        return decision_of(request, request.model or self.choose(request), self.catalog)


def coder_for_code(request: RoutingRequest) -> str:
    return "big/coder" if "code" in request.conversation.messages[-1].text else "small/mini"


def decision_of(
    request: RoutingRequest, model: str = "big/coder", catalog: Catalog = CATALOG
) -> Decision:
    others = tuple(other for other in catalog.values() if other.id != model)[:2]
    if request.model:
        others = ()
    return Decision(
        id=f"d-{model}",
        route="coding" if model == "big/coder" else "",
        model=catalog[model],
        fallbacks=others,
        source=Source.OVERRIDE if request.model else Source.MODEL,
        reason=Reason.MODEL_REQUESTED if request.model else Reason.MATCHED,
        detail="",
        policy=PolicyRef("namespaces/default/policies/default", 1, "sha256:0"),
        prompt_format="stub",
        routing_model="stub",
        confidence=0.5,
    )


class StubDialects:
    """Reads Chat Completions alone, the plain way."""

    def recognise(self, head: HttpHead) -> ApiDialect | Passed:
        if head.method != "POST" or not head.path.endswith("/chat/completions"):
            return Passed(PassReason.NOT_AN_LLM_REQUEST)
        if not head.header("content-type").startswith("application/json"):
            return Passed(PassReason.NOT_JSON)
        return ApiDialect.OPENAI_CHAT

    def keeps(self, head: HttpHead) -> bool:
        return False

    def read(self, request: HttpRequest) -> Understood | Passed:
        if not request.complete:
            return Passed(PassReason.INCOMPLETE_BODY)
        try:
            body = json.loads(request.body or b"")
            messages = tuple(Message(Role(m["role"]), m["content"]) for m in body["messages"])
            model = body.get("model") or ""
        except ValueError:
            return Passed(PassReason.MALFORMED_BODY)
        at = model_at(request.body or b"")
        return Understood(ApiDialect.OPENAI_CHAT, model, Conversation(messages), model_at=at)


def model_at(body: bytes) -> tuple[int, int] | None:
    """Where the value of its first `model` begins and ends."""
    found = re.search(rb'"model"\s*:\s*("[^"]*"|null)', body)
    return found.span(1) if found else None


@dataclass
class RunningService:
    """The service on a socket."""

    socket: Path
    router: StubRouter
    drain: Drain
    server: grpc.aio.Server
    options: ExtProcOptions = field(default_factory=ExtProcOptions)


@asynccontextmanager
async def service_on(
    socket: Path,
    options: ExtProcOptions | None = None,
    router: StubRouter | None = None,
    dialects: Dialects | None = None,
    latencies: LatencyObserver | None = None,
    issued: IssuedObserver | None = None,
    tracing: Tracing | None = None,
    max_calls: int = 1000,
) -> AsyncIterator[RunningService]:
    """Serves until the end of the block; a socket whose name ends with `ALONE` not by gRPC's
    library, but as the one for Envoy alone."""
    layers: list[Layer] = [Errors()] if tracing is None else [Errors(), tracing]
    router = router or StubRouter()
    options = options or PATIENT
    drain = Drain()
    server = LayeredServer(
        grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)]), layers
    )
    service = ExtProcService(
        router,
        router,
        dialects or StubDialects(),
        options,
        latencies=latencies,
        issued=issued,
        traces=tracing,
    )
    service.add_to(server, drain)
    health = HealthService((SERVICE,), drain)
    add_HealthServicer_to_server(health, server)
    health.serve()
    envoy_socket = EnvoySocket(service, socket, max_calls, 16 * 1024 * 1024)
    if socket.suffix == ALONE:
        await envoy_socket.start(bound_unix(socket), health, layers)
    else:
        server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield RunningService(socket, router, drain, server, options)
    finally:
        await envoy_socket.stop()
        await server.stop(0)


def chat(text: str, model: str = "auto", size: int = 0) -> bytes:
    """A Chat Completions request, padded by a system message to at least `size` bytes."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    plain = json.dumps(body).encode()
    if len(plain) >= size:
        return plain
    padding = {"role": "system", "content": "x" * (size - len(plain))}
    body["messages"] = [padding, *body["messages"]]
    return json.dumps(body).encode()


def spliced(body: bytes, model: str) -> bytes:
    """What the upstream must get."""
    at = model_at(body)
    if at is None and body.startswith(b"{"):
        return b'{"model": "%b",%b' % (model.encode(), body[1:])
    if at is None:
        # Compressed.
        return body
    return b'%b"%b"%b' % (body[: at[0]], model.encode(), body[at[1] :])


Headers = Mapping[str, str]
