"""What can be wrong with what a program is given."""

from __future__ import annotations


class InputError(ValueError):
    """A file or an option that cannot be used; the text says which, and what is wrong with it."""
