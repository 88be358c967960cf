"""What the upstream gets and the client sees, for each way to attach the sidecar to Envoy and each
thing that can happen.

`test_matrix.py` holds every cell against a real Envoy. `python -m tests.ext_proc.matrix` prints the
table of docs/ext-proc.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tests.ext_proc.gateway import Filter


class Upstream(StrEnum):
    """What arrives at a provider. In all but the last two every byte is compared."""

    ROUTED = "routed"
    """At the chosen one: the client's bytes, but for the model's name."""
    PLAIN = "routed, uncompressed"
    """Likewise, the compressed body decoded and `content-encoding` gone."""
    AS_IS = "routed, as it came"
    """At the chosen one: the client's bytes, compressed as they were."""
    DEFAULT = "default"
    """At the default one: the client's bytes."""
    NOTHING = "nothing"
    CUT = "cut off"
    """The beginning of a request that the client ended; the connection is closed, so that nobody
    takes it for a whole one."""


@dataclass(frozen=True)
class Cell:
    """The client's status (0: the connection is closed) and what the upstream gets."""

    status: int
    upstream: Upstream

    def __str__(self) -> str:
        return f"{self.status or '-'} {self.upstream.value}"


ROUTED = Cell(200, Upstream.ROUTED)
PLAIN = Cell(200, Upstream.PLAIN)
AS_IS = Cell(200, Upstream.AS_IS)
DEFAULT = Cell(200, Upstream.DEFAULT)
NOTHING = Cell(0, Upstream.NOTHING)
CUT = Cell(0, Upstream.CUT)


def refused(status: int) -> Cell:
    return Cell(status, Upstream.NOTHING)


TIMEOUT_S = 6.0
"""`message_timeout`."""
IDLE_S = 10.0
"""`stream_idle_timeout`, which is what ends a request that nothing else ends."""

MODES = {
    "BUFFERED": Filter(),
    "BUFFERED, fail-closed": Filter(fail_open=False),
    "STREAMED": Filter(body="STREAMED"),
    "BUFFERED_PARTIAL": Filter(body="BUFFERED_PARTIAL"),
    "NONE": Filter(body="NONE"),
    "FULL_DUPLEX": Filter(body="FULL_DUPLEX_STREAMED", trailers="SEND", fail_open=False),
    "observability": Filter(body="STREAMED", observing=True),
}

EVENTS = {
    "whole": "1 kB body with its length, in one packet",
    "two packets": "the same, the body 50 ms after the headers and in two packets",
    "chunked": "chunked in three, 20 ms between them",
    "trailers": "chunked, trailers behind it",
    "gzip": "compressed body with `auto`",
    "gzip, right model": "compressed body with the upstream name of a concrete model",
    "deflate": "compressed body with `auto`",
    "br": "compressed body with `auto`",
    "zstd": "compressed body with `auto`",
    "200 kB": "body with its length",
    "8 MB": "body with its length",
    "8 MB chunked": "in chunks of 64 kB",
    "over the cap": "13 MB",
    "concrete model": "a model of the catalog instead of `auto`",
    "no model": "a body without `model`, which is put in",
    "malformed": "a body that is no JSON",
    "other path": "not an LLM request, 90 kB",
    "no body": "GET",
    "empty body": "POST with content-length 0",
    "slow decision": "takes half a second",
    "defect": "an exception in the sidecar",
    "client gone, sending": "the client leaves in the middle of the body",
    "client gone, deciding": "the client leaves while the decision is made",
    "client gone, receiving": "the client leaves while it waits for the provider's answer",
    "upstream reset": "the provider closes the connection instead of answering",
    "HTTP/2": "a client that speaks HTTP/2, its body with its length",
    "HTTP/2, no length": "the body in three parts",
    "HTTP/2, trailers": "likewise, trailers behind it",
    "HTTP/2, client gone": "the client resets its stream while the decision is made",
    "HTTP/2 over TLS": "as negotiated by ALPN",
    "https": "HTTP/1.1 over TLS",
    "https provider": "the chosen provider speaks https",
    "Triton dead": "the whole sidecar, with its real router: the policy's default is taken",
    "sidecar dead": "nothing listens on the socket",
    "sidecar killed": "while it decides",
    "sidecar frozen": "while it decides (SIGSTOP)",
    "sidecar paused": "frozen for a second when the request comes, and going on then",
    "sidecar restarted": "a request after it",
}

