"""The composition root: settings in, a running sidecar out. Nothing else knows all the parts."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from sidecar.admin import AdminServer, Console
from sidecar.app_ext_proc import build_ext_proc, envoy_sockets
from sidecar.app_policies import (
    PolicySourceError,
    api_policies,
    begin_live,
    open_policies,
    store_state,
)
from sidecar.app_prices import PriceWatch
from sidecar.app_selection import call_selection
from sidecar.app_tracing import TracingError, begin_tracing
from sidecar.config import ServerSettings, Settings
from sidecar.core.decision import DecisionSink
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt, Enough, Tokenizer
from sidecar.core.policy import Policy
from sidecar.engines import EngineError, EngineInfo, RouterFacts, read_routing_facts
from sidecar.engines.engine_directory import ANSWER_TOKENS
from sidecar.engines.timing import CPU_CONVERSATION_TOKENS
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.grpc_api.listening import ListenError, is_loopback
from sidecar.grpc_api.request_reader import Budget
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.tls import TlsFiles
from sidecar.inference.breaker import CircuitBreaker
from sidecar.inference.guarded import GuardedModel, WatchTimes
from sidecar.inference.load import Load
from sidecar.inference.second_opinion import TritonOpinions
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.inference.triton_text import TritonTextModel, TritonVllmModel
from sidecar.observability.background import logging_in_background
from sidecar.observability.decisions import DecisionLog, DecisionSinks
from sidecar.observability.logging import LogOptions, configure_logging
from sidecar.observability.metrics import (
    LoadedPolicy,
    MeasuredLatency,
    Metrics,
    SidecarState,
    TargetState,
)
from sidecar.observability.recent import RecentDecisions
from sidecar.policies.stores import PolicyStore
from sidecar.prompts import get_format
from sidecar.prompts.budget import MIN_CONVERSATION_TOKENS, fixed_tokens, surely_fits
from sidecar.prompts.second_opinion import Fusion, encoder_texts, with_second_opinion
from sidecar.routing import (
    DecisionCache,
    Latencies,
    Pins,
    PolicyRegistry,
    Router,
    RouterLimits,
    RoutingModelRef,
    Target,
    Targets,
    Warmth,
)
from sidecar.routing.live import LivePolicies

if TYPE_CHECKING:
    from sidecar.observability.tracing import Tracing

_log = structlog.get_logger(__name__)

_TEXT_FORMATS = "arch-router/"

_TEXT_MODELS = {"llmapi": TritonTextModel, "vllm": TritonVllmModel}

_MEASURED_MODELS = 1024
_MEASUREMENTS_FORGOTTEN_S = 600.0
"""A provider's bad hour comes in pieces; each is believed this long after the last request."""


class StartupError(Exception):
    """The sidecar cannot start; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The parts that make decisions."""

    registry: PolicyRegistry
    router: Router
    targets: Targets
    cache: DecisionCache | None
    pins: Pins | None
    latencies: Latencies | None
    ref: RoutingModelRef

    def start(self) -> None:
        for target in self.targets:
            target.model.start()

    async def close(self) -> None:
        await self.targets.close()


