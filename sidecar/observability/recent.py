"""The last decisions of this process, for the console."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.observability.decisions import decision_entry

RECENT = 200


class RecentDecisions:
    """A sink that keeps the last decisions, as the log has them: without message content.

    Args:
        most: decisions; the oldest go first.
    """

    def __init__(self, most: int = RECENT) -> None:
        self._kept: deque[tuple[datetime, bool, Decision]] = deque(maxlen=most)

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        # Written out when somebody looks; an explanation holds the prompt.
        kept = decision if decision.explanation is None else replace(decision, explanation=None)
        self._kept.append((datetime.now(UTC), request.trial, kept))

    def entries(self) -> Sequence[dict[str, Any]]:
        """The newest first."""
        return [
            {"time": time.isoformat(timespec="milliseconds"), "trial": trial}
            | decision_entry(decision)
            for time, trial, decision in reversed(self._kept)
        ]
