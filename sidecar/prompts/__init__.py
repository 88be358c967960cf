"""Prompt formats by name and version: what the routing model reads, and what its answer means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import PromptFormat
from sidecar.prompts.arch_router import arch_router_formats
from sidecar.prompts.compact import CompactFormat

__all__ = ["FORMATS", "get_format"]

_ALL: tuple[PromptFormat, ...] = (CompactFormat(), *arch_router_formats())

FORMATS: Mapping[str, PromptFormat] = MappingProxyType({one.name: one for one in _ALL})
"""Every prompt format, by its name."""


def get_format(name: str) -> PromptFormat:
    """The prompt format of that name.

    Raises:
        SidecarError: UNSUPPORTED; the text lists the names there are.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise SidecarError(
            ErrorCode.UNSUPPORTED,
            f"prompt format {name!r} does not exist; take one of {', '.join(FORMATS)}",
        ) from None
