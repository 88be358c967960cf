"""What a defect of the sidecar, or a peer that breaks the protocol, can do: end a stream with an
error, which Envoy takes for one, and never with the text of a request."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.messages import BUFFERED, FULL_DUPLEX, NONE, STREAMED, Mode
from sidecar.ext_proc.request import HttpHead, Passed
from sidecar.ext_proc.service import SERVICE
from tests.ext_proc.parts import (
    ROUTED,
    Conversation,
    kinds,
    request_body,
    request_headers,
    request_trailers,
    streamed,
)
from tests.ext_proc.standins import StubDialects, service_on
from tests.ext_proc.test_service import JSON, stream

PACKAGE = Path(__file__).parents[2] / "sidecar"


class Broken(StubDialects):
    def recognise(self, head: HttpHead) -> ApiDialect | Passed:
        raise RuntimeError(f"with the text of a message: {head.header('x-said')}")


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX])
async def test_defect_ends_the_stream_without_the_text_of_the_request(
    tmp_path: Path, mode: Mode.ValueType, log: io.StringIO
) -> None:
    async with (
        service_on(tmp_path / "s", dialects=Broken()) as service,
        stream(service, mode) as envoy,
    ):
        await envoy.say(request_headers({**JSON, "x-said": "secret"}))

        code, details = await envoy.call.code(), await envoy.call.details()

    assert code is grpc.StatusCode.INTERNAL
    assert "text of a message" not in str(details)
    assert "secret" not in str(details)
    # The log shows the line that failed, as it stands in the source, and not its text.
    assert "RuntimeError" in log.getvalue()
    assert "secret" not in log.getvalue()


async def test_message_that_cannot_be_decoded_is_an_error_and_no_end(tmp_path: Path) -> None:
    """A stream that ends without one loses the body in FULL_DUPLEX_STREAMED."""
    async with (
        service_on(tmp_path / "s") as service,
        grpc.aio.insecure_channel(f"unix:{service.socket}") as channel,
    ):
        call: Any = channel.stream_stream(f"/{SERVICE}/Process")()
        await call.write(b"\xff\xff secret")

        code, details = await call.code(), await call.details()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "secret" not in str(details)


def test_header_values_are_made_in_one_place() -> None:
    """With `value` in place of `raw_value` Envoy sets the header to nothing and says nothing."""
    made = re.compile(r"\bHeaderValue(Option)?\(|\bset_headers\.add\b|\bappend_action\b")
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "_generated" not in path.parts and made.search(path.read_text())
    }

    assert files == {"ext_proc/messages.py"}


def test_full_duplex_trailers_without_a_body() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())

    assert talk.ask(request_trailers()).body == b""
    answers = talk.exchange.decided(ROUTED)

    assert kinds(answers) == ["request_headers", "request_body", "request_trailers"]
    assert streamed(answers) == [(b"", False)]


@pytest.mark.parametrize("mode", [BUFFERED, STREAMED, NONE])
def test_trailers_without_a_body(mode: Mode.ValueType) -> None:
    talk = Conversation(mode)
    talk.say(request_headers({"content-length": "4"}))

    assert kinds(talk.say(request_trailers())) == ["request_trailers"]
    assert talk.exchange.settled


def test_full_duplex_passed_body_may_end_with_trailers() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers({":path": "/other"}))
    assert streamed(talk.say(request_body(b"12", end=False))) == [(b"12", False)]

    assert kinds(talk.say(request_trailers())) == ["request_trailers"]


def test_body_that_does_not_wait_for_the_answer_to_the_headers() -> None:
    """`send_body_without_waiting_for_header_response`: Envoy ignores overrides of the mode then."""
    talk = Conversation(STREAMED)
    first = request_headers({"content-length": "8"})
    first.protocol_config.send_body_without_waiting_for_header_response = True
    talk.say(first)

    for chunk, end in ((b"1234", False), (b"5678", False), (b"", True)):
        (answer,) = talk.say(request_body(chunk, end))
        assert answer == pb.ProcessingResponse(request_body=pb.BodyResponse())


def test_nothing_is_answered_after_a_refusal_in_full_duplex() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    (refusal,) = talk.say(request_body(b"x" * 2000, end=False))

    assert refusal.immediate_response.status.code == 413
    assert talk.say(request_body(b"y", end=True)) == ()
