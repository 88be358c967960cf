"""The ChatML frame that the Qwen2.5 and SmolLM2 families share."""

from __future__ import annotations

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import Tokenizer

START = "<|im_start|>"
END = "<|im_end|>"


def chat_tokens(prompt_format: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of the tokens that start and end a turn.

    Raises:
        SidecarError: UNSUPPORTED if the tokenizer has none so named.
    """
    try:
        return tokenizer.special(START), tokenizer.special(END)
    except KeyError as error:
        raise SidecarError(
            ErrorCode.UNSUPPORTED,
            f"prompt format {prompt_format} needs a tokenizer with the special token "
            f"{error.args[0]!r}",
        ) from error
