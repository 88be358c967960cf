"""Envoy's messages, made in one place each.

Header values go in and out as `raw_value`: Envoy sends nothing else, and a mutation with `value`
sets the header to the empty string without a word (https://github.com/envoyproxy/envoy/issues/31555).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from sidecar._generated.envoy.config.core.v3.base_pb2 import HeaderMap
from sidecar._generated.envoy.config.core.v3.base_pb2 import HeaderValueOption as Option
from sidecar._generated.envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import (
    ProcessingMode,
)
from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar._generated.envoy.type.v3.http_status_pb2 import HttpStatus
from sidecar.core.errors import ErrorCode
from sidecar.ext_proc.request import HttpHead

Mode = ProcessingMode.BodySendMode
NONE = ProcessingMode.NONE
STREAMED = ProcessingMode.STREAMED
BUFFERED = ProcessingMode.BUFFERED
BUFFERED_PARTIAL = ProcessingMode.BUFFERED_PARTIAL
FULL_DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED

CHUNK_BYTES = 62_000
"""Of a streamed answer; some Envoys refuse messages beyond 64 KiB
(https://github.com/kubernetes-sigs/gateway-api-inference-extension/issues/2056)."""

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

MetadataValue = str | float | Sequence[str]


def read_head(headers: HeaderMap) -> HttpHead:
    """The head of a request."""
    pseudo: dict[str, str] = {}
    found: dict[str, tuple[str, ...]] = {}
    for header in headers.headers:
        name = header.key
        value = header.raw_value.decode("latin-1") or header.value
        if name.startswith(":"):
            pseudo[name] = value
        elif name in found:
            found[name] = (*found[name], value)
        else:
            found[name] = (value,)
    return HttpHead(
        pseudo.get(":method", ""), pseudo.get(":path", ""), pseudo.get(":authority", ""), found
    )


def header_of(headers: HeaderMap, name: str) -> str:
    """The first value of a header; empty if it is not there."""
    for header in headers.headers:
        if header.key == name:
            return header.raw_value.decode("latin-1") or header.value
    return ""


def header_mutation(
    headers: Sequence[tuple[str, str]], remove: Sequence[str] = ()
) -> pb.HeaderMutation | None:
    """See `mutate_headers`; None if there is nothing to do."""
    common = pb.CommonResponse()
    mutate_headers(common, headers, remove)
    return common.header_mutation if common.HasField("header_mutation") else None


def mutate_headers(
    common: pb.CommonResponse, headers: Sequence[tuple[str, str]], remove: Sequence[str] = ()
) -> None:
    """Sets headers over whatever was there, and removes others.

    What cannot stand in a header is percent-encoded: Envoy answers a control character with 500.
    """
    if not headers and not remove:
        return
    # Where they stand, since messages that are made first are copied: a quarter of the time.
    add = common.header_mutation.set_headers.add
    for name, value in headers:
        if not (value.isascii() and value.isprintable()):
            value = quote(value, safe=_PRINTABLE)
        option = add()
        header = option.header
        header.key = name
        header.raw_value = value.encode("ascii")
        # Envoy overwrites whatever stands here; other servers of the protocol may not.
        option.append_action = Option.OVERWRITE_IF_EXISTS_OR_ADD
    common.header_mutation.remove_headers.extend(remove)


def headers_answer(common: pb.CommonResponse | None = None) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))


def body_answer(common: pb.CommonResponse | None = None) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))


def streamed_chunks(body: bytes, end: bool) -> Iterator[pb.ProcessingResponse]:
    """`body` in full-duplex chunks, at least one; the last one ends the stream if `end`."""
    view = memoryview(body)
    starts = range(0, len(body), CHUNK_BYTES) or range(1)
    for start in starts:
        last = start + CHUNK_BYTES >= len(body)
        yield body_answer(_streamed(bytes(view[start : start + CHUNK_BYTES]), end and last))


def _streamed(chunk: bytes, end: bool) -> pb.CommonResponse:
    streamed = pb.StreamedBodyResponse(body=chunk, end_of_stream=end)
    return pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))


def passed_chunk(kind: str, body: pb.HttpBody, mode: Mode.ValueType) -> pb.ProcessingResponse:
    """The answer that leaves a chunk as it is. `kind`: `request_body` or `response_body`."""
    common = _streamed(body.body, body.end_of_stream) if mode == FULL_DUPLEX else None
    response = pb.BodyResponse(response=common)
    if kind == "request_body":
        return pb.ProcessingResponse(request_body=response)
    return pb.ProcessingResponse(response_body=response)


def override_body_mode(
    answer: pb.ProcessingResponse, request: Mode.ValueType, response: Mode.ValueType
) -> None:
    """Has Envoy send the body otherwise than it is set up to. Header and trailer modes stay as
    they are; that of the response's body has no such value and must be repeated."""
    answer.mode_override.request_body_mode = request
    answer.mode_override.response_body_mode = response


def more_time(seconds: float) -> pb.ProcessingResponse:
    """Asks Envoy to wait for the answer to the part that it has sent last."""
    answer = pb.ProcessingResponse()
    answer.override_message_timeout.FromMilliseconds(max(1, round(seconds * 1000)))
    return answer


def refusal(code: ErrorCode, message: str) -> pb.ProcessingResponse:
    """Ends the request with an error that clients of OpenAI's and of Anthropic's API can read."""
    error = {"type": code.label, "message": message, "code": code.label}
    body = json.dumps({"type": "error", "error": error}).encode()
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=HttpStatus(code=code.http_status),  # type: ignore[arg-type]
            headers=header_mutation([("content-type", "application/json")]),
            body=body,
            details=f"llm_router_{code.label}",
        )
    )


def set_metadata(
    answer: pb.ProcessingResponse, namespace: str, values: Mapping[str, MetadataValue]
) -> None:
    """Dynamic metadata: its first level is the namespace."""
    # By hand and where they stand: `Struct.update` is written in Python, and values that are made
    # first are copied. Both take longer than the rest of an answer.
    fields = answer.dynamic_metadata.fields[namespace].struct_value.fields
    for name, value in values.items():
        if isinstance(value, str):
            fields[name].string_value = value
        elif isinstance(value, float | int):
            fields[name].number_value = value
        else:
            items = fields[name].list_value
            # An empty list is one, too.
            items.SetInParent()
            for each in value:
                items.values.add(string_value=each)


def set_failover(answer: pb.ProcessingResponse, namespace: str, clusters: Sequence[str]) -> None:
    """Clusters to try, as dynamic metadata that Envoy's cluster specifier `priority_group` takes in
    place of its own groups (`PriorityGroupsOverride`, Envoy 1.40)."""
    answer.dynamic_metadata.fields[namespace].CopyFrom(_failover(tuple(clusters)))


@lru_cache(maxsize=256)
def _failover(clusters: tuple[str, ...]) -> Value:
    groups = [_group(str(number), cluster) for number, cluster in enumerate(clusters)]
    fields = {"priority_groups": Value(list_value=ListValue(values=groups))}
    return Value(struct_value=Struct(fields=fields))


def _group(name: str, cluster: str) -> Value:
    weighted = {"cluster_name": Value(string_value=cluster), "weight": Value(number_value=1)}
    clusters = ListValue(values=[Value(struct_value=Struct(fields=weighted))])
    fields = {"name": Value(string_value=name), "clusters": Value(list_value=clusters)}
    return Value(struct_value=Struct(fields=fields))