def build_routing(settings: Settings, sink: DecisionSink) -> Routing:
    """Loads the routing model's tokenizer; there are no policies yet. Raises StartupError."""
    engine = _engine(settings)
    facts = engine.router
    prompt_format = settings.routing_model.prompt_format or facts.prompt_format
    tokenizer = _tokenizer(engine.tokenizer_path)
    registry = _registry(settings, engine, prompt_format, tokenizer)
    triton = settings.triton
    if triton.interface in _TEXT_MODELS and not prompt_format.startswith(_TEXT_FORMATS):
        raise StartupError(
            f"triton.interface is {triton.interface}, whose models answer in text; prompt format "
            f"{prompt_format} asks for a label. Use a model whose format begins with "
            f"{_TEXT_FORMATS}"
        )
    targets = Targets(
        [
            _target(address, settings, facts, registry, tokenizer)
            for address in dict.fromkeys(triton.addresses or (triton.address,))
        ],
        triton.affinity,
    )
    ref = RoutingModelRef(facts.build_id, prompt_format)
    cache = _cache(settings)
    pins = _pins(settings)
    latencies = _latencies(settings)
    router = Router(
        registry,
        targets,
        sink,
        RouterLimits(
            budget_s=settings.routing.decision_budget_ms / 1000,
            reserve_s=settings.routing.reserve_ms / 1000,
            max_waiting=settings.routing.max_waiting,
        ),
        ref,
        tokenizer.decode,
        cache=cache,
        pins=pins,
        latencies=latencies,
    )
    return Routing(registry, router, targets, cache, pins, latencies, ref)


def _target(
    address: str,
    settings: Settings,
    facts: RouterFacts,
    registry: PolicyRegistry,
    tokenizer: Tokenizer,
) -> Target:
    triton = settings.triton
    load = Load()
    warmth = Warmth(
        registry.named,
        triton.warm_timeout_ms / 1000,
        lambda: model.in_flight > 0,
        load=load,
        in_time_s=settings.routing.decision_budget_ms / 1000,
    )
    where = TritonTarget(
        address=address,
        model=triton.model,
        end_id=facts.end_id,
        pad_id=facts.pad_id,
        vocab_size=facts.vocab_size,
        keepalive_ms=triton.keepalive_ms,
        keepalive_timeout_ms=triton.keepalive_timeout_ms,
        label_ids=facts.takes_label_ids,
        engine=facts.build_id,
    )
    served, encoder_lost = _served(where, settings, facts, tokenizer)
    model = GuardedModel(
        served,
        CircuitBreaker(triton.breaker_failures),
        WatchTimes(open_s=triton.breaker_probe_interval_ms / 1000),
        warmth.recover,
    )
    return Target(
        address,
        model,
        warmth,
        load,
        encoder_lost=encoder_lost,
        other_engine=lambda: served.other_engine,
    )


def _served(
    where: TritonTarget, settings: Settings, facts: RouterFacts, tokenizer: Tokenizer
) -> tuple[TritonModel, Callable[[], str | None]]:
    """The model server's client, and what tells why it does without the encoder."""
    triton, routing = settings.triton, settings.routing
    if text_model := _TEXT_MODELS.get(triton.interface):
        return text_model(where, tokenizer), lambda: None
    if not (facts.encoder_apart and triton.second_opinion):
        return TritonModel(where), lambda: None
    # The other half is for those that the encoder keeps waiting in vain.
    wait_s = (routing.decision_budget_ms - routing.reserve_ms) / 2000
    both = TritonOpinions(where, triton.second_opinion, wait_s)
    return both, lambda: both.encoder_lost


def _cache(settings: Settings) -> DecisionCache | None:
    if settings.cache.max_bytes == 0:
        return None
    return DecisionCache(settings.cache.max_bytes, settings.cache.ttl_seconds)


def _pins(settings: Settings) -> Pins | None:
    if settings.pins.max_entries == 0:
        return None
    return Pins(settings.pins.max_entries, settings.pins.ttl_seconds)


def _latencies(settings: Settings) -> Latencies | None:
    section = settings.ext_proc
    if not (section.enabled and section.measure_latency):
        return None
    return Latencies(_MEASURED_MODELS, _MEASUREMENTS_FORGOTTEN_S)


def _engine(settings: Settings) -> EngineInfo:
    if settings.routing_model.directory is None:
        raise StartupError(
            "routing_model.directory is not set; name the folder of a routing model, "
            "such as one that `sidecar model build` made"
        )
    try:
        return read_routing_facts(settings.routing_model.directory)
    except EngineError as error:
        raise StartupError(f"routing_model.directory: {error}") from None


