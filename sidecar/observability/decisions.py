"""Where decisions are recorded."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import structlog

from sidecar.core.conversation import Role
from sidecar.core.decision import Decision, DecisionSink, RoutingRequest
from sidecar.observability.logging import log_info

_log = structlog.get_logger(__name__)

_CANDIDATES = 3
"""Most probable ones that an entry names: a route that is an action, its domain and another."""


MAX_TEXT = 4096
"""Characters of a message that an entry has. What waits to be written, thousands of entries where
the log is not read, holds them in memory."""


class DecisionLog:
    """Logs one `decision` entry for each decision."""

    def __init__(self, log_message_text: bool = False) -> None:
        self._logger = logging.getLogger(__name__)
        self._log_message_text = log_message_text

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        if not self._logger.isEnabledFor(logging.INFO):
            return
        text = _newest_user_text(request) if self._log_message_text else None
        log_info(self._logger, "decision", decision_entry(decision, text))


def facts(decision: Decision) -> dict[str, Any]:
    """What is told of every decision, wherever it is recorded; no message content."""
    return {
        "decision_id": decision.id,
        "source": decision.source.value,
        "reason": decision.reason.value,
        "route": decision.route,
        "model": decision.model.id,
        "policy": decision.policy.name or "inline",
        "policy_revision": decision.policy.revision,
        "policy_digest": decision.policy.digest,
        "routing_model": decision.routing_model,
        "confidence": None if decision.confidence is None else round(decision.confidence, 4),
    }


def decision_entry(decision: Decision, text: str | None = None) -> dict[str, Any]:
    """An entry of the log; no message content but `text`."""
    entry = facts(decision)
    entry["ms"] = round(decision.total_ms, 2)
    if asked := decision.asked:
        entry["asked"] = asked
    if decision.detail:
        entry["detail"] = decision.detail
    if decision.candidates:
        entry["candidates"] = [
            {"route": each.name, "probability": round(each.probability, 4)}
            for each in decision.candidates[:_CANDIDATES]
        ]
    if text is not None:
        entry["text"] = text
    return entry


def _newest_user_text(request: RoutingRequest) -> str:
    users = (m.text for m in reversed(request.conversation.messages) if m.role is Role.USER)
    text = next(users, "")
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


class DecisionSinks:
    """Records each decision in several places. One that fails does not keep it from the others.

    They do so in the next turn of the event loop: the answer is sent at the end of this one, and
    does not wait for them.
    """

    def __init__(self, *sinks: DecisionSink) -> None:
        self._sinks = sinks

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        asyncio.get_running_loop().call_soon(self._record, request, decision)

    def _record(self, request: RoutingRequest, decision: Decision) -> None:
        for sink in self._sinks:
            try:
                sink.record(request, decision)
            except Exception:
                _log.exception("decision not recorded", sink=type(sink).__name__)
