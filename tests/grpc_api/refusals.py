"""What a call is refused with, as a caller reads it."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Refused:
    """Status, ErrorInfo (`reason`, `metadata`), the fields that BadRequest names, and the text."""

    code: grpc.StatusCode
    reason: str
    fields: tuple[str, ...]
    metadata: dict[str, str]
    text: str


async def refused(call: Awaitable[Any]) -> Refused:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(wrong)
    assert info.domain == "llmrouter.dev"
    return Refused(
        caught.value.code(),
        info.reason,
        tuple(each.field for each in wrong.field_violations),
        dict(info.metadata),
        status.message,
    )
