"""Tracing, made of its settings: part of the composition root."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.config import TracingSettings

if TYPE_CHECKING:
    from sidecar.observability.tracing import Tracing


class TracingError(Exception):
    """Spans cannot be exported as the settings say; the text says what to do."""


def begin_tracing(section: TracingSettings, count: Callable[[str, int], None]) -> Tracing | None:
    """None if it is switched off; OpenTelemetry is then not even imported.

    Args:
        count: see `Tracing`.

    Raises:
        TracingError: the package is missing, or one of its variables has a value it cannot use.
    """
    if not section.endpoint:
        return None
    try:
        from sidecar.observability.tracing import Tracing
    except ImportError as error:
        raise TracingError(
            f"tracing.endpoint is set, and OpenTelemetry cannot be imported: {error}; install the "
            "extra `tracing` (llm-routing-sidecar[tracing]), or leave tracing.endpoint out"
        ) from None
    try:
        return Tracing(section.endpoint, section.sample_ratio, count)
    except Exception as error:
        raise TracingError(
            f"tracing.endpoint is set, and OpenTelemetry cannot use a variable OTEL_…: {error}"
        ) from None
