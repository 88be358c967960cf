"""The Completions of OpenAI: one text to be continued."""

from __future__ import annotations

import msgspec

from sidecar.ext_proc.dialects.json_fields import Fields
from sidecar.ext_proc.dialects.parts import Body, Part, Reading, UnknownShapeError, field_count

_PROMPT: msgspec.json.Decoder[str | list[str | int | list[int]] | None] = msgspec.json.Decoder(
    str | list[str | int | list[int]] | None
)


def read(fields: Fields, reading: Reading) -> Body:
    """The prompt as what the user says; of several the first, and of token ids nothing, since no
    tokenizer of the caller's model is here. Raises UnknownShapeError, msgspec.DecodeError."""
    if "prompt" not in fields:
        raise UnknownShapeError("prompt is missing")
    prompt = _PROMPT.decode(fields["prompt"])
    first = prompt[0] if isinstance(prompt, list) and prompt else prompt
    message = reading.user([Part("text", first)]) if isinstance(first, str) else None
    return Body(
        () if message is None else (message,),
        output_tokens=field_count(fields, "max_tokens"),
    )
