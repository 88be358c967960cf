"""What sections of the settings are made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def setting(default: Any, description: str, unit: str = "", **limits: Any) -> Any:
    """A setting, as the reference shows it."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


def listed(value: object) -> object:
    """For lists: environment variables and flags give one string, its parts separated by commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value
