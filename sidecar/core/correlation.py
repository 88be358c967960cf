"""By which ids what is logged and traced of a request is joined with what others tell of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_REQUEST_ID, _TRACEPARENT = "x-request-id", "traceparent"

_MAX_REQUEST_ID = 128
_MAX_TRACESTATE = 512

_FORM = re.compile(
    # Version ff is forbidden; what may follow the flags in a later one may not in version 00.
    r"(?!ff|00.{54})[0-9a-f]{2}-"
    r"((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
"""Of a traceparent (https://www.w3.org/TR/trace-context/#traceparent-header)."""


def correlation_ids(header: Callable[[str], str]) -> dict[str, str]:
    """What a request's log entries carry: `request_id`, as its sender calls it, and the `trace_id`
    that it is part of, each if it was sent and can stand in a log.

    Args:
        header: the value of a header or metadata key in lower case; empty if there is none.
    """
    ids: dict[str, str] = {}
    request_id = header(_REQUEST_ID)
    if request_id and request_id.isprintable():
        ids["request_id"] = request_id[:_MAX_REQUEST_ID]
    trace = _FORM.fullmatch(header(_TRACEPARENT))
    if trace is not None:
        ids["trace_id"] = trace[1]
    return ids


class TraceParent(NamedTuple):
    """The span that a request was sent from.

    Args:
        trace_id, span_id: in hexadecimal.
        flags: eight bits, of which the lowest says that its trace is recorded.
        state: what tracing systems add; empty if nothing, or too much to be passed on.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str


def trace_parent(traceparent: str, tracestate: str) -> TraceParent | None:
    """The span that the headers name; None if they name none."""
    sent = _FORM.fullmatch(traceparent)
    if sent is None:
        return None
    state = tracestate if len(tracestate) <= _MAX_TRACESTATE else ""
    return TraceParent(sent[1], sent[2], int(sent[3], 16), state)
