"""From an HTTP request to what it asks of an LLM."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from sidecar.core.conversation import Conversation
from sidecar.core.decision import Needs, implied_capabilities
from sidecar.core.policy import ApiDialect, Capability
from sidecar.ext_proc.dialects import (
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_responses,
)
from sidecar.ext_proc.dialects.decoding import TooLargeError, UndecodableError, decode
from sidecar.ext_proc.dialects.harness import HarnessText
from sidecar.ext_proc.dialects.json_fields import (
    FieldReader,
    Fields,
    NotJsonError,
    span,
    without_lone_surrogates,
)
from sidecar.ext_proc.dialects.keys import bounded_key, conversation_key
from sidecar.ext_proc.dialects.options import BY_SHAPE, DialectOptions
from sidecar.ext_proc.dialects.parts import (
    Body,
    Reading,
    UnknownShapeError,
    field_text,
    size_of,
)
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, PassReason, Understood

_READERS: Mapping[ApiDialect, Callable[[Fields, Reading], Body]] = {
    ApiDialect.OPENAI_CHAT: openai_chat.read,
    ApiDialect.OPENAI_RESPONSES: openai_responses.read,
    ApiDialect.OPENAI_COMPLETIONS: openai_completions.read,
    ApiDialect.ANTHROPIC_MESSAGES: anthropic_messages.read,
}
_FIELDS = (
    *("model", "messages", "input", "prompt", "system", "instructions", "tools", "functions"),
    *("mcp_servers", "max_tokens", "max_completion_tokens", "max_output_tokens", "container"),
    *("previous_response_id", "conversation", "stream", "background"),
)
"""All that are read of any API, besides those that are set to have the conversation's id."""
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_PLAIN_JSON = ("application/json", "")
_TRUE = b"true"
_COUNTING = ("/count_tokens", "/input_tokens")
"""Ends of paths whose responses tell how many tokens the request has."""
_MAX_PATHS = 64
"""That are remembered; Envoy bounds their length."""

_MAX_COMMAS = 1_000_000
"""Of a body. Each is a token, more than models read; millions of tiny items, which compress to a
few kilobytes, hold the interpreter, and with it the event loop, for seconds."""

_COUNTED_AT_ONCE = 1024 * 1024