_ROUTED_ALIKE = {
    "whole": ROUTED,
    "two packets": ROUTED,
    "chunked": ROUTED,
    "trailers": ROUTED,
    "gzip": PLAIN,
    "gzip, right model": AS_IS,
    "deflate": PLAIN,
    "br": PLAIN,
    "zstd": PLAIN,
    "200 kB": ROUTED,
    "8 MB": ROUTED,
    "8 MB chunked": ROUTED,
    "over the cap": refused(413),
    "concrete model": ROUTED,
    "no model": ROUTED,
    "malformed": DEFAULT,
    "other path": DEFAULT,
    "no body": DEFAULT,
    "empty body": DEFAULT,
    "slow decision": ROUTED,
    "defect": DEFAULT,
    "client gone, sending": NOTHING,
    "client gone, deciding": NOTHING,
    "client gone, receiving": Cell(0, Upstream.ROUTED),
    "upstream reset": Cell(503, Upstream.ROUTED),
    "HTTP/2": ROUTED,
    "HTTP/2, no length": ROUTED,
    "HTTP/2, trailers": ROUTED,
    "HTTP/2, client gone": NOTHING,
    "HTTP/2 over TLS": ROUTED,
    "https": ROUTED,
    "https provider": ROUTED,
    "Triton dead": ROUTED,
    "sidecar dead": DEFAULT,
    "sidecar killed": DEFAULT,
    "sidecar frozen": DEFAULT,
    "sidecar paused": ROUTED,
    "sidecar restarted": ROUTED,
}
_TOO_LONG_OR_UNKNOWN = {
    # Of unknown length, or longer than ext_proc.bufferable_bytes.
    "chunked": DEFAULT,
    "trailers": DEFAULT,
    "HTTP/2, no length": DEFAULT,
    "HTTP/2, trailers": DEFAULT,
    "200 kB": DEFAULT,
    "8 MB": DEFAULT,
    "8 MB chunked": DEFAULT,
    "over the cap": DEFAULT,
}
_OBSERVED = dict.fromkeys(EVENTS, DEFAULT) | {
    "client gone, sending": CUT,
    "client gone, deciding": Cell(0, Upstream.DEFAULT),
    "client gone, receiving": Cell(0, Upstream.DEFAULT),
    "HTTP/2, client gone": Cell(0, Upstream.DEFAULT),
    "upstream reset": Cell(503, Upstream.DEFAULT),
}

_CELLS: dict[str, dict[str, Cell]] = {
    "BUFFERED": _ROUTED_ALIKE,
    "BUFFERED, fail-closed": _ROUTED_ALIKE
    | {
        "sidecar dead": refused(500),
        "sidecar killed": refused(500),
        "sidecar frozen": refused(504),
    },
    "STREAMED": _ROUTED_ALIKE | _TOO_LONG_OR_UNKNOWN,
    "BUFFERED_PARTIAL": _ROUTED_ALIKE | _TOO_LONG_OR_UNKNOWN,
    "NONE": _ROUTED_ALIKE | _TOO_LONG_OR_UNKNOWN,
    "FULL_DUPLEX": _ROUTED_ALIKE
    | {
        "sidecar dead": refused(500),
        "sidecar killed": refused(500),
        "sidecar frozen": refused(504),
    },
    "observability": _OBSERVED,
}


def cell(mode: str, event: str) -> Cell:
    return _CELLS[mode][event]


def table() -> str:
    """All cells as Markdown."""
    lines = [f"| | {' | '.join(MODES)} |", "|---|" + "---|" * len(MODES)]
    lines += [
        f"| {event} | {' | '.join(str(cell(mode, event)) for mode in MODES)} |" for event in EVENTS
    ]
    return "\n".join(lines) + "\n"


def legend() -> str:
    """What the events are, as Markdown."""
    return "".join(f"- {event}: {what}\n" for event, what in EVENTS.items())


def count() -> str:
    return f"{len(MODES) * len(EVENTS)} cells, {len(EVENTS)} events in {len(MODES)} ways"


if __name__ == "__main__":
    print(count(), table(), legend(), sep="\n\n")  # noqa: T201
