"""The thread that reads routes.

Those of a policy with hundreds take seconds, and what the encoder is asked under other policies
must not wait for them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from cpu_engine.errors import CancelledError, UnavailableError, failure_of
from cpu_engine.forward import Floats
from cpu_engine.requests import Opinion
from cpu_engine.second_opinion import Encoded, Key, Policy, SecondOpinion, key_of

_AT_ONCE = 16
"""Requests that are answered in one turn, once the routes are read."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Who waits for routes.

    Args:
        opinion: what is asked under them; without a request, nothing.
        is_cancelled: whether the caller has gone.
        done: told the logits, or why there are none; None where nothing was asked.
    """

    opinion: Opinion
    is_cancelled: Callable[[], bool]
    done: Callable[[Floats | Exception | None], None]


@dataclass(slots=True, eq=False)
class _Reading:
    """Of one policy's routes."""

    readers: list[Reader] = field(default_factory=list)
    found: dict[bytes, Encoded] = field(default_factory=dict)
    policy: Policy | None = None


class RouteReader:
    """Has the routes of several policies read in turn, in one pass of the encoder each time.

    Args:
        failed: told what the encoder, or `Reader.done`, raised; the former's readers are refused.
    """

    def __init__(self, second: SecondOpinion, failed: Callable[[Exception], None]) -> None:
        self._second = second
        self._failed = failed
        self._readings: OrderedDict[Key, _Reading] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="route-reader", daemon=True)
        self._thread.start()

    def put(self, reader: Reader) -> None:
        """`reader.done` is called once, on that thread."""
        with self._changed:
            key = key_of(reader.opinion.routes)
            self._readings.setdefault(key, _Reading()).readers.append(reader)
            self._changed.notify()

    def close(self) -> None:
        """Ends after the pass under way; who still waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for key in list(self._readings):
            self._end(key, UnavailableError("the model is being unloaded"))

    def _run(self) -> None:
        while turn := self._next():
            key, reading = turn
            try:
                self._read(key, reading)
            except Exception as error:  # one answer for everyone, whatever happens
                self._failed(error)
                self._end(key, failure_of(error))
            with self._changed:
                if key in self._readings:
                    self._readings.move_to_end(key)

    def _next(self) -> tuple[Key, _Reading] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._readings or self._closed)
            if self._closed:
                return None
            return next(iter(self._readings.items()))

    def _read(self, key: Key, reading: _Reading) -> None:
        if not self._is_waited_for(key, reading):
            return
        if reading.policy is None:
            routes = reading.readers[0].opinion.routes
            reading.policy = self._second.read(routes, reading.found)
        if reading.policy is None:
            return
        some = reading.readers[:_AT_ONCE]
        asked = [each for each in some if each.opinion.has_request and not each.is_cancelled()]
        given = self._second.opinions([each.opinion for each in asked], reading.policy)
        told: dict[Reader, Floats] = dict(zip(asked, given, strict=True))
        del reading.readers[: len(some)]
        for each in some:
            gone = CancelledError() if each.opinion.has_request else None
            self._tell(each, told.get(each, gone))

    def _is_waited_for(self, key: Key, reading: _Reading) -> bool:
        """Drops the first ones as long as they have gone: mostly those who have waited longest."""
        while True:
            with self._changed:
                if not reading.readers:
                    del self._readings[key]
                    return False
            if not reading.readers[0].is_cancelled():
                return True
            self._tell(reading.readers.pop(0), CancelledError())

    def _end(self, key: Key, error: Exception) -> None:
        with self._changed:
            reading = self._readings.pop(key)
        for each in reading.readers:
            self._tell(each, error)

    def _tell(self, reader: Reader, given: Floats | Exception | None) -> None:
        try:
            reader.done(given)
        except Exception as error:  # it is one reader's; the others wait for theirs
            self._failed(error)