class LlmDialects:
    """Reads requests of the OpenAI and Anthropic APIs. Implements
    `sidecar.ext_proc.request.Dialects`; holds nothing of a request."""

    def __init__(self, options: DialectOptions | None = None) -> None:
        self._options = options or DialectOptions()
        self._paths = [
            (re.compile(fnmatch.translate(pattern)), dialect)
            for pattern, dialect in self._options.paths.items()
        ]
        # Asked twice for each request, of which most are alike.
        self._by_path = lru_cache(_MAX_PATHS)(self._find_path)
        self._harness = HarnessText(self._options.harness)
        keys = (
            path.partition(".")[0] for each in self._options.key_fields.values() for path in each
        )
        self._fields = FieldReader((*_FIELDS, *keys))

    def recognise(self, head: HttpHead) -> ApiDialect | Passed:
        """By method, path and content type. A path whose API the body tells reads as Chat
        Completions here."""
        found = self._by_head(head)
        if isinstance(found, Passed):
            return found
        return found or ApiDialect.OPENAI_CHAT

    def keeps(self, head: HttpHead) -> bool:
        """By the path alone: false for that of an API other than Responses. Those of no known API
        may be Responses' own, such as `/v1/conversations`."""
        found = self._by_path(head.path.partition("?")[0])
        return found in (ApiDialect.OPENAI_RESPONSES, BY_SHAPE) or isinstance(found, Passed)

    def read(self, request: HttpRequest) -> Understood | Passed:
        """What the request says; never raises. Takes about a millisecond per megabyte, several for
        a compressed one or one of many thousand messages: large ones belong in a thread."""
        found = self._by_head(request.head)
        if isinstance(found, Passed):
            return found
        if not request.complete:
            # The newest message stands near the end, and it is what decides.
            return Passed(PassReason.INCOMPLETE_BODY, "the end of the body was not shown")
        if not request.body:
            return Passed(PassReason.NO_BODY, "the request has no body")
        encodings = request.head.headers.get("content-encoding", ())
        limit = self._options.max_decoded_bytes
        try:
            plain = decode(request.body, ",".join(encodings), limit) if encodings else None
        except UndecodableError as error:
            return Passed(PassReason.UNKNOWN_ENCODING, f"content-encoding: {error}")
        except TooLargeError:
            return Passed(PassReason.DECODED_TOO_LARGE, f"more than {limit} bytes when decoded")
        return self._parse(request.head, found, request.body if plain is None else plain, plain)

    def _by_head(self, head: HttpHead) -> ApiDialect | Passed | None:
        """None: the body tells."""
        if head.method != "POST":
            return Passed(PassReason.NOT_AN_LLM_REQUEST, "the method is not POST")
        found = self._by_path(head.path.partition("?")[0])
        if isinstance(found, Passed):
            return found
        content_type = head.header("content-type").partition(";")[0].strip()
        if content_type not in _PLAIN_JSON and not _JSON.fullmatch(content_type):
            return Passed(PassReason.NOT_JSON, "content-type is not JSON")
        return found

    def _find_path(self, path: str) -> ApiDialect | Passed | None:
        for pattern, dialect in self._paths:
            if pattern.fullmatch(path):
                return dialect
        return Passed(PassReason.NOT_AN_LLM_REQUEST, "the path is not that of a known API")

    def _parse(
        self, head: HttpHead, dialect: ApiDialect | None, body: bytes, plain: bytes | None
    ) -> Understood | Passed:
        if _commas(body) > _MAX_COMMAS:
            return Passed(PassReason.UNKNOWN_SHAPE, f"the body has more than {_MAX_COMMAS} commas")
        try:
            fields, body = self._read_fields(body)
        except msgspec.ValidationError:
            return Passed(PassReason.UNKNOWN_SHAPE, "the body is no JSON object")
        except NotJsonError:
            return Passed(PassReason.MALFORMED_BODY, "the body is no valid JSON")
        try:
            dialect = dialect or _by_shape(head, fields)
            path = head.path.partition("?")[0]
            return self._understood(dialect, path, fields, body, plain)
        except UnknownShapeError as error:
            return Passed(PassReason.UNKNOWN_SHAPE, str(error))
        except msgspec.ValidationError:
            return Passed(PassReason.UNKNOWN_SHAPE, "a field is not of the type that the API has")
        except NotJsonError:
            return Passed(PassReason.MALFORMED_BODY, "the body has text that is not UTF-8")

    def _read_fields(self, body: bytes) -> tuple[Fields, bytes]:
        """The fields, and the body that they are of. Raises as `FieldReader.read`."""
        try:
            return self._fields.read(body), body
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            mended = without_lone_surrogates(body)
            if mended is None:
                raise
            return self._fields.read(mended), mended

    def _understood(
        self, dialect: ApiDialect, path: str, fields: Fields, body: bytes, plain: bytes | None
    ) -> Understood:
        options = self._options
        reading = Reading(self._harness, options.max_messages)
        read = _READERS[dialect](fields, reading)
        conversation = Conversation(read.messages)
        capabilities = implied_capabilities(conversation)
        if read.tools:
            capabilities |= {Capability.TOOLS}
        return Understood(
            dialect=dialect,
            model=field_text(fields, "model"),
            model_at=span(body, fields["model"]) if "model" in fields else None,
            conversation=conversation,
            needs=Needs(capabilities, self._context_tokens(read, reading.left_out, fields)),
            stream=_is_true(fields, "stream"),
            awaited=not path.endswith(_COUNTING) and not _is_true(fields, "background"),
            conversation_key=conversation_key(fields, options.key_fields.get(dialect, ())),
            previous_response_id=bounded_key(read.continues),
            refers_to=bounded_key(reading.refers_to or read.refers_to),
            sealed=reading.sealed,
            plain_body=plain,
        )

    def _context_tokens(self, read: Body, left_out: int, fields: Fields) -> int:
        """An estimate: the bytes of all texts, `left_out` those of a harness, and of tool
        definitions; image data left out."""
        if not self._options.bytes_per_token:
            return 0
        size = left_out
        for message in read.messages:
            size += size_of(message.text)
            for call in message.tool_calls:
                size += size_of(call.arguments)
        for key in ("tools", "functions"):
            if key in fields:
                size += len(memoryview(fields[key]))
        return size // self._options.bytes_per_token + read.output_tokens


def _is_true(fields: Fields, key: str) -> bool:
    return key in fields and bytes(memoryview(fields[key])) == _TRUE


def _commas(body: bytes) -> int:
    """As many as there are, or as are too many."""
    count = 0
    for start in range(0, len(body), _COUNTED_AT_ONCE):
        count += body.count(b",", start, start + _COUNTED_AT_ONCE)
        if count > _MAX_COMMAS:
            break
    return count


def _by_shape(head: HttpHead, fields: Fields) -> ApiDialect:
    """Raises UnknownShapeError."""
    if "messages" in fields:
        # Anthropic's API wants the version header of every request, and has `system` outside the
        # messages, where OpenAI's has none.
        anthropic = "anthropic-version" in head.headers or "system" in fields
        return ApiDialect.ANTHROPIC_MESSAGES if anthropic else ApiDialect.OPENAI_CHAT
    stored = "prompt" in fields and bytes(memoryview(fields["prompt"])[:1]) == b"{"
    if stored or "input" in fields or "previous_response_id" in fields:
        return ApiDialect.OPENAI_RESPONSES
    if "prompt" in fields:
        return ApiDialect.OPENAI_COMPLETIONS
    raise UnknownShapeError("none of messages, input and prompt is there")
