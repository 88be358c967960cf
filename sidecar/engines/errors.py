"""What goes wrong when an engine is built or opened."""

from __future__ import annotations


class EngineError(Exception):
    """A source or an engine directory cannot be used; the text says which file and what to do."""