def _second_opinion(
    engine: EngineInfo, settings: Settings
) -> Callable[[CompiledPrompt, Policy], CompiledPrompt]:
    """What adds the engine's sentence encoder to a compiled prompt. Raises SidecarError."""
    second = engine.router.second_opinion
    path = engine.second_opinion_tokenizer_path
    unasked = engine.router.encoder_apart and not settings.triton.second_opinion
    if second is None or path is None or unasked:
        return lambda compiled, policy: compiled
    probability = settings.routing_model.encoder_alone_from
    texts = encoder_texts(_tokenizer(path))
    facts = second.fusion
    fusion = Fusion(facts.language_model, facts.encoder, facts.other_bias, facts.temperature)
    enough = None
    if facts.alone_encoder > 0 and probability < 1:
        in_place = min(settings.routing_model.encoder_in_place_from, probability)
        enough = Enough(facts.alone_encoder, facts.alone_other_bias, probability, in_place)
    return lambda compiled, policy: with_second_opinion(compiled, policy, texts, fusion, enough)


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return HfTokenizer(path)
    except (OSError, ValueError) as error:
        raise StartupError(f"routing_model.directory: {error}; build the model again") from None


def _registry(
    settings: Settings, engine: EngineInfo, prompt_format: str, tokenizer: Tokenizer
) -> PolicyRegistry:
    max_tokens = _prompt_tokens(settings, engine)
    try:
        default = policy_name(
            settings.policies.default_policy, "policies.default_policy", bare=True
        )
        chosen = get_format(prompt_format)

        give_second_opinion = _second_opinion(engine, settings)

        def compile_prompt(policy: Policy) -> CompiledPrompt:
            compiled = chosen.compile(
                policy,
                tokenizer,
                max_tokens,
                engine.router.temperature,
                _conversation_tokens(settings, engine),
            )
            return give_second_opinion(compiled, policy)

        try:
            fixed = fixed_tokens(compile_prompt)
        except SidecarError as error:
            if error.code is not ErrorCode.POLICY_TOO_LARGE:
                raise
            raise StartupError(
                f"prompts may have {max_tokens} tokens, too few for any policy: make "
                "routing_model.max_prompt_tokens larger or leave it out, or use a model with a "
                "longer context"
            ) from None
        registry = PolicyRegistry(
            (),
            {},
            compile_prompt,
            default_policy=default,
            max_prompt_tokens=max_tokens,
            surely_fits=lambda policy: surely_fits(policy, fixed, max_tokens),
            compiled_bytes=settings.policies.compiled_max_bytes,
        )
    except SidecarError as error:
        raise StartupError(error.message) from None
    return registry


def _prompt_tokens(settings: Settings, engine: EngineInfo) -> int:
    configured, context = settings.routing_model.max_prompt_tokens, engine.router.context_length
    room = context - ANSWER_TOKENS
    if configured is not None and configured > room:
        # Else policies would be accepted that the model server refuses to read.
        raise StartupError(
            f"routing_model.max_prompt_tokens is {configured}; the engine holds {context} tokens, "
            f"{ANSWER_TOKENS} of them for the answer: make it {room} or less, or leave it out"
        )
    return room if configured is None else configured


def _conversation_tokens(settings: Settings, engine: EngineInfo) -> int | None:
    configured = settings.routing_model.max_conversation_tokens
    if configured is not None or engine.router.runtime != "openvino":
        return configured
    timing = engine.router.timing
    if timing is None:
        return CPU_CONVERSATION_TOKENS
    routing = settings.routing
    # The other half is for what is beside the pass, and for the slow ones among many.
    measured = timing.tokens_within((routing.decision_budget_ms - routing.reserve_ms) / 2)
    return max(MIN_CONVERSATION_TOKENS, min(measured, CPU_CONVERSATION_TOKENS))


