"""Decisions to protobuf messages and back."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.duration_pb2 import Duration

from sidecar._generated.llmrouter.v1 import decision_pb2
from sidecar.core.decision import (
    Candidate,
    Decision,
    Excluded,
    Explanation,
    PolicyRef,
    Reason,
    Source,
    StepTime,
)
from sidecar.core.policy import Model
from sidecar.grpc_api.convert.enums import REASON, SOURCE

_ENCODED = 256
"""Lists of candidates that are kept encoded: some kilobytes each."""


def put_decision(decision: Decision, message: decision_pb2.Decision) -> None:
    """Fills `message`, which is empty and in its place: a decision that is made by itself and then
    put into a response is copied, which takes as long as half of this."""
    message.decision_id = decision.id
    message.route = decision.route
    _put_model(decision.model, message.model)
    for model in decision.fallbacks:
        _put_model(model, message.fallbacks.add())
    message.source = SOURCE.to_proto(decision.source)
    message.reason = REASON.to_proto(decision.reason)
    message.detail = decision.detail
    if decision.confidence is not None:
        message.confidence = decision.confidence
    message.policy = decision.policy.name
    message.policy_revision = decision.policy.revision
    message.policy_digest = decision.policy.digest
    message.prompt_format = decision.prompt_format
    message.routing_model = decision.routing_model
    if decision.candidates:
        message.MergeFromString(_encoded(decision.candidates))
    for step in decision.steps:
        _put_ms(message.steps.add(step=step.step).duration, step.ms)
    if decision.explanation is not None:
        message.explanation.CopyFrom(_explanation_to_proto(decision.explanation))


@lru_cache(_ENCODED)
def _encoded(candidates: tuple[Candidate, ...]) -> bytes:
    """A decision with nothing else. Conversations that are known have the same candidates each
    time, and to put them into a message takes longer than all else that is put there."""
    message = decision_pb2.Decision()
    add_candidate = message.candidates.add
    for name, probability in candidates:
        add_candidate(route=name, probability=probability)
    return message.SerializeToString()


def decision_to_core(message: decision_pb2.Decision) -> Decision:
    """For callers. Values of a newer sidecar that this version does not know read as a defect
    (`INTERNAL_ERROR`) of source `FALLBACK`."""
    return Decision(
        id=message.decision_id,
        route=message.route,
        model=_model_to_core(message.model),
        fallbacks=tuple(_model_to_core(model) for model in message.fallbacks),
        source=SOURCE.to_core(message.source) or Source.FALLBACK,
        reason=REASON.to_core(message.reason) or Reason.INTERNAL_ERROR,
        detail=message.detail,
        policy=PolicyRef(message.policy, message.policy_revision, message.policy_digest),
        prompt_format=message.prompt_format,
        routing_model=message.routing_model,
        confidence=message.confidence if message.HasField("confidence") else None,
        candidates=tuple(Candidate(each.route, each.probability) for each in message.candidates),
        steps=tuple(
            StepTime(each.step, each.duration.ToNanoseconds() / 1e6) for each in message.steps
        ),
        explanation=_explanation_to_core(message),
    )


def _put_model(model: Model, message: decision_pb2.ModelChoice) -> None:
    message.model = model.id
    message.upstream_model = model.upstream_model
    message.cluster = model.cluster
    message.host = model.host


def _model_to_core(message: decision_pb2.ModelChoice) -> Model:
    return Model(message.model, message.upstream_model, message.cluster, message.host)


def _explanation_to_proto(explanation: Explanation) -> decision_pb2.Explanation:
    return decision_pb2.Explanation(
        prompt=explanation.prompt,
        prompt_tokens=explanation.prompt_tokens,
        prefix_tokens=explanation.prefix_tokens,
        truncated=explanation.truncated,
        answer=explanation.answer,
        excluded=[
            decision_pb2.ExcludedModel(model=each.model, why=each.why)
            for each in explanation.excluded
        ],
    )


def _explanation_to_core(message: decision_pb2.Decision) -> Explanation | None:
    if not message.HasField("explanation"):
        return None
    sent = message.explanation
    return Explanation(
        prompt=sent.prompt,
        prompt_tokens=sent.prompt_tokens,
        prefix_tokens=sent.prefix_tokens,
        truncated=sent.truncated,
        excluded=tuple(Excluded(each.model, each.why) for each in sent.excluded),
        answer=sent.answer,
    )


def _put_ms(duration: Duration, milliseconds: float) -> None:
    # By hand: `FromNanoseconds` is written in Python and checks, five times for a decision.
    duration.seconds, duration.nanos = divmod(round(milliseconds * 1e6), 1_000_000_000)
