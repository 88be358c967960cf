"""Decisions to protobuf messages and back."""

from __future__ import annotations

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


def decision_to_proto(decision: Decision) -> decision_pb2.Decision:
    message = decision_pb2.Decision(
        decision_id=decision.id,
        route=decision.route,
        model=_model_to_proto(decision.model),
        fallbacks=[_model_to_proto(model) for model in decision.fallbacks],
        source=SOURCE.to_proto(decision.source),
        reason=REASON.to_proto(decision.reason),
        detail=decision.detail,
        confidence=decision.confidence,
        policy=decision.policy.name,
        policy_revision=decision.policy.revision,
        policy_digest=decision.policy.digest,
        prompt_format=decision.prompt_format,
        routing_model=decision.routing_model,
        explanation=_explanation_to_proto(decision.explanation),
    )
    # Made in their place: made by themselves and then copied, they take four times as long, which
    # is longer than all else here.
    add_candidate = message.candidates.add
    for candidate in decision.candidates:
        add_candidate(route=candidate.name, probability=candidate.probability)
    for step in decision.steps:
        _put_ms(message.steps.add(step=step.step).duration, step.ms)
    return message


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


def _model_to_proto(model: Model) -> decision_pb2.ModelChoice:
    return decision_pb2.ModelChoice(
        model=model.id,
        upstream_model=model.upstream_model,
        cluster=model.cluster,
        host=model.host,
    )


def _model_to_core(message: decision_pb2.ModelChoice) -> Model:
    return Model(message.model, message.upstream_model, message.cluster, message.host)


def _explanation_to_proto(explanation: Explanation | None) -> decision_pb2.Explanation | None:
    if explanation is None:
        return None
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
