"""The real vocabularies that prompts are tested on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from sidecar.engines.gguf_tokenizer import tokenizer_from_gguf
from sidecar.engines.sources import open_source
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.local.cache import cache_dir, exclusive
from sidecar.local.tools import data_file

# Qwen2.5's, from id 151643; those of the second list its tokenizer.json does not call special.
_QWEN_CONTROL = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
<|image_pad|> <|video_pad|>
"""
_QWEN_OTHER = """
<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
<|file_sep|>
"""
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama.cpp: enum llama_token_type


@cache
def smollm2() -> HfTokenizer:
    """The tokenizer of SmolLM2, which the router's own model uses."""
    return _kept("smollm2", lambda: open_source(data_file("smollm2.gguf")).tokenizer)


@cache
def qwen() -> HfTokenizer:
    """The tokenizer of Qwen2.5, which Arch-Router uses."""
    return _kept("qwen2.5", qwen_tokenizer_json)


@cache
def qwen_as_servers_use_it() -> tokenizers.Tokenizer:
    """The same, as model servers use it: the spelling of a special token is that token."""
    qwen()  # makes the file
    return tokenizers.Tokenizer.from_file(str(_path("qwen2.5")))


def qwen_tokenizer_text() -> str:
    """`qwen_tokenizer_json` as text, which is made once and kept."""
    qwen()
    return _path("qwen2.5").read_text(encoding="utf-8")


def qwen_tokenizer_json() -> Mapping[str, Any]:
    """Content of a `tokenizer.json` that gives Qwen2.5's ids, made from `qwen.tiktoken`.

    That file ranks byte strings by merge order; `tokenizers` wants the pair that each was merged
    from.
    """
    ranks: dict[bytes, int] = {}
    for line in data_file("qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    in_order = sorted(ranks, key=ranks.__getitem__)
    merges = [_last_merge(token, ranks) for token in in_order if len(token) > 1]
    control, other = _QWEN_CONTROL.split(), _QWEN_OTHER.split()
    return tokenizer_from_gguf(
        Path("qwen.tiktoken"),
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [*(spelled[token] for token in in_order), *control, *other],
            "tokenizer.ggml.merges": [f"{spelled[a]} {spelled[b]}" for a, b in merges],
            "tokenizer.ggml.token_type": (
                [_NORMAL] * len(ranks) + [_CONTROL] * len(control) + [_USER_DEFINED] * len(other)
            ),
        },
    )


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last two pieces of `token` when only merges of lower rank are made."""
    splits = [(token[:i], token[i:]) for i in range(1, len(token))]
    possible = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
    if len(possible) == 1:
        return possible[0]
    rank = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, which byte-level BPE files are written in."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _kept(name: str, make: Callable[[], Mapping[str, Any]]) -> HfTokenizer:
    """Making one takes seconds, so it stays in the cache folder until this file changes."""
    path = _path(name)
    with exclusive(path.name):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(make()), encoding="utf-8")
            part.rename(path)
    return HfTokenizer(path)


def _path(name: str) -> Path:
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return cache_dir() / "tests" / f"{name}-{version}.json"
