"""The two ways in which a request or an engine is turned down."""

from __future__ import annotations


class RefusedError(Exception):
    """The request asks for something that this model does not do. Answered as the C++ backend
    answers its own parse errors: INTERNAL, with this text."""


class EngineFilesError(Exception):
    """The engine directory cannot be served; the model does not load."""
