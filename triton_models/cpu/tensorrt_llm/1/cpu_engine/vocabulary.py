"""Bytes of every token, from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cpu_engine.errors import RefusedError


class Vocabulary:
    """Finds tokens by the bytes they stand for. Special and added tokens are left out: an answer
    is text, and their spelling is not that text."""

    def __init__(self, id_of: dict[bytes, int]) -> None:
        self._id_of = id_of
        self._longest = max(map(len, id_of), default=0)

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read a byte-level BPE tokenizer.json.

        Raises:
            RefusedError: another kind of tokenizer; text answers need bytes.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"]["type"] != "BPE" or not _is_byte_level(content):
            raise RefusedError("text answers need a byte-level BPE tokenizer; this engine has none")
        added = {entry["id"] for entry in content["added_tokens"]}
        byte_of = _byte_alphabet()
        return cls(
            {
                bytes(byte_of[character] for character in token): index
                for token, index in content["model"]["vocab"].items()
                if index not in added and all(character in byte_of for character in token)
            }
        )

    def prefixes(self, text: bytes) -> Iterable[tuple[bytes, int]]:
        """Every token that `text` begins with: (its bytes, its id), shortest first."""
        for length in range(1, min(len(text), self._longest) + 1):
            token = self._id_of.get(text[:length])
            if token is not None:
                yield text[:length], token

    def check_spelling(self, texts: Iterable[bytes]) -> None:
        """Every byte of `texts` is a token, so that whatever is left of one can be spelt.

        Raises:
            RefusedError: one is not; names the byte.
        """
        for byte in sorted(set().union(*texts)):
            if bytes([byte]) not in self._id_of:
                raise RefusedError(
                    f"guided_decoding_guide: the vocabulary has no token for byte 0x{byte:02x}"
                )

    def fewest_tokens(self, text: bytes) -> list[int]:
        """The shortest spelling of `text`, whose bytes all have tokens."""
        # best[i]: fewest tokens for text[i:], and the first of them with the bytes it covers.
        best = [(0, 0, 0)] * (len(text) + 1)
        for start in range(len(text) - 1, -1, -1):
            best[start] = min(
                (best[start + len(piece)][0] + 1, token, len(piece))
                for piece, token in self.prefixes(text[start : start + self._longest])
            )
        tokens: list[int] = []
        position = 0
        while position < len(text):
            _, token, length = best[position]
            tokens.append(token)
            position += length
        return tokens


def _is_byte_level(content: dict[str, Any]) -> bool:
    decoder = content.get("decoder") or {}
    kinds = [decoder.get("type"), *(part["type"] for part in decoder.get("decoders", ()))]
    return "ByteLevel" in kinds


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes
    for the characters from U+0100 on (bytes_to_unicode in openai/gpt-2's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet
