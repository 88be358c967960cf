"""A stand-in for a provider whose answers the official SDKs understand.

It calls a tool that it is offered, once, and says a text otherwise. A stream stops after its first
event until the test lets it go on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web

TEXT = ("Hello", ", ", "world")
TOOL = "weather"
ARGUMENTS = '{"city": "Oslo"}'

Event = tuple[str, dict[str, Any]]
"""Its name (empty: none is sent) and its data."""


@dataclass
class SdkProvider:
    """What it got, and whether its streams go on."""

    models: set[str]
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    issued: set[str] = field(default_factory=set)
    """Ids of responses; it knows no others to go on from."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if body["model"] not in self.models:
            return _not_found("no such model")
        if body.get("previous_response_id", "") not in {"", *self.issued}:
            return _not_found("no such response")
        api = request.path.rpartition("/")[2]
        whole, events = _ANSWERS[api](body["model"], _calls_tool(api, body))
        if api == "responses":
            # The same object in its events.
            whole["id"] = f"resp_{self.port}_{len(self.bodies)}"
            events[0][1]["response"]["id"] = whole["id"]
            self.issued.add(whole["id"])
        if body.get("stream"):
            return await self._stream(request, events)
        response = web.json_response(whole)
        if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _stream(self, request: web.Request, events: Sequence[Event]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, (name, data) in enumerate(events):
            if number == 1:
                await self.go_on.wait()
            head = f"event: {name}\n" if name else ""
            await response.write(f"{head}data: {json.dumps(data)}\n\n".encode())
        if not events[0][0]:
            await response.write(b"data: [DONE]\n\n")
        return response


def _not_found(message: str) -> web.Response:
    error = {"type": "not_found_error", "message": message}
    return web.json_response({"type": "error", "error": error}, status=404)


def _calls_tool(api: str, body: dict[str, Any]) -> bool:
    """The tool is offered and its result is not there."""
    last = (body["input"] if api == "responses" else body["messages"])[-1]
    results = json.dumps(last)
    return bool(body.get("tools")) and '"tool"' not in results and "tool_result" not in results


def _chat(model: str, tool: bool) -> tuple[dict[str, Any], list[Event]]:
    call = {"id": "c1", "type": "function", "function": {"name": TOOL, "arguments": ARGUMENTS}}
    message: dict[str, Any] = {"role": "assistant", "content": None if tool else "".join(TEXT)}
    if tool:
        message["tool_calls"] = [call]
    finish = "tool_calls" if tool else "stop"
    base = {"id": "chatcmpl-1", "created": 1, "model": model}
    whole = {
        **base,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text} for text in TEXT]
    events = [
        (
            "",
            {
                **base,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            },
        )
        for delta in deltas
    ]
    return whole, events


def _responses(model: str, tool: bool) -> tuple[dict[str, Any], list[Event]]:
    said = {"type": "output_text", "text": "".join(TEXT), "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
    call = {
        "type": "function_call",
        "id": "f1",
        "call_id": "c1",
        "name": TOOL,
        "arguments": ARGUMENTS,
        "status": "completed",
    }
    whole: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "completed",
        "output": [call] if tool else [{**message, "content": [said]}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    part = {"item_id": "m1", "output_index": 0, "content_index": 0, "logprobs": []}
    data: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        *({"type": "response.output_text.delta", "delta": text, **part} for text in TEXT),
        {"type": "response.completed", "response": whole},
    ]
    return whole, [(each["type"], {**each, "sequence_number": n}) for n, each in enumerate(data)]


def _messages(model: str, tool: bool) -> tuple[dict[str, Any], list[Event]]:
    text = {"type": "text", "text": "".join(TEXT)}
    call = {"type": "tool_use", "id": "t1", "name": TOOL, "input": json.loads(ARGUMENTS)}
    whole: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [call if tool else text],
        "stop_reason": "tool_use" if tool else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 3},
    }
    data: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": each},
            }
            for each in TEXT
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ]
    return whole, [(each["type"], each) for each in data]


_ANSWERS = {"completions": _chat, "responses": _responses, "messages": _messages}


@asynccontextmanager
async def sdk_provider(paths: Sequence[str], models: set[str]) -> AsyncIterator[SdkProvider]:
    """On a port of its own; answers 404 to other paths and to other models."""
    provider = SdkProvider(models)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    for path in paths:
        app.router.add_post(path, provider.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    provider.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield provider
    finally:
        provider.go_on.set()
        await runner.cleanup()
