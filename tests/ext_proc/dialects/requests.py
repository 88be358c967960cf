"""Requests as clients send them, for the tests of the dialects."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hypothesis import settings

from sidecar.ext_proc.dialects import LlmDialects
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, Understood

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"

PROPERTY = settings(max_examples=80)


def head(path: str = CHAT, /, method: str = "POST", **headers: str) -> HttpHead:
    """Headers by their names with underscores; JSON unless they say otherwise."""
    named = {name.replace("_", "-"): (value,) for name, value in headers.items()}
    return HttpHead(method, path, "llm.example", {"content-type": ("application/json",), **named})


def request(
    body: Mapping[str, object] | bytes | None,
    path: str = CHAT,
    /,
    *,
    complete: bool = True,
    **headers: str,
) -> HttpRequest:
    data = json.dumps(body).encode() if isinstance(body, Mapping) else body
    return HttpRequest(head(path, **headers), data, complete)


def understood(
    body: Mapping[str, object], path: str = CHAT, dialects: LlmDialects | None = None
) -> Understood:
    read = (dialects or LlmDialects()).read(request(body, path))
    assert not isinstance(read, Passed), read
    return read
