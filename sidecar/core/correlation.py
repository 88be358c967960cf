"""By which ids a request's log entries are joined with what others log of it."""

from __future__ import annotations

import re
from collections.abc import Callable

_REQUEST_ID, _TRACEPARENT = "x-request-id", "traceparent"

_MAX_REQUEST_ID = 128

_FORM = re.compile(
    # Version ff is forbidden; what may follow the flags in a later one may not in version 00.
    r"(?!ff|00.{54})[0-9a-f]{2}-"
    r"((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
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
