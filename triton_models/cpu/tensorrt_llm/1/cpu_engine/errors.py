"""How a request or an engine is turned down."""

from __future__ import annotations


class RefusedError(Exception):
    """The request asks for something that this model does not do. Answered as the C++ backend
    answers its own parse errors: INTERNAL, with this text."""


class UnavailableError(Exception):
    """The model is busy, or going: answered UNAVAILABLE, as Triton answers for a full queue."""


class CancelledError(Exception):
    """The caller has gone."""


class EngineFilesError(Exception):
    """The engine directory cannot be served; the model does not load."""


def failure_of(error: Exception) -> RefusedError:
    """What is answered after an unexpected one, whose text may hold anything."""
    return RefusedError(f"the routing model failed: {type(error).__name__}")
