"""What the log says, in which format, and what it leaves out."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Candidate, Decision, RoutingRequest, StepTime
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.observability.decisions import MAX_TEXT, DecisionLog, DecisionSinks
from sidecar.observability.logging import LogOptions, configure_logging
from tests.doubles import ListSink
from tests.grpc_api.standins import decision

REQUEST = RoutingRequest(
    Conversation((Message(Role.USER, "my secret"), Message(Role.ASSISTANT, "ok")))
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure(logging_undone: None) -> Configure:
    """Sets logging up and gives what is written."""

    def configured(options: LogOptions, stream: io.StringIO | None = None) -> io.StringIO:
        stream = stream or io.StringIO()
        configure_logging(options, stream)
        return stream

    return configured


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_entry_is_one_json_object_with_what_is_bound(configure: Configure) -> None:
    out = configure(LogOptions())
    with structlog.contextvars.bound_contextvars(method="Route"):
        structlog.get_logger("ours").info("hello", number=1)
    logging.getLogger("theirs").warning("watch %s", "out")

    ours, theirs = entries(out)

    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "hello", "level": "info", "logger": "ours", "method": "Route", "number": 1,
    }  # fmt: skip
    assert (theirs["event"], theirs["level"], theirs["logger"]) == (
        "watch out",
        "warning",
        "theirs",
    )


@pytest.mark.parametrize(
    ("format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("pretty", io.StringIO(), False),
    ],
)
def test_format(configure: Configure, format: Any, stream: io.StringIO, is_json: bool) -> None:
    out = configure(LogOptions(format=format), stream)
    structlog.get_logger().info("hello")

    assert out.getvalue().startswith("{") is is_json
    assert "hello" in out.getvalue()


def test_entries_below_the_level_are_left_out(configure: Configure) -> None:
    out = configure(LogOptions(level="warning"))
    structlog.get_logger().info("quiet")
    logging.getLogger("theirs").info("quiet")

    assert out.getvalue() == ""


KEEPS_EVERY_ENTRY = """
import asyncio, gc, io, logging
import grpc
from sidecar.observability.logging import LogOptions, configure_logging

kept = []
handler = logging.Handler()
handler.emit = kept.append
configure_logging(LogOptions("debug"), io.StringIO())
logging.getLogger().addHandler(handler)

async def servers_that_never_start():
    for _ in range(100):
        grpc.aio.server()
        gc.collect()
        kept.clear()

asyncio.run(servers_that_never_start())
"""


def test_keeping_debug_entries_does_not_crash_when_a_server_never_starts() -> None:
    """In a process of its own: the failure is a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", KEEPS_EVERY_ENTRY], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_decision_is_one_entry(configure: Configure) -> None:
    out = configure(LogOptions())
    made = decision()

    DecisionLog().record(REQUEST, made)

    (entry,) = entries(out)
    assert {key: entry[key] for key in entry if key not in ("timestamp", "logger", "level")} == {
        "event": "decision",
        "decision_id": made.id,
        "source": "model",
        "reason": "matched",
        "route": "billing",
        "model": "acme/fast",
        "policy": "namespaces/default/policies/support",
        "policy_revision": 1,
        "policy_digest": made.policy.digest,
        "routing_model": "stub",
        "confidence": 0.75,
        "ms": 1.5,
        "asked": "model",
        "detail": "The routing model chose billing.",
        "candidates": [
            {"route": "billing", "probability": 0.75},
            {"route": "other", "probability": 0.25},
        ],
    }


def test_decision_names_the_most_probable_candidates_alone(configure: Configure) -> None:
    out = configure(LogOptions())
    many = tuple(Candidate(f"r{number}", 1 / (3 + number)) for number in range(100))

    DecisionLog().record(REQUEST, replace(decision(), candidates=many))

    assert entries(out)[0]["candidates"] == [
        {"route": "r0", "probability": 0.3333},
        {"route": "r1", "probability": 0.25},
        {"route": "r2", "probability": 0.2},
    ]


