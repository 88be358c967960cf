"""How a request or an engine is turned down."""

from __future__ import annotations


class RefusedError(Exception):
    """The request asks for something that this model does not do. Answered as the C++ backend
    answers its own parse errors: INTERNAL, with this text."""


class UnavailableError(Exception):
    """The model is busy, or going: answered UNAVAILABLE, as Triton answers for a full queue."""


class CancelledError(Exception):
    """The caller has gone."""

    def __str__(self) -> str:
        return "cancelled"


class EngineFilesError(Exception):
    """The engine directory cannot be served; the model does not load."""


def failure_of(error: Exception) -> RefusedError:
    """What is answered after an unexpected one, whose text may hold anything."""
    return RefusedError(f"the routing model failed: {type(error).__name__}")


def code_of(error: Exception) -> str:
    """Of those in Triton's `TritonError`, the one that it is answered with."""
    if isinstance(error, CancelledError):
        return "CANCELLED"
    return "UNAVAILABLE" if isinstance(error, UnavailableError) else "INTERNAL"