def _policies(settings: Settings, routing: Routing) -> tuple[PolicyStore, LivePolicies]:
    try:
        store = open_policies(settings)
        return store, begin_live(store, routing.registry, routing.targets, settings)
    except (PolicySourceError, SidecarError) as error:
        raise StartupError(str(error)) from None


def _tracing(settings: Settings, metrics: Metrics) -> Tracing | None:
    try:
        return begin_tracing(settings.tracing, metrics.spans)
    except TracingError as error:
        raise StartupError(str(error)) from None


def _tls(server: ServerSettings) -> TlsFiles | None:
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return TlsFiles(server.tls_certificate, server.tls_key, server.tls_client_ca)


class Sidecar:
    """One sidecar: what decides and what listens.

    Raises:
        StartupError: when made, for settings that cannot work.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        metrics = Metrics(settings.metrics.max_policy_labels)
        self._tracing = _tracing(settings, metrics)
        traced = [] if self._tracing is None else [self._tracing]
        shows = settings.admin.console and settings.server.http_address
        recent = RecentDecisions() if shows else None
        shown = [] if recent is None else [recent]
        log = DecisionLog(settings.logging.log_message_text)
        self._routing = build_routing(settings, DecisionSinks(log, metrics, *traced, *shown))
        self._store, self._live = _policies(settings, self._routing)
        self._prices = PriceWatch(
            lambda: self._routing.registry.catalog, settings.policies.price_max_age_days
        )
        self._following: list[asyncio.Task[None]] = []
        server = settings.server
        mounted = build_ext_proc(
            settings,
            self._routing.router,
            self._routing.registry,
            metrics,
            self._routing.latencies,
            self._routing.router,
            self._tracing,
        )
        self.grpc = GrpcServer(
            self._routing.router,
            self._routing.registry,
            metrics,
            ServerOptions(
                address=server.grpc_address,
                tls=_tls(server),
                socket=server.uds_path,
                max_message_bytes=server.max_message_bytes,
                max_concurrent_calls=server.max_concurrent_calls,
                reflection=server.reflection,
                channelz=server.channelz,
                selection=call_selection(settings),
                max_price_age_days=settings.policies.price_max_age_days,
                budget=Budget(
                    settings.routing.decision_budget_ms / 1000, settings.routing.reserve_ms / 1000
                ),
            ),
            mounted=mounted,
            sockets=envoy_sockets(settings, mounted),
            policies=api_policies(settings, self._store, self._live),
            layers=traced,
        )
        metrics.watch(self.state)
        self.admin = self._admin(metrics, recent) if server.http_address else None

    def _admin(self, metrics: Metrics, recent: RecentDecisions | None) -> AdminServer:
        address, console = self._settings.server.http_address, None
        if recent is not None:
            registry, trials = self._routing.registry, self.grpc.trials
            console = Console(address, registry, recent.entries, trials.decide)
            if not is_loopback(address):
                _log.warning(
                    "the console shows policies and decisions to whoever reaches its address, and "
                    "tries their requests; admin.console switches it off",
                    address=address,
                )
        return AdminServer(address, metrics, self.state, console)

    def state(self) -> SidecarState:
        """What it is doing now."""
        routing, prices = self._routing, self._prices.ages()
        return SidecarState(
            ready=self.grpc.ready,
            degraded=routing.router.degraded,
            routing_model=routing.ref.id,
            prompt_format=routing.ref.prompt_format,
            policies=tuple(
                LoadedPolicy(
                    each.ref.name, each.ref.revision, each.ref.digest, len(each.policy.routes)
                )
                for each in routing.registry.named()
            ),
            waiting=routing.router.waiting,
            policy_store=store_state(self._live),
            targets=tuple(
                TargetState(
                    each.name,
                    each.model.degraded,
                    each.load.in_flight,
                    each.encoder_lost(),
                    each.other_engine(),
                )
                for each in routing.targets
            ),
            pinned=len(routing.pins or ()),
            compiled=routing.registry.compiled_policies,
            compiled_bytes=routing.registry.compiled_bytes,
            cached=len(routing.cache or ()),
            cached_bytes=routing.cache.nbytes if routing.cache else 0,
            models=len(routing.registry.catalog),
            models_unpriced=len(prices.unpriced),
            prices_stale=len(prices.stale),
            prices_undated=len(prices.undated),
            prices_oldest=prices.oldest.isoformat() if prices.oldest else "",
            latencies=tuple(
                MeasuredLatency(model, whole, seconds)
                for (model, whole), seconds in (
                    routing.latencies.measured() if routing.latencies else {}
                ).items()
            ),
        )

    async def start(self) -> None:
        """Opens the addresses. Raises StartupError."""
        self._routing.start()
        self._following = [
            asyncio.create_task(self._live.follow(), name="policies"),
            asyncio.create_task(self._prices.follow(), name="prices"),
        ]
        try:
            # HTTP first: a process that cannot be watched should not take requests.
            if self.admin is not None:
                await self.admin.start()
            await self.grpc.start()
        except (ListenError, OSError) as error:
            await self.stop(0)
            raise StartupError(str(error)) from None

    async def stop(self, grace_s: float) -> None:
        """Drains within `grace_s` and closes everything. A second call with a shorter time, while
        the first waits, shortens it."""
        await self.grpc.stop(grace_s)
        if self.admin is not None:
            await self.admin.stop()
        for each in self._following:
            each.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self._live.close()
        self._store.close()
        await self._routing.close()
        if self._tracing is not None:
            await self._tracing.close()


_SWITCH_S = 0.002
"""How long a thread that computes, such as one that reads a large body, keeps the event loop from
going on. With CPython's 5 ms a request that takes three steps waits 15 ms beside it."""


