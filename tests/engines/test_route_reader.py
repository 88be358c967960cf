"""The thread that reads routes: whose turn is next, and that everybody gets an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import numpy as np
import pytest
from cpu_engine.errors import CancelledError, RefusedError, UnavailableError
from cpu_engine.forward import Floats
from cpu_engine.requests import Opinion
from cpu_engine.route_reader import Reader, RouteReader
from cpu_engine.second_opinion import Encoded, Policy, Routes

PATIENCE_S = 30

Given = tuple[str, Floats | Exception | None]


class HeldEncoder:
    """Reads one route at a step, when it is let; keeps whose routes it read. Logits are the number
    of tokens of the request."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.began = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.fails_for: int | None = None

    def read(self, routes: Routes, found: dict[bytes, Encoded]) -> Policy | None:
        policy = int(routes[0][0])
        self.steps.append(policy)
        self.began.release()
        assert self.may_go_on.acquire(timeout=PATIENCE_S)
        if policy == self.fails_for:
            raise MemoryError("what it was about")
        nothing = np.zeros(0, np.float32)
        entry = Encoded(nothing, nothing, nothing)
        found[routes[len(found)].tobytes()] = entry
        if len(found) < len(routes):
            return None
        return Policy(nothing, nothing, np.zeros(0, np.int32), nothing)

    def opinions(self, wanted: Sequence[Opinion], policy: Policy | None = None) -> Iterator[Floats]:
        return (np.array([len(each.request_ids)], np.float32) for each in wanted)


@pytest.fixture
def encoder() -> HeldEncoder:
    return HeldEncoder()


@pytest.fixture
def given() -> Queue[Given]:
    return Queue()


@pytest.fixture
def failed() -> list[str]:
    return []


@pytest.fixture
def reader(encoder: Any, failed: list[str]) -> Iterator[RouteReader]:
    reader = RouteReader(encoder, lambda error: failed.append(type(error).__name__))
    yield reader
    encoder.may_go_on.release(100)
    reader.close()


def wants(
    given: Queue[Given],
    name: str,
    policy: int,
    routes: int,
    tokens: int = 1,
    gone: Callable[[], bool] = lambda: False,
) -> Reader:
    """A request of so many tokens; 0: the routes are only to be read."""
    ids = tuple(np.array([policy, number], np.int32) for number in range(routes))
    request = np.ones(tokens, np.int32)
    return Reader(Opinion(request, request, ids), gone, lambda what: given.put((name, what)))


def told(given: Queue[Given], count: int) -> list[tuple[str, object]]:
    some = [given.get(timeout=PATIENCE_S) for _ in range(count)]
    return [
        (name, what.tolist() if isinstance(what, np.ndarray) else type(what)) for name, what in some
    ]


def test_policies_are_read_in_turn_and_each_once(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given]
) -> None:
    reader.put(wants(given, "large", policy=1, routes=4))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "small", policy=2, routes=1, tokens=2))
    reader.put(wants(given, "large, too", policy=1, routes=4, tokens=3))
    encoder.may_go_on.release(100)

    assert told(given, 3) == [("small", [2.0]), ("large", [1.0]), ("large, too", [3.0])]
    assert encoder.steps == [1, 2, 1, 1, 1]


def test_the_answer_comes_in_the_turn_in_which_the_last_route_is_read(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given]
) -> None:
    reader.put(wants(given, "large", policy=1, routes=9))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    told_after: Queue[int] = Queue()
    small = wants(given, "small", policy=2, routes=1)
    reader.put(Reader(small.opinion, lambda: False, lambda _: told_after.put(len(encoder.steps))))
    encoder.may_go_on.release(100)

    assert told_after.get(timeout=PATIENCE_S) == 2


def test_who_only_wants_them_read_is_told_nothing(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given]
) -> None:
    encoder.may_go_on.release(100)
    reader.put(wants(given, "warming", policy=1, routes=2, tokens=0))

    assert told(given, 1) == [("warming", type(None))]


def test_nothing_is_read_for_those_who_have_gone(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given]
) -> None:
    gone: list[bool] = []
    reader.put(wants(given, "first", policy=1, routes=9, gone=lambda: bool(gone)))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "second", policy=1, routes=9, gone=lambda: bool(gone)))
    gone.append(True)
    encoder.may_go_on.release()

    assert told(given, 2) == [("first", CancelledError), ("second", CancelledError)]
    assert encoder.steps == [1]
    reader.put(wants(given, "later", policy=1, routes=1))
    encoder.may_go_on.release()
    assert told(given, 1) == [("later", [1.0])]


def test_who_has_gone_by_the_end_is_not_asked_about(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given]
) -> None:
    reader.put(wants(given, "stays", policy=1, routes=1))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "gone", policy=1, routes=1, gone=lambda: True))
    encoder.may_go_on.release()

    assert told(given, 2) == [("stays", [1.0]), ("gone", CancelledError)]


def test_what_the_encoder_raises_is_told_its_policy_s_and_the_others_go_on(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given], failed: list[str]
) -> None:
    encoder.fails_for = 1
    reader.put(wants(given, "one", policy=1, routes=3))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "another", policy=1, routes=3))
    reader.put(wants(given, "of another", policy=2, routes=1))
    encoder.may_go_on.release(100)

    assert told(given, 3) == [
        ("one", RefusedError),
        ("another", RefusedError),
        ("of another", [1.0]),
    ]
    assert failed == ["MemoryError"]


def test_an_answer_that_cannot_be_given_keeps_nobody_from_theirs(
    reader: RouteReader, encoder: HeldEncoder, given: Queue[Given], failed: list[str]
) -> None:
    def unsendable(what: Floats | Exception | None) -> None:
        raise ConnectionError

    opinion = wants(given, "", policy=1, routes=1).opinion
    reader.put(Reader(opinion, lambda: False, unsendable))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "next", policy=1, routes=1))
    encoder.may_go_on.release(100)

    assert told(given, 1) == [("next", [1.0])]
    assert failed == ["ConnectionError"]


def test_who_waits_when_the_model_is_unloaded_is_told(
    encoder: Any, given: Queue[Given], failed: list[str]
) -> None:
    reader = RouteReader(encoder, lambda error: failed.append(type(error).__name__))
    reader.put(wants(given, "first", policy=1, routes=9))
    assert encoder.began.acquire(timeout=PATIENCE_S)
    reader.put(wants(given, "second", policy=2, routes=9))
    closing = threading.Thread(target=reader.close)
    closing.start()
    while not reader._closed:
        pass
    encoder.may_go_on.release(100)
    closing.join(PATIENCE_S)

    assert not closing.is_alive()
    assert sorted(told(given, 2)) == [("first", UnavailableError), ("second", UnavailableError)]
    assert encoder.steps == [1]
