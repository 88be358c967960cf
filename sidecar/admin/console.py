"""The console: a page that shows where requests go and why, and tries one.

    /console             the page
    /console/decisions   the last decisions, without message content
    /console/policy      one policy in force, `?name=` its resource name
    /console/try         POST a `RouteRequest` as JSON: its decision, explained

Whoever reaches the address may use it. A browser is made to use it for its own pages alone: a site
that another tab shows can neither send requests here nor read what is answered, also where its
name is made to resolve to this address.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from sidecar.core.decision import Decision, PolicyRef
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import ModelList, Policy
from sidecar.observability.decisions import decision_entry

MAX_BYTES = 1024 * 1024
"""Of a request to try: its JSON is parsed in one go, which nothing else can interrupt."""

_AT_ONCE = 4
_BODY_S = 10.0
"""Requests that are read and decided at once, and how long the body of one may take to come."""

_HEADERS = {
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.X_CONTENT_TYPE_OPTIONS: "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PolicyInForce(Protocol):
    @property
    def policy(self) -> Policy: ...

    @property
    def ref(self) -> PolicyRef: ...


class Policies(Protocol):
    def find(self, name: str) -> PolicyInForce | None:
        """The policy of that resource name; None if there is none in force."""
        ...

    @property
    def default_name(self) -> str: ...


Handler = Callable[[web.Request], Awaitable[web.Response]]


class Console:
    """What the console shows and does.

    Args:
        address: `host:port` that is listened on; under its host the console may be asked for,
            besides the names of this machine.
        policies: those in force.
        decisions: the last ones, the newest first.
        try_: decides a request in JSON; raises SidecarError.
    """

    def __init__(
        self,
        address: str,
        policies: Policies,
        decisions: Callable[[], Sequence[dict[str, Any]]],
        try_: Callable[[bytes], Awaitable[Decision]],
    ) -> None:
        self._host = _host_of(address)
        self._policies = policies
        self._decisions = decisions
        self._try = try_
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._page = files(__package__).joinpath("console.html").read_text(encoding="utf-8")
        self._content_policy = _content_policy(self._page)

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/console", self._guarded(self._show))
        router.add_get("/console/decisions", self._guarded(self._show_decisions))
        router.add_get("/console/policy", self._guarded(self._show_policy))
        router.add_post("/console/try", self._guarded(self._decide))

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            try:
                self._check_origin(request)
                response = await handler(request)
            except SidecarError as error:
                response = _error(error)
            response.headers.update(_HEADERS)
            # Of answers that are no page, too: a browser can be led to show them as one.
            response.headers["Content-Security-Policy"] = self._content_policy
            return response

        return guarded

    def _check_origin(self, request: web.Request) -> None:
        """Raises SidecarError INVALID_REQUEST for what another site has a browser send."""
        host = request.headers.get(hdrs.HOST, "")
        if not self._is_ours(_host_of(host)):
            raise _wrong(
                "Host",
                "is neither a loopback address nor the host of server.http_address; open the "
                "console as http://127.0.0.1:PORT/console, by a port-forward if need be",
            )
        if request.method != hdrs.METH_POST:
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
        if site not in (None, "same-origin") or not (origin is None or _authority(origin) == host):
            raise _wrong("Origin", "is another site's; send requests from the console itself")
        if request.content_type != "application/json":
            raise _wrong("Content-Type", "is not application/json; send the request as JSON")

    def _is_ours(self, host: str) -> bool:
        if host in ("localhost", self._host):
            return True
        try:
            address = ipaddress.ip_address(host)
            # Names can be made to resolve to any address; an address is nobody else's name.
            return address.is_loopback or ipaddress.ip_address(self._host).is_unspecified
        except ValueError:
            return False

    async def _show(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    async def _show_decisions(self, request: web.Request) -> web.Response:
        return web.json_response({"decisions": list(self._decisions())})

    async def _show_policy(self, request: web.Request) -> web.Response:
        found = self._policies.find(request.query.get("name", "") or self._policies.default_name)
        if found is None:
            raise SidecarError(
                ErrorCode.POLICY_NOT_FOUND, "name: no policy in force has it; see /status"
            )
        return web.json_response(_policy(found, self._policies.default_name))

    async def _decide(self, request: web.Request) -> web.Response:
        async with self._slots:
            return web.json_response(_explained(await self._try(await _body(request))))


async def _body(request: web.Request) -> bytes:
    """Raises SidecarError INVALID_REQUEST or REQUEST_TOO_LARGE."""
    try:
        async with asyncio.timeout(_BODY_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise SidecarError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"body: more than the {MAX_BYTES} bytes that are read; leave out the oldest messages, "
            "or ask by gRPC",
        ) from None
    except TimeoutError:
        raise _wrong("body", f"did not come within {_BODY_S:g} s; send it again") from None
    except (web.RequestPayloadError, ConnectionError):
        raise _wrong(
            "body", "is cut off, or not what Content-Encoding says; send it whole and uncompressed"
        ) from None


def _explained(decision: Decision) -> dict[str, Any]:
    """All of a decision, its names as in the log."""
    explanation = decision.explanation
    return decision_entry(decision) | {
        "upstream_model": decision.model.upstream_model,
        "host": decision.model.host,
        "fallbacks": [model.id for model in decision.fallbacks],
        "confidence": decision.confidence,
        "candidates": [
            {"route": each.name, "probability": each.probability} for each in decision.candidates
        ],
        "prompt_format": decision.prompt_format,
        "steps": [asdict(step) for step in decision.steps],
        "explanation": asdict(explanation) if explanation is not None else None,
    }


def _policy(found: PolicyInForce, default_name: str) -> dict[str, Any]:
    policy = found.policy
    return {
        "name": found.ref.name,
        "revision": found.ref.revision,
        "digest": found.ref.digest,
        "is_default": found.ref.name == default_name,
        "description": policy.description,
        "pin": policy.pin,
        "default": _models(policy.default),
        "routes": [
            {
                "name": route.name,
                "description": route.description,
                "domain": route.domain,
                "min_confidence": route.min_confidence,
                **_models(route.models),
            }
            for route in policy.routes
        ],
    }


def _models(models: ModelList) -> dict[str, Any]:
    return {
        "preference": models.preference,
        "models": [{"id": each.id, "weight": each.weight} for each in models.models],
    }


def _error(error: SidecarError) -> web.Response:
    return web.json_response(
        {
            "code": error.code.name,
            "message": error.message,
            "fields": [asdict(each) for each in error.violations],
        },
        status=error.code.http_status,
    )


def _wrong(field: str, description: str) -> SidecarError:
    return SidecarError(ErrorCode.INVALID_REQUEST, f"{field}: {description}")


def _host_of(authority: str) -> str:
    """Of `host` or `host:port`, without the brackets of an IPv6 address."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::\d*)?", authority)
    return match[1].strip("[]").lower() if match else ""


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _content_policy(page: str) -> str:
    """Lets the page's own script and style run, and nothing else."""
    script, style = (
        base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        for inner in (
            page[page.index(f"<{tag}>") + len(tag) + 2 : page.index(f"</{tag}>")]
            for tag in ("script", "style")
        )
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