def run(settings: Settings, started: Callable[[Sidecar], None] = lambda sidecar: None) -> None:
    """Serves until SIGTERM or SIGINT. Raises StartupError.

    Args:
        started: called once the addresses are open.
    """
    configure_logging(
        LogOptions(
            settings.logging.level, settings.logging.format, settings.logging.log_message_text
        )
    )
    sys.setswitchinterval(_SWITCH_S)
    with logging_in_background(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, started))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        # It has no build for every platform; the standard loop is half as fast and right.
        return None
    return uvloop.new_event_loop


async def serve(
    settings: Settings,
    started: Callable[[Sidecar], None] = lambda sidecar: None,
    stop: asyncio.Event | None = None,
) -> None:
    """As `run`, in the running event loop; setting `stop` ends it like a signal does."""
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    stopping = stop or asyncio.Event()
    with _signals(stopping) as forced:
        # Thousands of policies are read: collections in between would visit them all each time.
        gc.disable()
        try:
            sidecar = Sidecar(settings)
            await sidecar.start()
            # What was made until now stays for good; left out of collections, which visit it all,
            # these hold up the event loop for a few milliseconds instead of fifty.
            gc.collect()
            gc.freeze()
        finally:
            gc.enable()
        started(sidecar)
        await stopping.wait()
        grace = settings.server.drain_seconds
        _log.info("stopping: waiting for calls in flight, a second signal ends them", grace_s=grace)
        draining = asyncio.create_task(sidecar.stop(grace))
        forcing = asyncio.create_task(forced.wait())
        await asyncio.wait({draining, forcing}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            _log.warning("stopping now: calls in flight are cancelled")
            sidecar.grpc.end_grace()
        forcing.cancel()
        await draining
    _log.info("stopped")


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[asyncio.Event]:
    """The first SIGTERM or SIGINT sets `stopping`, the second the event that is yielded."""
    forced = asyncio.Event()

    def received() -> None:
        (forced if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, received)
    try:
        yield forced
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leaves out asyncio's own text, which quotes the exception and with it what it holds."""
    _log.error(
        "error in the event loop", what=context["message"], exc_info=context.get("exception")
    )
