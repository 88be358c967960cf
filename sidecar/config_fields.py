"""What sections of the settings are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sidecar.policies.findings import quoted

_POLICY = re.compile(
    r"(namespaces/[a-z0-9]([a-z0-9-]*[a-z0-9])?/policies/)?[a-z0-9]([a-z0-9-]*[a-z0-9])?"
)


class Section(BaseModel):
    """A section of the settings; unknown keys are errors."""

    # Infinity has no JSON, in which `sidecar up` hands the settings on.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def setting(default: Any, description: str, unit: str = "", **limits: Any) -> Any:
    """A setting, as the reference shows it."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


def listed(value: object) -> object:
    """For lists: environment variables and flags give one string, its parts separated by commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def policy_name(value: str) -> str:
    """`value`, if a policy can be called so."""
    if not _POLICY.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a policy; write an id of the namespace `default`, or "
            "namespaces/<namespace>/policies/<policy>"
        )
    return value


def _path(value: object) -> object:
    # A variable set to nothing, as `${NAME:-}` in a compose file gives, names no path, and not the
    # working directory, which Path("") is.
    return None if value == "" else value


OptionalPath = Annotated[Path | None, BeforeValidator(_path)]
