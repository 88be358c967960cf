"""Tokenizers of Hugging Face `tokenizer.json` files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

_CONTROL_TOKEN = re.compile(r"<.+>", re.DOTALL)


class HfTokenizer:
    """A `tokenizer.json` over the `tokenizers` library; implements `core.model.Tokenizer`.

    By default the library turns the spelling of a special token inside a text into that token,
    with which a message could end its own turn. Here text is always text. Files also mark control
    tokens such as Qwen's `<tool_call>` as not special; everything spelled `<…>` counts as special,
    so these stay text too.

    Thread-safe: the library's encoder is immutable once it is loaded.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a tokenizer file; the text names the file.
    """

    def __init__(self, path: Path | str) -> None:
        content = Path(path).read_text(encoding="utf-8")
        try:
            definition = json.loads(content)
            # A file may ask for padding or truncation; prompts are neither.
            definition["padding"] = definition["truncation"] = None
            for token in definition["added_tokens"]:
                token["special"] = token["special"] or bool(
                    _CONTROL_TOKEN.fullmatch(token["content"])
                )
            self._special = {
                token["content"]: int(token["id"])
                for token in definition["added_tokens"]
                if token["special"]
            }
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises plain Exception for a bad definition
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self._vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text. A lone surrogate, which no UTF-8 can hold, counts as `?`."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            valid = text.encode("utf-8", "replace").decode("utf-8")
            encoding = self._tokenizer.encode(valid, add_special_tokens=False)
        return encoding.ids

    def special(self, token: str) -> int:
        return self._special[token]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
