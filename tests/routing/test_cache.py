"""Decisions made before: what makes them equal, how much is kept and for how long."""

from __future__ import annotations

import tracemalloc

import pytest

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Candidate
from sidecar.core.model import Answer
from sidecar.routing.cache import DecisionCache, cache_key, said_key
from tests.doubles import Clock, talk

ANSWER = Answer("code", (Candidate("code", 0.8), Candidate("other", 0.2)), text="code")


def key(number: int) -> bytes:
    return cache_key("sha256:a", "compact-v1", "model", (1, 2, number))


def size_of_one() -> int:
    cache = DecisionCache(1 << 20, 60)
    cache.put(key(0), ANSWER)
    return cache.nbytes


@pytest.mark.parametrize(
    "other",
    [
        ("sha256:b", "compact-v1", "model", (1, 2)),
        ("sha256:a", "compact-v2", "model", (1, 2)),
        ("sha256:a", "compact-v1", "model@2", (1, 2)),
        ("sha256:a", "compact-v1", "model", (1, 3)),
        ("sha256:a", "compact-v1", "model", (1,)),
        ("sha256:a", "compact-v1mo", "del", (1, 2)),
    ],
    ids=["policy", "format", "model", "conversation", "shorter conversation", "shifted border"],
)
def test_whatever_an_answer_depends_on_makes_another_key(
    other: tuple[str, str, str, tuple[int, ...]],
) -> None:
    assert cache_key(*other) != cache_key("sha256:a", "compact-v1", "model", (1, 2))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("a", "b"), ("a", "b", "c")),
        (("a", "b"), ("b", "a")),
        (("a\0assistant\0b",), ("a", "b")),
        (("ab",), ("a", "b")),
    ],
    ids=["another turn", "other order", "a text with the separator", "joined"],
)
def test_other_words_have_another_key(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    keys = {said_key("sha256:a", "compact-v1", "model", talk(*texts)) for texts in (left, right)}

    assert len(keys) == 2
    assert None not in keys


HELLO = talk("hello")


@pytest.mark.parametrize(
    "other",
    [
        ("sha256:b", "compact-v1", "model", HELLO),
        ("sha256:a", "compact-v2", "model", HELLO),
        ("sha256:a", "compact-v1", "model@2", HELLO),
        ("sha256:a", "compact-v1", "model", Conversation((Message(Role.ASSISTANT, "hello"),))),
    ],
    ids=["policy", "format", "model", "who said it"],
)
def test_the_same_words_elsewhere_have_another_key(
    other: tuple[str, str, str, Conversation],
) -> None:
    assert said_key(*other) != said_key("sha256:a", "compact-v1", "model", HELLO)


def test_what_the_router_is_not_shown_does_not_count() -> None:
    hello = Message(Role.USER, "hello")
    system = Message(Role.SYSTEM, "you are a pirate")
    keys = {
        said_key("sha256:a", "compact-v1", "model", Conversation(messages))
        for messages in ((hello,), (system, hello))
    }

    assert len(keys) == 1


def test_a_long_conversation_has_no_key_of_its_words() -> None:
    assert said_key("sha256:a", "compact-v1", "model", talk("x" * 40_000)) is None


def test_a_link_ends_when_what_it_links_to_would() -> None:
    clock = Clock(0.0)
    cache = DecisionCache(1 << 20, ttl_s=10, clock=clock)
    cache.put(key(1), ANSWER)
    clock.now = 8
    cache.link(key(2), key(1))
    linked = cache.get(key(2))
    clock.now = 10

    assert (linked, cache.get(key(2))) == (ANSWER, None)


def test_a_link_to_nothing_is_nothing() -> None:
    cache = DecisionCache(1 << 20, 60)
    cache.link(key(2), key(1))

    assert (cache.get(key(2)), cache.nbytes) == (None, 0)


def test_an_answer_is_found_until_its_time_is_over() -> None:
    clock = Clock(0.0)
    cache = DecisionCache(1 << 20, ttl_s=10, clock=clock)
    cache.put(key(1), ANSWER)
    clock.now = 9.9
    before = cache.get(key(1))
    clock.now = 10
    after = cache.get(key(1))

    assert (before, after) == (ANSWER, None)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_being_used_does_not_prolong_the_time() -> None:
    clock = Clock(0.0)
    cache = DecisionCache(1 << 20, ttl_s=10, clock=clock)
    cache.put(key(1), ANSWER)
    for now in (4, 8):
        clock.now = now
        assert cache.get(key(1)) is not None
    clock.now = 12

    assert cache.get(key(1)) is None


def test_the_least_recently_used_goes_first() -> None:
    cache = DecisionCache(3 * size_of_one(), 60)
    for number in (1, 2, 3):
        cache.put(key(number), ANSWER)
    cache.get(key(1))
    cache.put(key(4), ANSWER)

    assert [number for number in (1, 2, 3, 4) if cache.get(key(number))] == [1, 3, 4]


def test_bytes_stay_within_the_bound() -> None:
    cache = DecisionCache(10 * size_of_one() + 1, 60)
    for number in range(100):
        cache.put(key(number), ANSWER)
        assert cache.nbytes <= 10 * size_of_one() + 1

    assert len(cache) == 10


def test_links_stay_within_the_bound_too() -> None:
    bound = 10 * size_of_one() + 1
    cache = DecisionCache(bound, 60)
    cache.put(key(0), ANSWER)
    for number in range(1, 100):
        assert cache.get(key(0)) == ANSWER
        cache.link(key(number), key(0))
        assert cache.nbytes <= bound

    assert len(cache) == 10


def test_putting_the_same_again_takes_no_more() -> None:
    cache = DecisionCache(1 << 20, 60)
    for _ in range(3):
        cache.put(key(1), ANSWER)

    assert (len(cache), cache.nbytes) == (1, size_of_one())


def test_an_answer_larger_than_the_bound_is_not_kept() -> None:
    cache = DecisionCache(size_of_one() - 1, 60)
    cache.put(key(1), ANSWER)

    assert (len(cache), cache.nbytes) == (0, 0)


def test_the_estimate_is_not_below_what_python_takes() -> None:
    names = [f"route_{n}" for n in range(20)]
    cache = DecisionCache(1 << 30, 60)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(2000):
        candidates = tuple(Candidate(name, number / (n + 3.0)) for n, name in enumerate(names))
        cache.put(key(number), Answer(names[0], candidates, text=f"{number:>20}"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0.5 < (after - before) / cache.nbytes <= 1.0
