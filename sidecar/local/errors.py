"""The exception of everything that runs on this machine."""

from __future__ import annotations


class LocalError(Exception):
    """Something this machine lacks or a program that failed. `str(error)` says what to do."""
