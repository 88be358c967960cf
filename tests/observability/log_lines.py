"""Lines of a log, as a sidecar writes them."""

from __future__ import annotations

import json
from typing import Any

SUPPORT = "namespaces/default/policies/support"


def line(**changed: Any) -> bytes:
    """An entry `decision`; keys that are None are left out."""
    entry = {
        "method": "llmrouter.v1.RoutingService/Route",
        "decision_id": "00112233445566778899aabbccddeeff",
        "source": "model",
        "reason": "matched",
        "route": "billing",
        "model": "acme/small",
        "policy": SUPPORT,
        "policy_revision": 3,
        "policy_digest": "sha256:0",
        "routing_model": "stub",
        "confidence": 0.75,
        "ms": 10.0,
        "detail": "The routing model chose billing.",
        "candidates": [{"route": "billing", "probability": 0.75}],
        "event": "decision",
        "level": "info",
        "logger": "sidecar.observability.decisions",
        "timestamp": "2026-08-01T10:00:00.000000Z",
    }
    kept = {key: value for key, value in (entry | changed).items() if value is not None}
    return json.dumps(kept).encode() + b"\n"


OTHER_ENTRY = b'{"event": "policy in force", "level": "info", "decision_id": "none"}\n'
"""Of the sidecar, and no decision."""
