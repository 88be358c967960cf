"""What the settings' reference says, for the help of the flags that give them."""

from __future__ import annotations

from sidecar.config import Settings


def described(section: str, key: str) -> str:
    """The description of a setting, and its name."""
    fields = type(getattr(Settings(), section)).model_fields
    return f"{fields[key].description} Setting {section}.{key}."
