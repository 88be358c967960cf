"""Which ids of a request its log entries carry."""

from __future__ import annotations

import pytest

from sidecar.core.correlation import TraceParent, correlation_ids, trace_parent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def ids(**headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return correlation_ids(lambda name: named.get(name, ""))


@pytest.mark.parametrize(
    ("sent", "request_id"),
    [
        ("r-17", "r-17"),
        ("x" * 129, "x" * 128),
        ("", None),
        ("two\nlines", None),
        ("\x1b[31m", None),
    ],
    ids=["short", "too long", "empty", "line break", "control character"],
)
def test_request_id_is_short_and_printable(sent: str, request_id: str | None) -> None:
    assert ids(x_request_id=sent).get("request_id") == request_id


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-00",
        f"01-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-what-the-future-brings",
    ],
    ids=["sampled", "not sampled", "later version", "later version with more"],
)
def test_trace_id_is_that_of_the_traceparent(traceparent: str) -> None:
    assert ids(traceparent=traceparent) == {"trace_id": TRACE}


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
    ids=[
        "none", "trace id alone", "no flags", "zero trace id", "zero parent id", "upper case",
        "no hex", "short trace id", "version ff", "short version", "version 00 with more",
        "later version without a dash", "line break", "space",
    ],
)  # fmt: skip
def test_traceparent_of_another_form_is_left_out(traceparent: str) -> None:
    assert ids(traceparent=traceparent) == {}


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", "", TraceParent(TRACE, SPAN, 1, "")),
        (f"00-{TRACE}-{SPAN}-00", "a=b", TraceParent(TRACE, SPAN, 0, "a=b")),
        (f"01-{TRACE}-{SPAN}-ff-more", "", TraceParent(TRACE, SPAN, 255, "")),
        (f"00-{TRACE}-{SPAN}-01", f"a={'b' * 511}", TraceParent(TRACE, SPAN, 1, "")),
        (f"00-{TRACE}-{'0' * 16}-01", "a=b", None),
        ("", "a=b", None),
    ],
    ids=["sampled", "not sampled", "later version", "state too long", "zero span id", "none"],
)
def test_parent_is_the_span_that_the_traceparent_names(
    traceparent: str, tracestate: str, parent: TraceParent | None
) -> None:
    assert trace_parent(traceparent, tracestate) == parent
