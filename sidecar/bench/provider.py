"""A provider of an LLM that answers at once: what an application's request costs by itself.

python -m sidecar.bench.provider PORT
"""

from __future__ import annotations

import json
import sys

from aiohttp import web

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "An answer."},
                "finish_reason": "stop",
            }
        ],
    }
).encode()


async def _complete(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=_ANSWER, content_type="application/json")


if __name__ == "__main__":
    application = web.Application()
    application.router.add_post("/v1/chat/completions", _complete)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
