"""Policies and catalogs from other routers' files, and back.

What one side has and the other cannot say is named, never dropped unseen. Importing what was
exported from an import gives the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sidecar.policies.exchange import archgw, huggingchat, litellm, plano
from sidecar.policies.exchange.common import Exported, Imported, UnreadableFileError

__all__ = ["FORMATS", "Exported", "Format", "Imported", "UnreadableFileError"]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    Args:
        read: Raises UnreadableFileError.
    """

    about: str
    read: Callable[[str, str], Imported]
    write: Callable[[Imported], Exported]


FORMATS: Mapping[str, Format] = {
    "archgw": Format("archgw's configuration, llm_providers", archgw.read, archgw.write),
    "huggingchat": Format("HuggingChat's route file", huggingchat.read, huggingchat.write),
    "litellm": Format("LiteLLM's model_list, the catalog alone", litellm.read, litellm.write),
    "plano": Format("Plano's configuration, routing_preferences", plano.read, plano.write),
}
"""By the name that the command line uses. `read` takes the text and the name for the policy."""
