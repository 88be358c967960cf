"""From a request to its effect."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.errors import SidecarError
from sidecar.core.policy import Catalog
from sidecar.ext_proc.asking import RouteSays, asked
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.options import ExtProcOptions
from sidecar.ext_proc.request import (
    Dialects,
    HttpHead,
    HttpRequest,
    Passed,
    PassReason,
    Understood,
)
from sidecar.ext_proc.writing import Writer

_log = structlog.get_logger(__name__)

_READ_INLINE_BYTES = 64 * 1024
"""Larger bodies are read in a thread: it would hold up the event loop for milliseconds."""


class Router(Protocol):
    """Makes decisions."""

    async def decide(self, request: RoutingRequest) -> Decision:
        """Raises SidecarError for wrong input and nothing else."""
        ...


class Models(Protocol):
    """Knows the models; the catalog can change."""

    @property
    def catalog(self) -> Catalog: ...


class PassObserver(Protocol):
    """Counts the requests that nothing was decided for."""

    def passed_on(self, reason: str) -> None:
        """`reason`: the value of a `PassReason`."""
        ...


class RequestDecider:
    """Reads a request, decides, and writes down what to do to it. Never fails: what cannot be
    decided is passed on."""

    def __init__(
        self,
        router: Router,
        models: Models,
        dialects: Dialects,
        options: ExtProcOptions,
        observer: PassObserver | None = None,
    ) -> None:
        self._router = router
        self._models = models
        self._dialects = dialects
        self._options = options
        self._observer = observer
        self._writer = Writer(options.writing)
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._reading = ThreadPoolExecutor(1, "large-bodies")

    def recognise(self, head: HttpHead) -> Passed | None:
        """Why the body of such a request is not wanted; None if it is."""
        recognised = self._dialects.recognise(head)
        return recognised if isinstance(recognised, Passed) else None

    def passing(self, passed: Passed) -> Effect:
        """What is done to a request that is passed on."""
        if self._observer is not None:
            self._observer.passed_on(passed.reason.value)
        _log.debug("passed on", reason=passed.reason.value, detail=passed.detail)
        return self._writer.passing(passed)

    async def decide(
        self,
        request: HttpRequest,
        route: RouteSays,
        budget_s: float | None,
        arrived: float | None = None,
        longest: int | None = None,
    ) -> Effect:
        """What is done to `request`.

        Args:
            budget_s: longest it may take from `arrived` on; None: as long as any decision.
            arrived: `time.perf_counter()` when all of the request had come; None: now.
            longest: bytes of a body that Envoy takes in place of the request's, and answers 413 to
                more; None: any.
        """
        try:
            since = time.perf_counter() if arrived is None else arrived
            return await self._effect(request, route, budget_s, since, longest)
        except SidecarError as error:
            # Named by the client or by Envoy's route; the caller of an LLM cannot do anything with
            # an error of ours, and the route that Envoy has without us is the safe one.
            _log.info("passed on", code=error.code.label, why=error.message)
            return self.passing(Passed(PassReason.UNKNOWN_POLICY))
        except Exception:
            # A defect of ours must not fail the caller's request.
            _log.exception("request not routed")
            return self.passing(Passed(PassReason.INTERNAL_ERROR))

    async def _effect(
        self,
        request: HttpRequest,
        route: RouteSays,
        budget_s: float | None,
        arrived: float,
        longest: int | None,
    ) -> Effect:
        if _is_large(request):
            understood = await self._read_large(request, arrived)
        else:
            understood = self._dialects.read(request)
        wanted = self._wanted(request, understood, route, budget_s, arrived)
        if isinstance(wanted, Passed) or isinstance(understood, Passed):
            assert isinstance(wanted, Passed), "what was not understood is passed on"
            return self.passing(wanted)
        decision = await self._router.decide(wanted)
        if understood.dialect not in decision.model.dialects:
            # It would refuse the request; where Envoy sends requests without us may not.
            return self.passing(Passed(PassReason.NO_ELIGIBLE_MODEL))
        effect = self._writer.decided(decision, request, understood, longest)
        if longest is not None and effect.body is not None and len(effect.body) > longest:
            detail = f"more than {longest} bytes with the model's name in it"
            return self.passing(Passed(PassReason.DECODED_TOO_LARGE, detail))
        return effect

    async def _read_large(self, request: HttpRequest, arrived: float) -> Understood | Passed:
        loop = asyncio.get_running_loop()
        left_s = self._options.waiting.budget_s - (time.perf_counter() - arrived)
        try:
            async with asyncio.timeout(max(left_s, 0)):
                # What has not had its turn when the time is over is not read at all.
                return await loop.run_in_executor(self._reading, self._dialects.read, request)
        except TimeoutError:
            return Passed(PassReason.SLOW_READING, "too much was to be read before it")

    def _wanted(
        self,
        request: HttpRequest,
        understood: Understood | Passed,
        route: RouteSays,
        budget_s: float | None,
        arrived: float,
    ) -> RoutingRequest | Passed:
        if isinstance(understood, Passed):
            return understood
        asking, catalog = self._options.asking, self._models.catalog
        return asked(request.head, understood, route, asking, catalog, budget_s, arrived)


def _is_large(request: HttpRequest) -> bool:
    """A compressed body is as large as it may decode to."""
    size = len(request.body or b"")
    return size > _READ_INLINE_BYTES or "content-encoding" in request.head.headers
