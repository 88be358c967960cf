"""What makes decisions, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.config import Settings
from sidecar.core.decision import DecisionSink
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt, Enough, Tokenizer
from sidecar.core.policy import Policy
from sidecar.engines import EngineError, EngineInfo, RouterFacts, read_routing_facts
from sidecar.engines.engine_directory import ANSWER_TOKENS
from sidecar.engines.timing import CPU_CONVERSATION_TOKENS
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.inference.breaker import CircuitBreaker
from sidecar.inference.calls import DecisionTrace
from sidecar.inference.guarded import GuardedModel, WatchTimes
from sidecar.inference.load import Load
from sidecar.inference.second_opinion import TritonOpinions
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.inference.triton_text import TritonTextModel, TritonVllmModel
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


def build_routing(
    settings: Settings,
    sink: DecisionSink,
    begin_trace: Callable[[], DecisionTrace] | None = None,
) -> Routing:
    """Loads the routing model's tokenizer; there are no policies yet. Raises StartupError.

    Args:
        begin_trace: see `Router`.
    """
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
        begin_trace=begin_trace,
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
