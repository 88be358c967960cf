"""Builds `tokenizer.json` from the vocabulary and merges of a GGUF file.

The pre-tokenizers are those that llama.cpp means by `tokenizer.ggml.pre` (`llm_tokenizer_bpe` in
llama-vocab.cpp), written in the terms of the `tokenizers` library as the models' own
tokenizer.json files have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sidecar.engines.errors import EngineError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp: enum llama_token_type

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_from_gguf(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `tokenizer.json` for a byte-level BPE vocabulary.

    Args:
        path: the GGUF file, for error texts.
        fields: its `tokenizer.ggml.*` metadata.

    Raises:
        EngineError: another kind of tokenizer, or an unknown pre-tokenizer.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise EngineError(
            f"{path}: tokenizer model {kind!r} is not supported; only byte-level BPE ('gpt2') is. "
            "Use the Hugging Face directory of the model instead"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    _set_pre_tokenizer(tokenizer, path, str(fields.get("tokenizer.ggml.pre")))
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    # `special` matters: only such tokens can be told apart from the same text in a message.
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def _set_pre_tokenizer(tokenizer: Tokenizer, path: Path, name: str) -> None:
    if name == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        raise EngineError(
            f"{path}: pre-tokenizer {name!r} is not known; known are smollm and qwen2. Use the "
            "Hugging Face directory of the model instead, which carries its tokenizer.json"
        )
