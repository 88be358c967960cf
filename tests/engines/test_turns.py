"""The language model's thread: whose turn is next, and that everybody gets an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from cpu_engine.answers import FreeAnswer
from cpu_engine.decisions import Outcome, Result, Undecided
from cpu_engine.errors import CancelledError, RefusedError, UnavailableError
from cpu_engine.requests import Asked
from cpu_engine.turns import TurnLimits, Turns

from tests.engines.parts import ask

PATIENCE_S = 30


class HeldModel:
    """Decides a turn when it is let, and then at once; keeps what the turns were."""

    def __init__(self) -> None:
        self.turns: list[list[Asked]] = []
        self.began = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.raises_after: int | None = None

    def decide(self, requests: Sequence[Undecided]) -> Iterator[Result]:
        self.turns.append([each.asked for each in requests])
        self.began.release()
        assert self.may_go_on.acquire(timeout=PATIENCE_S)
        for number, each in enumerate(requests):
            if number == self.raises_after:
                raise MemoryError("what it was about")
            yield each.asked, Outcome(FreeAnswer(-1, 0), 0)


class Answers:
    """What each request was answered, in order."""

    def __init__(self) -> None:
        self.given: list[Result] = []
        self.logged: list[str] = []
        self.waiting: list[int] = []
        self.unsendable: Asked | None = None
        self._came = threading.Semaphore(0)

    def take(self, result: Result) -> None:
        if result[0] is self.unsendable:
            raise ConnectionError
        self.given.append(result)
        self._came.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=PATIENCE_S)


@pytest.fixture
def model() -> HeldModel:
    return HeldModel()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def turns(model: HeldModel, answers: Answers) -> Iterator[Turns]:
    turns = new_turns(model, answers, TurnLimits(waiting=0, tokens=6))
    yield turns
    model.may_go_on.release(100)
    turns.close()


def new_turns(model: HeldModel, answers: Answers, limits: TurnLimits) -> Turns:
    return Turns(
        model,
        limits,
        answers.take,
        lambda error: answers.logged.append(type(error).__name__),
        answers.waiting.append,
    )


def begun(turns: Turns, model: HeldModel, asked: Asked) -> None:
    """`asked` has its turn, which lasts."""
    turns.put(Undecided(asked))
    assert model.began.acquire(timeout=PATIENCE_S)


def test_a_turn_is_one_policy_s_that_of_the_one_that_waits_longest(
    turns: Turns, model: HeldModel, answers: Answers
) -> None:
    first, *rest = (ask([policy], [9, 9]) for policy in (1, 2, 3, 2, 3, 2, 2))
    begun(turns, model, first)
    for asked in rest:
        turns.put(Undecided(asked))
    model.may_go_on.release(100)
    answers.wait_for(7)

    two, three = [rest[0], rest[2], rest[4]], [rest[1], rest[3]]
    # Six tokens are a turn: the fourth of policy 2 comes after the older ones of policy 3.
    assert model.turns == [[first], two, three, [rest[5]]]
    assert answers.waiting == [1, 0, 1, 2, 3, 4, 5, 6, 3, 1, 0]


def test_more_than_a_turn_takes_has_a_turn_of_its_own(
    turns: Turns, model: HeldModel, answers: Answers
) -> None:
    first, long, short = (ask([1], [9] * count) for count in (1, 50, 1))
    begun(turns, model, first)
    turns.put(Undecided(long))
    turns.put(Undecided(short))
    model.may_go_on.release(100)
    answers.wait_for(3)

    assert model.turns == [[first], [long], [short]]


def test_what_exceeds_the_bound_is_unavailable(model: HeldModel, answers: Answers) -> None:
    turns = new_turns(model, answers, TurnLimits(waiting=2, tokens=6))
    begun(turns, model, ask([1], [9]))
    for token in (7, 8):
        turns.put(Undecided(ask([1], [token])))
    with pytest.raises(UnavailableError, match="Exceeds maximum queue size of 2"):
        turns.put(Undecided(ask([1], [9])))
    model.may_go_on.release(100)
    answers.wait_for(3)
    turns.close()


@pytest.mark.parametrize("limit", [0, 3])
def test_who_has_gone_waits_no_longer(model: HeldModel, answers: Answers, limit: int) -> None:
    """The first ones, or where no room is left, whoever it is."""
    turns = new_turns(model, answers, TurnLimits(waiting=limit, tokens=6))
    gone: list[bool] = []
    begun(turns, model, ask([1], [1]))
    first, stays, last = (
        ask([1], [2], is_cancelled=lambda: bool(gone)),
        ask([1], [3]),
        ask([1], [4], is_cancelled=lambda: bool(gone)),
    )
    for each in (first, stays, last):
        turns.put(Undecided(each))
    gone.append(True)
    turns.put(Undecided(ask([1], [5])))
    assert [(asked, type(why)) for asked, why in answers.given] == [(first, CancelledError)]
    assert answers.waiting == [1, 0, 1, 2, 3, 3]

    if limit:
        turns.put(Undecided(ask([1], [6])))
        assert answers.given[1][0] is last
        assert answers.waiting[-1] == 3
    model.may_go_on.release(100)
    turns.close()


def test_what_the_model_raises_is_answered_without_its_text_and_the_next_turn_goes_on(
    turns: Turns, model: HeldModel, answers: Answers
) -> None:
    first, one, other = (ask([1], [token]) for token in (1, 2, 3))
    begun(turns, model, first)
    turns.put(Undecided(one))
    turns.put(Undecided(other))
    model.raises_after = 1
    model.may_go_on.release(2)
    answers.wait_for(3)
    model.raises_after = None
    later = ask([1], [4])
    turns.put(Undecided(later))
    model.may_go_on.release()
    answers.wait_for(1)

    assert [asked for asked, _ in answers.given] == [first, one, other, later]
    results = [result for _, result in answers.given]
    assert [type(each) for each in results] == [Outcome, Outcome, RefusedError, Outcome]
    assert str(results[2]) == "the routing model failed: MemoryError"
    assert answers.logged == ["MemoryError"]


@pytest.mark.parametrize("raises_after", [None, 0], ids=["answered", "refused"])
def test_an_answer_that_cannot_be_sent_is_no_matter_of_the_others(
    turns: Turns, model: HeldModel, answers: Answers, raises_after: int | None
) -> None:
    running, unsendable, with_it, later = (ask([1], [token]) for token in (1, 2, 3, 4))
    begun(turns, model, running)
    answers.unsendable, model.raises_after = unsendable, raises_after
    for each in (unsendable, with_it):
        turns.put(Undecided(each))
    model.may_go_on.release(2)
    answers.wait_for(2)
    model.raises_after = None
    begun(turns, model, later)
    model.may_go_on.release()
    answers.wait_for(1)

    assert [asked for asked, _ in answers.given] == [running, with_it, later]
    given = [type(result) for _, result in answers.given]
    refused = raises_after is not None
    assert given[1:] == [RefusedError if refused else Outcome, Outcome]
    assert "ConnectionError" in answers.logged


def test_a_count_that_cannot_be_told_keeps_nobody_from_an_answer(
    model: HeldModel, answers: Answers
) -> None:
    def untold(count: int) -> None:
        raise OSError("no shared memory is left")

    turns = Turns(
        model,
        TurnLimits(waiting=0, tokens=6),
        answers.take,
        lambda error: answers.logged.append(type(error).__name__),
        untold,
    )
    model.may_go_on.release(100)
    asked = [ask([policy], [9]) for policy in (1, 2)]
    for each in asked:
        turns.put(Undecided(each))
    answers.wait_for(2)
    turns.close()

    assert [each for each, _ in answers.given] == asked
    assert answers.logged == ["OSError"] * 4


def test_what_waits_when_the_model_is_unloaded_is_told(model: HeldModel, answers: Answers) -> None:
    turns = new_turns(model, answers, TurnLimits(waiting=0, tokens=6))
    running, waiting = ask([1], [1]), ask([2], [2])
    begun(turns, model, running)
    turns.put(Undecided(waiting))
    closing = threading.Thread(target=turns.close)
    closing.start()
    model.may_go_on.release(100)
    closing.join(PATIENCE_S)

    assert not closing.is_alive()
    assert [(asked, type(result)) for asked, result in answers.given] == [
        (running, Outcome),
        (waiting, UnavailableError),
    ]