def test_decision_that_has_no_detail_or_candidates_says_nothing_of_them(
    configure: Configure,
) -> None:
    out = configure(LogOptions())

    DecisionLog().record(REQUEST, replace(decision(), detail="", candidates=()))

    assert not {"detail", "candidates"} & entries(out)[0].keys()


@pytest.mark.parametrize(
    ("steps", "asked"),
    [
        (("prompt", "cache", "model", "answer"), "model"),
        (("prompt", "cache", "encoder", "answer"), "encoder"),
        (("prompt", "cache"), None),
        ((), None),
    ],
)
def test_decision_says_whether_its_encoder_was_enough(
    configure: Configure, steps: tuple[str, ...], asked: str | None
) -> None:
    out = configure(LogOptions())

    made = replace(decision(), steps=tuple(StepTime(step, 1.0) for step in steps))
    DecisionLog().record(REQUEST, made)

    assert entries(out)[0].get("asked") == asked


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("my secret", "my secret"),
        ("x" * MAX_TEXT, "x" * MAX_TEXT),
        ("x" * 1_000_000, "x" * MAX_TEXT + "…"),
    ],
    ids=["short", "as long as can be", "longer"],
)
def test_text_of_the_newest_user_message_is_logged_when_switched_on(
    configure: Configure, said: str, logged: str
) -> None:
    out = configure(LogOptions(log_message_text=True))
    asked = replace(REQUEST, conversation=Conversation((Message(Role.USER, said),)))

    DecisionLog(log_message_text=True).record(asked, decision())

    assert entries(out)[0]["text"] == logged


@pytest.mark.parametrize(
    ("error", "switched_on", "told"),
    [
        (KeyError("my secret"), False, False),
        (KeyError("my secret"), True, True),
        (SidecarError(ErrorCode.INTERNAL, "my secret"), False, True),
        (OSError("my secret"), False, True),
        (ExceptionGroup("my secret", [ValueError("my secret")]), False, False),
    ],
    ids=["unexpected", "switched on", "ours", "of the system", "group"],
)
@pytest.mark.parametrize("library", [True, False])
def test_text_of_an_exception_is_told_only_where_it_cannot_hold_message_text(
    configure: Configure, error: Exception, switched_on: bool, told: bool, library: bool
) -> None:
    out = configure(LogOptions(log_message_text=switched_on))
    try:
        raise error
    except Exception:
        if library:
            logging.getLogger("theirs").exception("failed")
        else:
            structlog.get_logger("ours").exception("failed")

    (entry,) = entries(out)
    assert type(error).__name__ in entry["exception"]
    assert "test_logging.py" in entry["exception"]
    assert ("my secret" in out.getvalue()) is told


def test_cause_of_an_exception_is_described_like_it(configure: Configure) -> None:
    secret = "my secret"
    out = configure(LogOptions())
    try:
        try:
            raise KeyError(secret)
        except KeyError as cause:
            raise ValueError(secret) from cause
    except ValueError:
        structlog.get_logger().exception("failed")

    described = entries(out)[0]["exception"]
    assert described.index("KeyError") < described.index("ValueError")
    assert "my secret" not in described


class BrokenSink:
    def record(self, request: RoutingRequest, decision: Decision) -> None:
        raise ZeroDivisionError


async def test_sink_that_fails_does_not_keep_a_decision_from_the_others() -> None:
    kept = ListSink()

    DecisionSinks(BrokenSink(), kept).record(REQUEST, decision())
    await asyncio.sleep(0)

    assert len(kept.decisions) == 1


async def test_answer_does_not_wait_until_its_decision_is_recorded() -> None:
    kept, seen = ListSink(), []
    sinks = DecisionSinks(kept)

    sinks.record(REQUEST, decision())
    seen.append(len(kept.decisions))
    await asyncio.sleep(0)
    seen.append(len(kept.decisions))

    assert seen == [0, 1]


def test_what_a_database_migration_loads_of_itself_is_no_entry(configure: Configure) -> None:
    out = configure(LogOptions())
    logging.getLogger("alembic.runtime.plugins").info("setup plugin")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    assert [entry["event"] for entry in entries(out)] == ["Running upgrade"]
