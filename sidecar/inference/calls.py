"""Calls to the model server, told to the trace of the decision that waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

import grpc
from tritonclient.utils import InferenceServerException

Headers = Mapping[str, str] | None


class TracedCall(Protocol):
    """Must not raise."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By which the model server joins the trace."""
        ...

    def end(self, status: str) -> None:
        """`status`: gRPC's name of it, such as `OK`."""
        ...


class DecisionTrace(Protocol):
    """Must not raise."""

    def begin_call(self, address: str, method: str, model: str) -> TracedCall | None:
        """None where the decision has no span."""
        ...


decision_trace: ContextVar[DecisionTrace | None] = ContextVar("decision_trace", default=None)
"""Of the decision that is being made. One that joins the call of another does not ask for it."""

_UNTRACED = nullcontext()


def traced(address: str, method: str, model: str) -> AbstractContextManager[Headers]:
    """Around one call; gives the headers it is to have."""
    trace = decision_trace.get()
    return _UNTRACED if trace is None else _traced(trace, address, method, model)


@contextmanager
def _traced(trace: DecisionTrace, address: str, method: str, model: str) -> Iterator[Headers]:
    call = trace.begin_call(address, method, model)
    if call is None:
        yield None
        return
    status = "OK"
    try:
        yield call.headers
    except BaseException as error:
        status = _status(error)
        raise
    finally:
        call.end(status)


def _status(error: BaseException) -> str:
    if isinstance(error, InferenceServerException):
        return (error.status() or "UNKNOWN").removeprefix("StatusCode.")
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "UNKNOWN"
